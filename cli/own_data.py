"""Training on any data set, without a task: what its numbers mean, and defaults that follow from it, each printed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console

from flowchunk.cli.options import fill
from flowchunk.cli.reports import print_table, table_of
from flowchunk.datasets.derived_specs import DerivedSpecs, SpecOptions, derive_specs
from flowchunk.datasets.description import UNKNOWN
from flowchunk.datasets.episode_source import ACTION, EpisodeSource
from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.formats import open_dataset
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField
from flowchunk.policy.devices import choose_device

HORIZON_S = 1.6  # 16 steps at 10 Hz, as in the literature on action chunks
HORIZON_STEPS = (8, 32)
MLP_NUMBERS = 512  # its width: the noise of a chunk with more numbers does not fit through it, and stays in the result
LARGEST_IMAGE = {"cpu": 128, "gpu": 256}  # pixels of the shorter side; larger images are scaled to the next line's
SCALED_IMAGE = {"cpu": 96, "gpu": 224}
CROPPED = 7 / 8  # of height and width
SHOWN_NAMES = 6
CHECKED_ROWS = 20_000
BOUND_SLACK = 0.01  # of a bound, for actions that were rounded


def open_source(options: Mapping[str, Any]) -> EpisodeSource:
    """The data set that the options name. Raises DatasetError, and ConfigurationError for a wrong image size."""
    dataset = options["dataset"]
    size = dataset["image_size"]
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ConfigurationError(f"dataset.image_size={size} must be [height, width] in pixels")
    source = open_dataset(
        dataset["path"], sources=dataset["sources"], image_size=None if size is None else (size[0], size[1])
    )
    has_task = options.get("task", {}).get("env_id") is not None
    if has_task or source.sources == dataset["sources"]:
        return source
    return replace(
        source, sources=dict(dataset["sources"])
    )  # of the user, not of a task, so also for flowchunk's stores


def specs_of_source(source: EpisodeSource, options: Mapping[str, Any]) -> DerivedSpecs:
    """What the data set and the options say about its numbers."""
    return derive_specs(source, fill(SpecOptions, dict(options["dataset"]), section="dataset"))


def derived_overrides(
    options: Mapping[str, Any], given: Collection[str], *, horizon: int | None = None, console: Console | None = None
) -> list[str]:
    """Options that follow from the data set, as KEY=VALUE; those that were given are left alone.

    given: names of the options that were given. horizon: the given one, if there is one. console: where the specifications
    and these options are listed, with their origins.
    """
    source = open_source(options)
    specs = specs_of_source(source, options)
    hardware = "cpu" if choose_device(options["device"]).type == "cpu" else "gpu"
    derived = {
        **_image_defaults(specs, hardware, given),
        **_chunk_defaults(specs.action_spec, horizon),
        **_relative_defaults(source, specs),
    }
    used = {key: value for key, value in derived.items() if not _is_given(key, given)}
    if console is not None:
        print_specs(console, source, specs)
        horizon = int(derived["policy.horizon"][0])
        for note in (*specs.notes, *_notes_on_lengths(source, horizon), *_notes_on_bounds(source, specs.action_spec)):
            console.print(f"note: {note}", style="yellow", markup=False, soft_wrap=True)
        for key, (value, reason) in used.items():
            console.print(f"default: {key}={value} ({reason})", markup=False, highlight=False, soft_wrap=True)
    return [f"{key}={value}" for key, (value, _) in used.items()]


def print_specs(console: Console, source: EpisodeSource, specs: DerivedSpecs) -> None:
    """A table of the keys that a policy observes and of the actions, with where each description comes from."""
    table = table_of("key", "shape", "dimensions", "units", "from")
    for key, one in specs.observation_spec.fields.items():
        wraps = f"; wraps: {_short(str(one.names[i]) if one.names else str(i) for i in one.wraps)}" if one.wraps else ""
        what = f"image of {one.camera}" if one.is_image else _short(one.names) or "not named"
        units = "RGB" if one.is_image else _units(one.units) + wraps
        table.add_row(key, "x".join(map(str, one.shape)), what, units, specs.origins[key])
    action = specs.action_spec
    kinds = "/".join(dict.fromkeys(dimension.reference for dimension in action.dimensions))
    units = _units(tuple(dimension.unit for dimension in action.dimensions))
    table.add_row(ACTION, str(action.size), f"{_short(action.names)}; {kinds}", units, specs.origins[ACTION])
    table.add_row("control_hz", "", f"{action.control_hz:g} Hz", "", specs.origins["control_hz"])
    lengths = source.episode_lengths
    title = (
        f"{source.path}: {source.format}, {len(lengths)} episodes, {source.num_frames:,} time steps, "
        f"{source.num_frames / action.control_hz / 60:.1f} minutes"
    )
    print_table(console, title, table)


Derived = dict[str, tuple[str, str]]


def _image_defaults(specs: DerivedSpecs, hardware: str, given: Collection[str]) -> Derived:
    """The image encoder by the hardware, and images that it can take in time."""
    images = specs.observation_spec.images
    if not images:
        return {}
    derived = {}
    if not {"vision", "experiment"} & set(given):
        derived["hardware"] = (hardware, "the image encoder for this hardware")
    sizes = {one.shape[:2] for one in images.values()}
    largest = max(min(size) for size in sizes)
    size = next(iter(sizes))
    if largest > LARGEST_IMAGE[hardware] and len(sizes) == 1 and not _is_given("dataset.image_size", given):
        scale = SCALED_IMAGE[hardware] / largest
        size = (round(size[0] * scale), round(size[1] * scale))
        before = "x".join(map(str, next(iter(sizes))))
        derived["dataset.image_size"] = (f"[{size[0]},{size[1]}]", f"images are {before} pixels; scaled for speed")
    if len(sizes) == 1 and "policy.estimated" not in given:  # where a crop lies says where everything else does
        crop = tuple(int(side * CROPPED) for side in size)
        derived["vision.crop"] = (f"[{crop[0]},{crop[1]}]", "random crops of 7/8 in training")
    return derived


def _chunk_defaults(action: ActionSpec, horizon: int | None) -> Derived:
    """The length of a chunk by the rate, and a network through which as many numbers fit.

    horizon: the given one, if there is one.
    """
    hz = action.control_hz
    steps = horizon or int(np.clip(round(HORIZON_S * hz / 8) * 8, *HORIZON_STEPS))
    derived = {
        "policy.horizon": (str(steps), f"{steps / hz:.2g} s at {hz:g} Hz"),
        "policy.n_action_steps": (str(max(1, steps // 2)), "half of the horizon"),
    }
    if steps * action.size > MLP_NUMBERS:
        reason = f"chunks of {steps} x {action.size} numbers are more than an mlp passes on"
        derived["network"] = ("mixer", reason)
    return derived


def _notes_on_lengths(source: EpisodeSource, horizon: int) -> list[str]:
    """That most episodes are shorter than a chunk, if so."""
    median = float(np.median(source.episode_lengths))
    if median >= horizon:
        return []
    return [
        f"the median episode has {median:g} time steps, fewer than a chunk of {horizon}, whose rest repeats the episode's "
        "last action; check that the episodes are whole, or give a shorter policy.horizon"
    ]


def _notes_on_bounds(source: EpisodeSource, action: ActionSpec) -> list[str]:
    """Which actions are recorded outside their bounds."""
    actions = source.read(ACTION, 0, CHECKED_ROWS).reshape(-1, action.size)
    notes = []
    for dimension, values in zip(action.dimensions, actions.T, strict=True):
        low, high = dimension.low, dimension.high
        if (low is not None and values.min() < low - BOUND_SLACK * abs(low)) or (
            high is not None and values.max() > high + BOUND_SLACK * abs(high)
        ):
            notes.append(
                f"{dimension.name} is recorded from {values.min():.4g} to {values.max():.4g} {dimension.unit}, outside its "
                f"bounds, {low} to {high}, to which a robot keeps: check its unit"
            )
    return notes


def _relative_defaults(source: EpisodeSource, specs: DerivedSpecs) -> Derived:
    """Actions relative to the observed values of the same names, where their numbers are alike, too."""
    action = specs.action_spec
    if any(dimension.reference != "absolute" or dimension.rotation for dimension in action.dimensions):
        return {}
    actions = source.read(ACTION, 0, CHECKED_ROWS).reshape(-1, action.size).astype(np.float64)
    for key, one in specs.observation_spec.values.items():
        shared = [dimension.name for dimension in action.dimensions if _is_observed(dimension, one)]
        if not shared:
            continue
        observed = source.read(key, 0, CHECKED_ROWS).reshape(len(actions), -1).astype(np.float64)
        following = [
            _follows(actions[:, action.names.index(name)], observed[:, one.names.index(name)]) for name in shared
        ]
        if 2 * sum(following) >= len(shared):  # a dimension that hardly moves says nothing
            listed = ",".join(f"'{key}.{name}'" if name in shared else "null" for name in action.names)
            return {"policy.relative_to": (f"[{listed}]", f"{len(shared)} actions share names and values with {key}")}
    return {}


def _is_observed(action: ActionDimension, observed: ObservationField) -> bool:
    """Whether a dimension of the action is observed under its name, in its unit, as a number that does not wrap."""
    if action.name not in observed.names:
        return False
    index = observed.names.index(action.name)
    unit = observed.units[index] if observed.units else UNKNOWN
    return index not in observed.wraps and (UNKNOWN in (unit, action.unit) or unit == action.unit)


def _follows(action: np.ndarray, observed: np.ndarray) -> bool:
    """Whether an action is nearer to the observed value than to its own mean: a target of the same quantity."""
    return bool(np.square(action - observed).mean() <= np.square(action - action.mean()).mean())


def _is_given(key: str, given: Collection[str]) -> bool:
    return any(name == key or name.startswith(f"{key}.") for name in given) or (
        key in ("hardware",) and bool({"vision", "hardware"} & set(given))
    )


def _short(names: Any) -> str:
    names = list(names)
    rest = f", … ({len(names)})" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + rest


def _units(units: tuple[str, ...]) -> str:
    return _short(dict.fromkeys(units)) or "unknown"
