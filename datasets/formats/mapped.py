"""Any HDF5 or npz files, by a mapping: a YAML file that says what their arrays are.

data: door-v0_demos.hdf5            # or a pattern, "episodes/*.npz": one episode per file
episodes: demo_*                    # HDF5: a group per episode; without it, the file is one episode,
episode_ends: meta/ends             # or this array says after which row each episode ends
control_hz: 100
action: {array: actions, unit: rad, reference: absolute}
observations:
  state: {array: observations, names: [...], units: [...], wraps: [...]}
  front: {array: rgb, camera: front}
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
import yaml

from flowchunk.datasets.description import UNKNOWN
from flowchunk.datasets.episode_source import ACTION, ArrayInfo, Description, EpisodeSource
from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.formats.array_files import ArrayFile, open_array_file
from flowchunk.datasets.specs import ActionDimension, ObservationField, Reference

ENTRIES = ("data", "episodes", "episode_ends", "control_hz", "action", "observations")
OF_ARRAYS = ("array", "names", "unit", "units", "wraps", "camera", "reference", "coordinate_frame")


@dataclass(frozen=True)
class EpisodePlace:
    """Where an episode is. group: the prefix of its arrays' names. first: its first row in them."""

    file: ArrayFile
    group: str
    first: int


@dataclass(frozen=True, kw_only=True)
class MappedSource(EpisodeSource):
    """Files that a mapping describes; open them with ``MappedSource.open(mapping)``."""

    mapping: Mapping[str, Any]
    places: tuple[EpisodePlace, ...]
    lengths: np.ndarray
    _kept: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        sources: Mapping[str, str] | None = None,
        image_size: tuple[int, int] | None = None,
    ) -> Self:
        """Open what a mapping file describes. Raises DatasetError if one of both is not right."""
        mapping = read_mapping(path)
        if Path(str(mapping["data"])).is_absolute():
            raise DatasetError(f"data: {mapping['data']} in {path} must be a path relative to the mapping")
        files = sorted(path.parent.glob(str(mapping["data"])))
        if not files:
            raise DatasetError(f"data: {mapping['data']} in {path} matches no file beside it; correct it")
        places, lengths = _find_episodes(path, mapping, [open_array_file(file) for file in files])
        return cls(
            path=path,
            mapping=mapping,
            places=tuple(places),
            lengths=np.array(lengths, dtype=np.int64),
            sources=dict(sources or {}),
            image_size=image_size,
        )

    @property
    def format(self) -> str:
        return f"{self.places[0].file.kind} with a mapping"

    @property
    def episode_lengths(self) -> np.ndarray:
        """(E,) the number of time steps of each episode."""
        return self.lengths

    @cached_property
    def arrays(self) -> Mapping[str, ArrayInfo]:
        """The arrays with a row per time step, as the first episode has them."""
        first = self.places[0]
        rows = first.file.rows(first.group + str(self.mapping["action"]["array"]))
        return {
            name.removeprefix(first.group): info
            for name, info in first.file.arrays.items()
            if name.startswith(first.group) and info.dtype.kind in "biuf" and first.file.rows(name) == rows
        }

    @cached_property
    def description(self) -> Description:
        """What the mapping says."""
        observations, arrays = {}, {}
        for key, entry in self.mapping["observations"].items():
            observations[key], arrays[key] = self._field(key, entry), str(entry["array"])
        action, hz = self.mapping["action"], self.mapping.get("control_hz")
        origins = dict.fromkeys((*observations, ACTION, *(["control_hz"] if hz else [])), "mapping")
        return Description(
            observations,
            self._actions(action),
            None if hz is None else self._rate(hz),
            {**arrays, ACTION: str(action["array"])},
            origins,
        )

    def read_array(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start … stop - 1 of an array. Raises DamageError, with the episode, if they cannot be read."""
        info = self.arrays[name]
        parts = [np.empty((0, *info.shape), info.dtype)]
        for episode, first, last in self.parts_of(start, stop):
            place, offset = self.places[episode], int(self.episode_starts[episode])
            begin = place.first + first - offset
            try:
                rows = place.file.read(place.group + name, begin, begin + last - first)
            except Exception as error:  # of HDF5, of a filter, or of zip
                raise self.damage_error(name, f"episode {episode}, {place.file.path.name}: {error}") from error
            if (rows.shape[1:] or (1,)) != info.shape:
                raise DatasetError(
                    f"{place.group}{name} in {place.file.path} has frames of shape {rows.shape[1:]} in episode {episode}, "
                    f"but those of the first episode have {info.shape}; repair or leave out that episode"
                )
            parts.append(rows.reshape(len(rows), *info.shape))
        return np.concatenate(parts)  # in a type that holds the values of all of these episodes

    def read_whole(self, name: str, episode: int) -> np.ndarray:
        """An array of an episode, all of it; it need not have a row per time step. Raises DatasetError if it is missing."""
        place = self.places[episode]
        stored = place.group + name
        if stored not in place.file.arrays:
            raise DatasetError(f"{place.file.path} has no array {stored}; use the file that was recorded")
        return place.file.read(stored, 0, place.file.rows(stored))

    def files(self, name: str) -> tuple[Path, list[Path]]:
        """All files of the data set."""
        return self.path.parent, sorted({place.file.path for place in self.places})

    def _rate(self, hz: Any) -> float:
        if isinstance(hz, bool) or not isinstance(hz, int | float):
            raise DatasetError(f"control_hz: {hz} in {self.path} must be a number, in Hz")
        return float(hz)

    def _field(self, key: str, entry: Mapping[str, Any]) -> ObservationField:
        info = self._info(key, str(entry["array"]))
        if info.is_image or "camera" in entry:
            return ObservationField(info.shape, camera=str(entry.get("camera", key)))
        names, size = tuple(map(str, entry.get("names", ()))), int(np.prod(info.shape))
        wraps = tuple(self._dimension(key, item, names, size) for item in entry.get("wraps", ()))
        return ObservationField(info.shape, names, _units(entry, size), wraps)

    def _dimension(self, key: str, item: Any, names: Sequence[str], size: int) -> int:
        if str(item) in names:
            return names.index(str(item))
        if str(item).isdigit() and int(item) < size:
            return int(item)
        raise DatasetError(
            f"{key} in {self.path}: wraps names {item!r}, which is no dimension; there are {names or size}"
        )

    def _actions(self, entry: Mapping[str, Any]) -> tuple[ActionDimension, ...]:
        size = int(np.prod(self._info(ACTION, str(entry["array"])).shape))
        names = entry.get("names") or [f"action_{index}" for index in range(size)]
        units = _units(entry, size) or (UNKNOWN,) * size
        if not len(names) == len(units) == size:
            raise DatasetError(
                f"action in {self.path} has {size} dimensions, but {len(names)} names and {len(units)} units; correct it"
            )
        frame, reference = str(entry.get("coordinate_frame", UNKNOWN)), entry.get("reference", "absolute")
        if reference not in get_args(Reference):
            raise DatasetError(f"action in {self.path}: reference {reference!r} must be one of {get_args(Reference)}")
        return tuple(
            ActionDimension(str(name), unit, frame, reference) for name, unit in zip(names, units, strict=True)
        )

    def _info(self, key: str, name: str) -> ArrayInfo:
        if name not in self.arrays:
            raise DatasetError(
                f"{key} in {self.path} names the array {name!r}, which holds no numbers; leave it out, or use one of "
                f"{sorted(self.arrays)}"
            )
        return self.arrays[name]


def read_mapping(path: Path) -> dict[str, Any]:
    """The content of a mapping file. Raises DatasetError if it is no mapping, or has entries that do not exist."""
    try:
        mapping = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DatasetError(f"{path} cannot be read as YAML ({error}); correct it") from error
    if not isinstance(mapping, dict) or "data" not in mapping:
        raise DatasetError(f"{path} is not a mapping: it needs data: FILE, action: and observations:")
    _require_known(path, mapping, ENTRIES)
    for name in ("action", "observations"):
        if not isinstance(mapping.get(name), dict):
            raise DatasetError(f"{path} needs the section {name}: what the array of each key is")
    for entry in (mapping["action"], *mapping["observations"].values()):
        if not isinstance(entry, dict) or "array" not in entry:
            raise DatasetError(f"{path}: every key needs array: NAME, but one has {entry!r}")
        _require_known(path, entry, OF_ARRAYS)
    return mapping


def _require_known(path: Path, entries: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in entries:
        if name not in known:
            raise DatasetError(f"{path} has the unknown entry {name!r}; {_near(str(name), known)}")


def _near(name: str, known: Collection[str]) -> str:
    """What might be meant by a name that is not known."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"


def _units(entry: Mapping[str, Any], size: int) -> tuple[str, ...]:
    if "unit" in entry:
        return (str(entry["unit"]),) * size
    units = entry.get("units", ())
    return (units,) * size if isinstance(units, str) else tuple(map(str, units))


def _find_episodes(
    path: Path, mapping: Mapping[str, Any], files: Sequence[ArrayFile]
) -> tuple[list[EpisodePlace], list[int]]:
    places, lengths = [], []
    action = str(mapping["action"]["array"])
    for file in files:
        for group in file.groups(str(mapping["episodes"])) if "episodes" in mapping else [""]:
            _require_array(f"{ACTION} in {path}", file, group, action)
            ends = [file.rows(group + action)]
            if "episode_ends" in mapping:
                ends = _read_ends(path, file, str(mapping["episode_ends"]), ends[0])
            for first, last in zip([0, *ends[:-1]], ends, strict=True):
                if last <= first:
                    raise DatasetError(
                        f"{file.path} has an episode without rows{f' in {group}' * bool(group)}; leave it out"
                    )
                places.append(EpisodePlace(file, group, first))
                lengths.append(last - first)
            _require_rows(path, mapping, file, group, ends[-1])
    if not places:
        raise DatasetError(f"episodes: {mapping.get('episodes')} in {path} matches no group; correct it")
    return places, lengths


def _read_ends(path: Path, file: ArrayFile, name: str, rows: int) -> list[int]:
    if name not in file.arrays:
        raise DatasetError(f"episode_ends: {name} in {path} is no array; there are {sorted(file.arrays)}")
    ends = [int(end) for end in file.read(name, 0, file.rows(name)).ravel()]
    if not ends or ends[-1] != rows or (np.diff(ends, prepend=0) <= 0).any():
        raise DatasetError(
            f"{name} in {file.path} must increase up to the number of rows, {rows}, but ends with {ends[-3:]}; correct it"
        )
    return ends


def _require_rows(path: Path, mapping: Mapping[str, Any], file: ArrayFile, group: str, rows: int) -> None:
    """Every mapped array has as many rows as there are actions."""
    for key, entry in mapping["observations"].items():
        name = group + str(entry["array"])
        _require_array(f"{key} in {path}", file, group, str(entry["array"]))
        if (got := file.rows(name)) != rows:
            raise DatasetError(
                f"{name} in {file.path} has {got} rows, but there are {rows} actions; repair that episode"
            )


def _require_array(what: str, file: ArrayFile, group: str, name: str) -> None:
    if group + name not in file.arrays:
        known = sorted(array.removeprefix(group) for array in file.arrays if array.startswith(group))
        raise DatasetError(f"{what}: {file.path} has no array {group + name}; {_near(name, known)}")
