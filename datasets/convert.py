"""Turn a store of others into one of ours: our keys, specifications beside the data, pictures as uint8 in sharded chunks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from flowchunk.datasets.frames import PictureSource, name_dropped_episodes
from flowchunk.datasets.progress import progress_if_slow
from flowchunk.datasets.recorder import StoreWriter
from flowchunk.datasets.specs import ActionSpec, ObservationSpec
from flowchunk.datasets.store import ACTION, Store


def convert(
    store: Store,
    observation_spec: ObservationSpec,
    action_spec: ActionSpec,
    out: str | Path,
    *,
    jpeg: int | None = None,
    skip_corrupt: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Write what the specifications name to a new store at ``out``, an episode at a time.

    jpeg: the quality of the JPEGs that pictures become; by default nothing is lost. skip_corrupt: leave out episodes with
    pictures that cannot be read. say: is told which those are, and how large the result is.
    Raises DatasetError where ``out`` exists, or data are missing, damaged, not finite or not what the specifications say;
    ConfigurationError for a quality that there is not. Then nothing is written.
    """
    values = {key: one.shape for key, one in observation_spec.values.items()} | {ACTION: (action_spec.size,)}
    for key, shape in values.items():
        store.require_shape(key, shape)
    sources = {key: PictureSource.find(store, key, one) for key, one in observation_spec.pictures.items()}
    damaged: dict[str, dict[int, str]] = {key: {} for key in sources}
    writer = StoreWriter(
        out, observation_spec=observation_spec, action_spec=action_spec, jpeg=jpeg, keep_unfinished=False, say=say
    )
    with writer, progress_if_slow(f"converting {store.path}", store.frames) as advance:
        for start, stop in zip(store.episode_starts.tolist(), store.episode_ends.tolist(), strict=True):
            episode = {key: _read_finite(store, key, start, stop) for key in values}
            for key, source in sources.items():
                episode[key], lost = source.read_undamaged(start, stop)
                if lost and not skip_corrupt:
                    raise source.damage_error(lost)
                damaged[key] |= lost
            actions = episode.pop(ACTION)
            if not any(frame in lost for lost in damaged.values() for frame in range(start, stop)):
                writer.add_episode(episode, actions)
            advance(stop - start)
        name_dropped_episodes(store, sources, damaged, say)
    say(f"{_describe(Store.open(writer.path))} (from {_size_on_disk(store.path) / 1e6:.1f} MB)")


def _read_finite(store: Store, key: str, start: int, stop: int) -> np.ndarray:
    values = store.read(key, start, stop)
    store.require_finite(key, start, values)
    return values


def _describe(store: Store) -> str:
    size = _size_on_disk(store.path) / 1e6
    return f"{store.path}: {len(store.episode_ends)} episodes, {store.frames:,} frames, {size:.1f} MB"


def _size_on_disk(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
