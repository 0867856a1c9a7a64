"""Specifications of any data set: what it says about itself, overridden by what the user says, and where each came from.

Nothing is guessed silently: an unknown rate is an error, and everything else is listed with its origin.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast, get_args

from flowchunk.datasets.description import UNKNOWN
from flowchunk.datasets.episode_source import ACTION, TASK, EpisodeSource
from flowchunk.datasets.errors import ConfigurationError, DatasetError
from flowchunk.datasets.rotations import representation_size
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec, Reference

GIVEN = "given"


@dataclass(frozen=True)
class SpecOptions:
    """What a data set's numbers mean, where it does not say so or says it wrongly.

    observe: keys that the policy observes; by default all that the data set describes. exclude: keys to leave out.
    control_hz: the rate of the recording. names, units, wraps: by key, a list with one entry per dimension, or for units one
    for all; wraps lists the dimensions that are angles which wrap, by name or index. reference: absolute, delta or relative
    actions, one for all or one per dimension. rotations: for each representation, such as axis_angle, the dimensions of the
    action that it consists of. condition_on_task: also observe which task is demonstrated, as a one-hot vector.
    """

    observe: Sequence[str] | None = None
    exclude: Sequence[str] = ()
    control_hz: float | None = None
    names: Mapping[str, Any] = field(default_factory=dict)
    units: Mapping[str, Any] = field(default_factory=dict)
    wraps: Mapping[str, Any] = field(default_factory=dict)
    reference: Any = None
    rotations: Mapping[str, Any] = field(default_factory=dict)
    condition_on_task: bool = False


@dataclass(frozen=True)
class DerivedSpecs:
    """Specifications. origins: of each key, ``action`` and ``control_hz``. notes: contradictions in the data set."""

    observation_spec: ObservationSpec
    action_spec: ActionSpec
    origins: Mapping[str, str]
    notes: tuple[str, ...] = ()


def derive_specs(source: EpisodeSource, options: SpecOptions | None = None) -> DerivedSpecs:
    """The specifications of a data set.

    Raises DatasetError for what is missing or damaged in it, ConfigurationError for options that do not fit it.
    """
    options, described = options or SpecOptions(), source.description
    origins = dict(described.origins)
    fields = {key: _field(source, key, options, origins) for key in _observed_keys(source, options)}
    _require_known(options, fields)
    actions = _actions(source, options, origins)
    hz = options.control_hz if options.control_hz is not None else described.control_hz
    if options.control_hz is not None:
        origins["control_hz"] = GIVEN
    if hz is None:
        raise DatasetError(
            f"{source.path} does not say at which rate it was recorded; give it in Hz: dataset.control_hz=10"
        )
    if not hz > 0:
        raise ConfigurationError(f"dataset.control_hz={hz} must be above 0")
    kept = {key: origin for key, origin in origins.items() if key in fields or key in (ACTION, "control_hz")}
    return DerivedSpecs(ObservationSpec(fields), ActionSpec(actions, hz), kept, described.notes)


def _observed_keys(source: EpisodeSource, options: SpecOptions) -> list[str]:
    described = list(source.description.observations)
    available = [*described, *(key for key in source.sources if key != ACTION and key not in described)]
    wanted = list(available if options.observe is None else options.observe)
    for option, keys, known in (
        ("observe", wanted, {*source.keys, *available}),
        ("exclude", options.exclude, {*source.keys, *available}),
    ):
        for key in keys:
            if key not in known:
                raise ConfigurationError(f"dataset.{option} names {key!r}; {_meant(key, sorted(known))}")
    arrays = source.description.arrays
    keys = [key for key in wanted if not {key, arrays.get(key)} & {*options.exclude} and key != ACTION]
    if options.condition_on_task and TASK not in keys:
        if not source.tasks:
            raise DatasetError(f"dataset.condition_on_task=true, but {source.path} stores no tasks")
        keys.append(TASK)
    if not keys:
        found = f"its arrays are {', '.join(source.arrays)}"
        notes = "".join(f"; it {note}" for note in source.description.notes if note.startswith("holds no"))
        raise DatasetError(f"{source.path} has nothing to observe{notes}; choose by dataset.observe=[KEY], {found}")
    return keys


def _field(source: EpisodeSource, key: str, options: SpecOptions, origins: dict[str, str]) -> ObservationField:
    shape = source.shape(key)  # raises for what cannot be read
    found = source.description.observations.get(key)
    if key in source.sources or found is None:
        found = ObservationField(shape, camera=key if source.is_image(key) else None)
        origins[key] = f"{GIVEN}: {source.sources[key]}" if key in source.sources else "the array's shape"
    if key == TASK and not source.sources.get(key) and source.tasks and key not in source.arrays:
        found = ObservationField(shape, names=distinct_names(source.tasks))
        origins[key] = "the data set's tasks, one-hot"
    if found.is_image:
        return replace(found, shape=shape)
    names = _entries(key, "names", options.names, found.size) or found.names
    units = _entries(key, "units", options.units, found.size) or found.units
    wraps = _wraps(key, options.wraps[key], names, found.size) if key in options.wraps else found.wraps
    given = [name for name in ("names", "units", "wraps") if key in getattr(options, name)]
    if given:
        origins[key] = f"{origins[key]}; {', '.join(given)} {GIVEN}"
    return replace(found, names=names, units=units, wraps=wraps)


def _actions(source: EpisodeSource, options: SpecOptions, origins: dict[str, str]) -> tuple[ActionDimension, ...]:
    found = source.description.actions
    if ACTION in source.sources:
        size = int(source.shape(ACTION)[0])
        found = tuple(ActionDimension(f"action_{index}", UNKNOWN, UNKNOWN) for index in range(size))
        origins[ACTION] = f"{GIVEN}: {source.sources[ACTION]}; absolute is assumed"
    if found is None:
        raise DatasetError(
            f"{source.path} has no actions; say which array holds them: dataset.sources.action=ARRAY, one of "
            f"{', '.join(source.arrays)}"
        )
    source.shape(ACTION)
    size = len(found)
    names = _entries(ACTION, "names", options.names, size) or tuple(dimension.name for dimension in found)
    units = _entries(ACTION, "units", options.units, size) or tuple(dimension.unit for dimension in found)
    references = parse_references(options.reference, size, option="dataset.reference") or tuple(
        dimension.reference for dimension in found
    )
    rotations = _rotations(options.rotations, names) or {}
    given = [name for name in ("names", "units") if ACTION in getattr(options, name)]
    given += [name for name in ("reference", "rotations") if getattr(options, name)]
    if given:
        origin = origins[ACTION].replace("; absolute is assumed", "") if options.reference else origins[ACTION]
        origins[ACTION] = f"{origin}; {', '.join(given)} {GIVEN}"
    return tuple(
        replace(
            dimension,
            name=names[index],
            unit=units[index],
            reference=references[index],
            rotation=rotations.get(index, dimension.rotation),
        )
        for index, dimension in enumerate(found)
    )


def _entries(key: str, option: str, given: Mapping[str, Any], size: int) -> tuple[str, ...]:
    """The given entries for a key, one per dimension; empty if none are given."""
    if key not in given:
        return ()
    value = given[key]
    entries = (str(value),) * size if isinstance(value, str) else tuple(map(str, value))
    if len(entries) != size:
        raise ConfigurationError(f"dataset.{option}.{key} has {len(entries)} entries, but {key} has {size} dimensions")
    return entries


def _wraps(key: str, given: Any, names: Sequence[str], size: int) -> tuple[int, ...]:
    return tuple(_index(f"dataset.wraps.{key}", entry, names, size) for entry in given)


def _index(option: str, entry: Any, names: Sequence[str], size: int) -> int:
    if str(entry) in names:
        return list(names).index(str(entry))
    if str(entry).isdigit() and int(entry) < size:
        return int(entry)
    raise ConfigurationError(f"{option}: {entry!r} is no dimension; {_meant(str(entry), names or range(size))}")


def parse_references(given: Any, size: int, *, option: str) -> tuple[Reference, ...]:
    """The reference of each of so many action dimensions; empty if none is given. Raises ConfigurationError."""
    if not given:
        return ()
    entries = (given,) * size if isinstance(given, str) else tuple(given)
    known = get_args(Reference)
    if len(entries) != size or any(entry not in known for entry in entries):
        raise ConfigurationError(
            f"{option}={given} must be {', '.join(known)}, one for all or one for each of {size} dimensions"
        )
    return cast(tuple[Reference, ...], entries)


def _rotations(given: Mapping[str, Any], names: Sequence[str]) -> dict[int, str]:
    found = dict[int, str]()
    for representation, dimensions in given.items():
        size = representation_size(representation)
        indices = [_index("dataset.rotations", entry, names, len(names)) for entry in dimensions]
        if not indices or len(indices) % size:
            raise ConfigurationError(
                f"dataset.rotations.{representation} names {len(indices)} dimensions, but it takes {size} for each rotation"
            )
        if any(indices[place] != indices[place - place % size] + place % size for place in range(len(indices))):
            raise ConfigurationError(
                f"dataset.rotations.{representation}={list(dimensions)}: the dimensions of a rotation must follow each other "
                "in the action, in this order; reorder them by dataset.sources.action"
            )
        found |= dict.fromkeys(indices, representation)
    return found


def _require_known(options: SpecOptions, fields: Mapping[str, ObservationField]) -> None:
    """Raise ConfigurationError for a description of a key that is not observed."""
    known = [key for key, one in fields.items() if not one.is_image] + [ACTION]
    for option in ("names", "units", "wraps"):
        for key in getattr(options, option):
            if key not in known or (option == "wraps" and key == ACTION):
                raise ConfigurationError(f"dataset.{option} names {key!r}; {_meant(key, known)}")


def _meant(name: str, known: Sequence[Any]) -> str:
    near = difflib.get_close_matches(name, list(map(str, known)), n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(map(str, known))}"


def distinct_names(texts: Sequence[str]) -> tuple[str, ...]:
    """The texts, with numbers in front if two are equal."""
    return tuple(texts) if len(set(texts)) == len(texts) else tuple(f"{i}: {text}" for i, text in enumerate(texts))
