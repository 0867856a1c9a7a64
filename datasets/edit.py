"""Edit a data set of any format: merge, choose, split, trim and rename, always into a new store of flowchunk's own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from flowchunk.datasets.derived_specs import DerivedSpecs, parse_references
from flowchunk.datasets.episode_selection import select_episodes, split_selected
from flowchunk.datasets.episode_source import ACTION, EpisodeSource
from flowchunk.datasets.episodes import Episode, read_episodes
from flowchunk.datasets.errors import ConfigurationError, DatasetError
from flowchunk.datasets.formats.zarr_store import Store
from flowchunk.datasets.idle_frames import active_frames, delta_dimensions
from flowchunk.datasets.progress import progress_if_slow
from flowchunk.datasets.recorder import StoreWriter
from flowchunk.datasets.reference_change import ReferenceChange
from flowchunk.datasets.rotation_change import RotationChange
from flowchunk.datasets.specs import ActionSpec, ObservationSpec, require_observations, require_same_actions

SUFFIX = ".zarr"
Step = Callable[[Episode], Episode]
Located = tuple[EpisodeSource, int]  # an episode: its data set, and its index in it
Say = Callable[[str], None]


@dataclass(frozen=True)
class EditOptions:
    """What is changed, in this order.

    delete: episodes to leave out, by number, from 0, or as a range such as 3:7 (3 to 6); merged data sets are numbered on.
    keep: the only episodes to keep, in place of delete. split: {NAME: share}, a store for each part; shares are fractions
    such as 0.9, or numbers of episodes, which are chosen at random. seed: of the split. trim_idle: leave out time steps at
    the start and the end of episodes in which no action changes by more than this fraction of its range; one is left at each
    end. reference: absolute, delta or relative actions, one for all or one per dimension. relative_to: for each action
    dimension the observed value, as KEY.NAME, that relative actions and the first delta refer to, or null; by default the one
    of the same name. rotation: the representation of rotations, such as rotation_6d. rename: {old: new} keys of observations.
    """

    delete: Sequence[Any] = ()
    keep: Sequence[Any] | None = None
    split: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    trim_idle: float | None = None
    reference: Any = None
    relative_to: Sequence[str | None] | None = None
    rotation: str | None = None
    rename: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Plan:
    """What is made of each episode, and the specifications of the result."""

    steps: tuple[Step, ...]
    observation_spec: ObservationSpec
    action_spec: ActionSpec


def edit(
    sources: Sequence[EpisodeSource],
    specs: Sequence[DerivedSpecs],
    options: EditOptions,
    out: str | Path,
    *,
    jpeg: int | None = None,
    skip_corrupt: bool = False,
    say: Say = print,
) -> list[Path]:
    """Write the episodes of ``sources``, one after the other, to a new store, or to one for each part of a split.

    specs: of each source. out: the path of the store; ``OUT.zarr`` is split into ``OUT_NAME.zarr``. jpeg, skip_corrupt: as in
    ``convert``. say: called with messages on episodes that are left out, and on the result. Returns the paths of the stores.
    Raises SpecMismatchError if the sources differ in their specifications; ConfigurationError for options that do not fit
    them; DatasetError if an output exists, or if data are missing, damaged or not finite. In these cases, nothing is written.
    """
    _require_equal_specs(sources, specs)
    episodes = [(source, index) for source in sources for index in range(len(source.episode_lengths))]
    chosen = select_episodes(len(episodes), delete=options.delete, keep=options.keep)
    parts = split_selected(chosen, options.split, options.seed) if options.split else {None: chosen}
    located = {_path(out, name): [episodes[index] for index in indices] for name, indices in parts.items()}
    used = [episode for part in located.values() for episode in part]
    plan = _plan(specs[0], used, options)
    new_store = partial(StoreWriter, observation_spec=plan.observation_spec, action_spec=plan.action_spec)
    writers = [new_store(path, jpeg=jpeg, keep_unfinished=False, say=say) for path in located]
    frames = sum(int(source.episode_lengths[index]) for source, index in used)
    with _all_or_none() as written, progress_if_slow(f"editing {sources[0].path}", frames) as advance:
        for writer, part in zip(writers, located.values(), strict=True):
            with writer:
                for episode in _read(part, specs[0], skip_corrupt=skip_corrupt, advance=advance, say=say):
                    changed = reduce(lambda changed, step: step(changed), plan.steps, episode)
                    writer.add_episode(changed.observations, changed.actions, task=changed.task)
            written.append(writer.path)
    _summarize(sources, list(located), say)
    return list(located)


def _require_equal_specs(sources: Sequence[EpisodeSource], specs: Sequence[DerivedSpecs]) -> None:
    """Raise SpecMismatchError with the first difference between the first source and another one."""
    first, first_path = specs[0], str(sources[0].path)
    for source, other in zip(sources[1:], specs[1:], strict=True):
        path = str(source.path)
        one, two = first.observation_spec, other.observation_spec
        require_observations(one, two, expected_by=first_path, got_from=path)
        require_observations(two, one, expected_by=path, got_from=first_path)
        require_same_actions(first.action_spec, other.action_spec, expected_by=first_path, got_from=path)


def _path(out: str | Path, name: str | None) -> Path:
    """The path of a part: ``mine_train.zarr`` for the part ``train`` of ``mine.zarr``."""
    path = Path(out).expanduser()
    suffix = SUFFIX if path.suffix == SUFFIX else ""
    return path if name is None else path.with_name(f"{path.name.removesuffix(suffix)}_{name}{suffix}")


def _plan(specs: DerivedSpecs, episodes: Sequence[Located], options: EditOptions) -> _Plan:
    steps: list[Step] = []
    observation_spec, action_spec = specs.observation_spec, specs.action_spec
    if options.trim_idle is not None:
        steps.append(_trim_step(action_spec, episodes, options.trim_idle))
    if references := parse_references(options.reference, action_spec.size, option="reference"):
        change = ReferenceChange.find(observation_spec, action_spec, references, options.relative_to)
        action_spec = change.change_spec(action_spec)
        steps.append(partial(_change_references, change=change))
    elif options.relative_to is not None:
        raise ConfigurationError("relative_to is for reference=delta, relative or absolute; give that, too")
    if options.rotation is not None:
        rotations = RotationChange.find(action_spec, options.rotation)
        action_spec = rotations.change_spec(action_spec)
        steps.append(partial(_change_rotations, change=rotations))
    if options.rename:
        observation_spec = _renamed(observation_spec, options.rename)
        steps.append(partial(_rename, names=options.rename))
    return _Plan(tuple(steps), observation_spec, action_spec)


def _trim_step(action_spec: ActionSpec, episodes: Sequence[Located], fraction: float) -> Step:
    if not fraction >= 0:
        raise ConfigurationError(f"trim_idle={fraction} must be a fraction of the actions' range, at least 0")
    is_delta = delta_dimensions(action_spec)
    low, high = np.full(action_spec.size, np.inf), np.full(action_spec.size, -np.inf)
    for source, index in episodes:
        actions = source.read(ACTION, int(source.episode_starts[index]), int(source.episode_ends[index]))
        low, high = np.minimum(low, actions.min(axis=0)), np.maximum(high, actions.max(axis=0))
    return partial(_trim, tolerances=fraction * (high - low), is_delta=is_delta)


def _trim(episode: Episode, *, tolerances: np.ndarray, is_delta: np.ndarray) -> Episode:
    kept = active_frames(episode.actions, tolerances, is_delta)
    observations = {key: values[kept] for key, values in episode.observations.items()}
    task = episode.task if episode.task is None or isinstance(episode.task, str) else episode.task[kept]
    return replace(episode, observations=observations, actions=episode.actions[kept], task=task)


def _change_references(episode: Episode, *, change: ReferenceChange) -> Episode:
    return replace(episode, actions=change.change(episode.actions, episode.observations))


def _change_rotations(episode: Episode, *, change: RotationChange) -> Episode:
    try:
        return replace(episode, actions=change.change(episode.actions))
    except ConfigurationError as error:
        raise DatasetError(f"the actions of episode {episode.index} cannot be converted: {error}") from error


def _rename(episode: Episode, *, names: Mapping[str, str]) -> Episode:
    return replace(episode, observations={names.get(key, key): values for key, values in episode.observations.items()})


def _renamed(observation_spec: ObservationSpec, names: Mapping[str, str]) -> ObservationSpec:
    """The specification with other keys. Raises ConfigurationError for unknown keys, and for new ones that cannot be."""
    for old, new in names.items():
        if old not in observation_spec.fields:
            known = ", ".join(observation_spec.fields)
            raise ConfigurationError(f"rename: there is no observation {old!r} to rename; there are {known}")
        if not isinstance(new, str) or not new or "/" in new or new == ACTION:
            raise ConfigurationError(f"rename.{old}={new} cannot be the name of an observation; choose another one")
    fields = {names.get(key, key): one for key, one in observation_spec.fields.items()}
    if len(fields) < len(observation_spec.fields):
        taken = next(new for old, new in names.items() if [*names.values(), *observation_spec.fields].count(new) > 1)
        raise ConfigurationError(f"rename: two observations would be called {taken!r}; choose another name")
    return ObservationSpec(fields)


def _read(episodes: Sequence[Located], specs: DerivedSpecs, **options: Any) -> Iterator[Episode]:
    """The episodes of several data sets, each of which is opened for reading once."""
    for _, group in groupby(episodes, key=lambda located: id(located[0])):
        part = list(group)
        indices = [index for _, index in part]
        yield from read_episodes(part[0][0], specs.observation_spec, specs.action_spec, episodes=indices, **options)


@contextmanager
def _all_or_none() -> Iterator[list[Path]]:
    """Yield a list for the stores that are finished; they are removed again if an exception ends the block."""
    written: list[Path] = []
    try:
        yield written
    except BaseException:
        for path in written:
            shutil.rmtree(path)
        raise


def _summarize(sources: Sequence[EpisodeSource], paths: Sequence[Path], say: Say) -> None:
    stores = [Store.open(path) for path in paths]
    if len(stores) > 1:
        for store in stores:
            say(f"{store.path}: {len(store.episode_ends):,} episodes, {store.num_frames:,} frames")
    kept, total = (
        (sum(len(one.episode_ends) for one in group), sum(one.num_frames for one in group))
        for group in (stores, sources)
    )
    say(
        f"kept {kept[0]:,} of {total[0]:,} episodes, {kept[1]:,} of {total[1]:,} frames → "
        f"{', '.join(str(path) for path in paths)}"
    )
