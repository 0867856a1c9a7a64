"""Read a data set episode by episode, leaving out those with damaged images: what conversion and edits share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flowchunk.datasets.episode_source import ACTION, EpisodeSource
from flowchunk.datasets.image_reader import ImageReader, report_dropped_episodes
from flowchunk.datasets.specs import ActionSpec, ObservationSpec
from flowchunk.datasets.tasks import EpisodeTask


@dataclass(frozen=True)
class Episode:
    """One episode of T time steps.

    index: in its data set. observations: {key: (T, …)}. actions: (T, D). task: what was demonstrated, a text for the episode
    or T texts; None if it is not stored.
    """

    index: int
    observations: Mapping[str, np.ndarray]
    actions: np.ndarray
    task: EpisodeTask = None


def read_episodes(
    store: EpisodeSource,
    observation_spec: ObservationSpec,
    action_spec: ActionSpec,
    *,
    episodes: Sequence[int] | None = None,
    skip_corrupt: bool = False,
    advance: Callable[[int], None] = lambda _: None,
    say: Callable[[str], None] = print,
) -> Iterator[Episode]:
    """The keys of the specifications, one episode at a time: images as uint8, values as they are stored.

    episodes: indices, in this order; all by default. skip_corrupt: leave out episodes with unreadable images, which ``say``
    is called with at the end. advance: called with the number of time steps after each episode.
    Raises DatasetError, at once, if data are missing or not of the shape in the specifications; and on the way, if they are
    damaged, not finite, or if no readable episode is left.
    """
    values = {key: field.shape for key, field in observation_spec.values.items()} | {ACTION: (action_spec.size,)}
    for key, shape in values.items():
        store.require_shape(key, shape)
    readers = {key: ImageReader.find(store, key, field) for key, field in observation_spec.images.items()}
    chosen = range(len(store.episode_ends)) if episodes is None else episodes
    return _read(store, tuple(values), readers, chosen, skip_corrupt, advance, say)


def _read(
    store: EpisodeSource,
    keys: Sequence[str],
    readers: Mapping[str, ImageReader],
    episodes: Sequence[int],
    skip_corrupt: bool,
    advance: Callable[[int], None],
    say: Callable[[str], None],
) -> Iterator[Episode]:
    damaged: dict[str, dict[int, str]] = {key: {} for key in readers}
    starts, stops = store.episode_starts.tolist(), store.episode_ends.tolist()
    for index in episodes:
        start, stop = starts[index], stops[index]
        observations = {key: _read_finite(store, key, start, stop) for key in keys}
        is_damaged = False
        for key, reader in readers.items():
            observations[key], lost = reader.read_undamaged(start, stop)
            if lost and not skip_corrupt:
                raise reader.damage_error(lost)
            damaged[key] |= lost
            is_damaged |= bool(lost)
        actions = observations.pop(ACTION)
        if not is_damaged:
            yield Episode(index, observations, actions, _task(store, start, stop))
        advance(stop - start)
    report_dropped_episodes(store, readers, damaged, say)


def _task(store: EpisodeSource, start: int, stop: int) -> EpisodeTask:
    indices = store.task_indices
    if indices is None:
        return None
    texts = [store.tasks[index] for index in indices[start:stop]]
    return texts[0] if len(set(texts)) == 1 else texts


def _read_finite(store: EpisodeSource, key: str, start: int, stop: int) -> np.ndarray:
    values = store.read(key, start, stop)
    store.require_finite(key, start, values)
    return values
