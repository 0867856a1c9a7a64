"""What a run was trained on, in a few numbers and a hash, so that the data of two runs can be told apart."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowchunk.datasets.episode_source import EpisodeSource
from flowchunk.datasets.formats import open_dataset
from flowchunk.datasets.progress import progress_if_slow


@dataclass(frozen=True)
class DataSummary:
    """A data set in numbers. lengths: shortest, median and longest episode, in time steps. sha256: of ``hash_dataset``."""

    path: str
    format: str
    episodes: int
    frames: int
    lengths: tuple[int, float, int]
    sha256: str


def summarize_dataset(options: Mapping[str, Any]) -> DataSummary:
    """The data set that a run's options name. Raises DatasetError if it is not there, or damaged."""
    dataset = options["dataset"]
    source = open_dataset(dataset["path"], sources=dataset.get("sources"))
    lengths = source.episode_lengths
    spread = (int(lengths.min()), float(np.median(lengths)), int(lengths.max()))
    return DataSummary(str(source.path), source.format, len(lengths), source.num_frames, spread, hash_dataset(source))


def hash_dataset(source: EpisodeSource) -> str:
    """SHA-256 of all arrays' files, their names and the episodes' lengths; the same wherever the data set lies."""
    root = source.path.resolve()
    digest = hashlib.sha256(np.asarray(source.episode_lengths, dtype="<i8").tobytes())
    files = sorted({file.resolve() for name in source.arrays for file in source.files(name)[1]})
    with progress_if_slow("hashing the data", len(files)) as advance:
        for file in files:
            with file.open("rb") as content:
                part = hashlib.file_digest(content, "sha256").hexdigest()
            digest.update(f"{os.path.relpath(file, root)} {part}\n".encode())
            advance(1)
    return digest.hexdigest()
