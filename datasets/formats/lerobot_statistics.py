"""Statistics as LeRobot stores them, of an episode and of a data set: exact, also for images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
LEVELS = 256  # of a pixel's channel

Statistics = dict[str, np.ndarray]


class StatisticsRecorder:
    """Statistics of the features that info.json describes, episode by episode and of all frames."""

    def __init__(self, features: Mapping[str, Mapping[str, Any]]) -> None:
        self._shapes = {name: tuple(feature["shape"]) for name, feature in features.items()}
        self._levels = {
            name: np.zeros((3, LEVELS), np.int64)
            for name, feature in features.items()
            if feature["dtype"] in ("image", "video")
        }
        self._num_frames = 0

    def add(self, columns: Mapping[str, np.ndarray]) -> dict[str, Statistics]:
        """The statistics of an episode's features, each (T, …), which are counted in ``total``."""
        self._num_frames += len(next(iter(columns.values())))
        return {name: self._add_feature(name, columns[name]) for name in self._shapes}

    def total(self, data_files: Sequence[Path]) -> dict[str, Statistics]:
        """The statistics of all frames. Values are read back, feature by feature: quantiles of episodes do not add up."""
        return {
            name: image_statistics(self._levels[name], self._num_frames)
            if name in self._levels
            else value_statistics(np.concatenate([_read_column(file, name, shape) for file in data_files]))
            for name, shape in self._shapes.items()
        }

    def _add_feature(self, name: str, values: np.ndarray) -> Statistics:
        if name not in self._levels:
            return value_statistics(values.reshape(-1, *self._shapes[name]))
        levels = count_levels(values)
        self._levels[name] += levels
        return image_statistics(levels, len(values))


def value_statistics(values: np.ndarray) -> Statistics:
    """min, max, mean, std and quantiles over the frames of values (T, …), each of shape (…), and the count, (1,)."""
    exact = np.int64 if values.dtype.kind == "i" else np.float64
    quantiles = np.quantile(values, list(QUANTILES.values()), axis=0).astype(np.float64)
    return {
        "min": values.min(axis=0).astype(exact),
        "max": values.max(axis=0).astype(exact),
        "mean": values.mean(axis=0, dtype=np.float64),
        "std": values.std(axis=0, dtype=np.float64),
        "count": np.array([len(values)]),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


def count_levels(images: np.ndarray) -> NDArray[np.int64]:
    """(3, 256): how often each channel of images (T, height, width, 3) uint8 has each level. Counts of episodes add up."""
    counts = np.zeros((3, LEVELS), np.int64)
    for image in images:  # one at a time, because counting needs eight times the memory of what it counts
        counts += [np.bincount(channel, minlength=LEVELS) for channel in image.reshape(-1, 3).T]
    return counts


def image_statistics(counts: NDArray[np.int64], num_images: int) -> Statistics:
    """Statistics of each channel in [0, 1], of shape (3, 1, 1), and the number of images, (1,), from ``count_levels``."""
    levels = np.arange(LEVELS) / (LEVELS - 1)
    total = counts.sum(axis=1, keepdims=True)
    mean = counts @ levels / total[:, 0]
    std = np.sqrt(((levels - mean[:, None]) ** 2 * counts).sum(axis=1) / total[:, 0])
    at_most = counts.cumsum(axis=1)  # how many pixels have this level or a lower one
    by_channel = {
        "min": levels[np.argmax(counts > 0, axis=1)],
        "max": levels[np.argmax(at_most == total, axis=1)],
        "mean": mean,
        "std": std,
        **{name: levels[np.argmax(at_most >= part * total, axis=1)] for name, part in QUANTILES.items()},
    }
    return {name: values.reshape(3, 1, 1) for name, values in by_channel.items()} | {"count": np.array([num_images])}


def _read_column(file: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    with pq.ParquetFile(file) as parquet:
        column = parquet.read(columns=[name]).column(name)
    numbers = column.combine_chunks()
    while pa.types.is_nested(numbers.type):
        numbers = numbers.flatten()
    return numbers.to_numpy().reshape(-1, *shape)
