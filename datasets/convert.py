"""Convert a foreign store: flowchunk's keys, specifications beside the data, images as uint8 in sharded chunks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from flowchunk.datasets.episode_source import ACTION, EpisodeSource
from flowchunk.datasets.formats.zarr_store import Store
from flowchunk.datasets.image_reader import ImageReader, report_dropped_episodes
from flowchunk.datasets.progress import progress_if_slow
from flowchunk.datasets.recorder import StoreWriter
from flowchunk.datasets.specs import ActionSpec, ObservationSpec


def convert(
    store: EpisodeSource,
    observation_spec: ObservationSpec,
    action_spec: ActionSpec,
    out: str | Path,
    *,
    jpeg: int | None = None,
    skip_corrupt: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Write the keys of the specifications to a new store at ``out``, episode by episode.

    jpeg: store images as JPEGs of this quality; lossless by default. skip_corrupt: leave out episodes with unreadable
    images. say: called with messages on these episodes and on the size of the result.
    Raises DatasetError if ``out`` exists, or if data are missing, damaged, not finite or not as the specifications describe
    them; ConfigurationError for a quality outside 1 to 100. In these cases, nothing is written.
    """
    values = {key: field.shape for key, field in observation_spec.values.items()} | {ACTION: (action_spec.size,)}
    for key, shape in values.items():
        store.require_shape(key, shape)
    sources = {key: ImageReader.find(store, key, field) for key, field in observation_spec.images.items()}
    damaged: dict[str, dict[int, str]] = {key: {} for key in sources}
    writer = StoreWriter(
        out, observation_spec=observation_spec, action_spec=action_spec, jpeg=jpeg, keep_unfinished=False, say=say
    )
    with writer, progress_if_slow(f"converting {store.path}", store.num_frames) as advance:
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
        report_dropped_episodes(store, sources, damaged, say)
    say(f"{_describe(Store.open(writer.path))} (from {_size_on_disk(store.path) / 1e6:.1f} MB)")


def _read_finite(store: EpisodeSource, key: str, start: int, stop: int) -> np.ndarray:
    values = store.read(key, start, stop)
    store.require_finite(key, start, values)
    return values


def _describe(store: EpisodeSource) -> str:
    size = _size_on_disk(store.path) / 1e6
    return f"{store.path}: {len(store.episode_ends)} episodes, {store.num_frames:,} frames, {size:.1f} MB"


def _size_on_disk(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
