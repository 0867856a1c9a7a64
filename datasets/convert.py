"""Convert a data set of any format that is read into any that is written, episode by episode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from flowchunk.datasets.episode_source import EpisodeSource
from flowchunk.datasets.episodes import read_episodes
from flowchunk.datasets.formats import open_dataset
from flowchunk.datasets.formats.writing import VALIDATION, describe_losses, make_writer
from flowchunk.datasets.progress import progress_if_slow
from flowchunk.datasets.specs import ActionSpec, ObservationSpec


def convert(
    store: EpisodeSource,
    observation_spec: ObservationSpec,
    action_spec: ActionSpec,
    out: str | Path,
    *,
    to: str = "flowchunk",
    jpeg: int | None = None,
    codec: str | None = None,
    skip_corrupt: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Write the keys of the specifications to a new data set at ``out``; memory holds an episode at a time.

    to: the format, one of ``TARGETS``. jpeg: store flowchunk's images as JPEGs of this quality; lossless by default. codec:
    of LeRobot's images, h264, av1 or png. skip_corrupt: leave out episodes with unreadable images. say: called with messages
    on these episodes, on what the format cannot hold, and on the size of the result.
    Raises DatasetError if ``out`` exists, if the format cannot hold the specifications, or if data are missing, damaged, not
    finite or not as the specifications describe them; ConfigurationError for options that cannot be used. In these cases,
    nothing is written.
    """
    masks = _masks(store) if to == "robomimic" and not skip_corrupt else None
    writer = make_writer(to, out, observation_spec, action_spec, jpeg=jpeg, codec=codec, masks=masks, say=say)
    with progress_if_slow(f"converting {store.path}", store.num_frames) as advance:
        episodes = read_episodes(
            store, observation_spec, action_spec, skip_corrupt=skip_corrupt, advance=advance, say=say
        )
        with writer:
            for episode in episodes:
                writer.add_episode(episode.observations, episode.actions, task=episode.task)
    if to == "robomimic" and masks is None and store.validation_episodes is not None:
        say("the split of the episodes is not stored, because episodes with damaged images are left out")
    for sentence in describe_losses(store, observation_spec, to, jpeg=jpeg, codec=codec):
        say(sentence)
    say(f"{_describe(open_dataset(writer.path))} (from {_size_on_disk(store) / 1e6:.1f} MB)")


def _masks(store: EpisodeSource) -> dict[str, list[int]] | None:
    """The episodes for training and validation by robomimic's names; None if the data set is not split."""
    validation = store.validation_episodes
    if validation is None:
        return None
    training = np.setdiff1d(np.arange(len(store.episode_lengths)), validation)
    return {"train": training.tolist(), VALIDATION: validation.tolist()}


def _describe(store: EpisodeSource) -> str:
    size = _size_on_disk(store) / 1e6
    return f"{store.path}: {len(store.episode_ends)} episodes, {store.num_frames:,} frames, {size:.1f} MB"


def _size_on_disk(store: EpisodeSource) -> int:
    files = [file for file in store.path.rglob("*") if file.is_file()] if store.path.is_dir() else []
    files = files or list({file for name in store.arrays for file in store.files(name)[1]})
    return sum(file.stat().st_size for file in files)
