"""One door to demonstrations: episodes in any format, with what their numbers mean.

A format (``datasets/formats/``) says which arrays it holds and reads rows of them. Everything else, from keys and columns to
windows and conversion, is the same for all formats. Rows are numbered over all episodes: episode i consists of the rows
``episode_ends[i - 1] … episode_ends[i] - 1``, one per time step.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Self

import numpy as np

from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.image_scaling import scale_images
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec

ACTION = "action"
TASK = "task"
Part = tuple[str, slice | None]  # an array, and the slice of its columns; None for all


@dataclass(frozen=True)
class ArrayInfo:
    """An array of a data set. shape: of one time step; dtype: as it is read; is_image: whether it holds RGB images.

    problem: why it cannot be read although the data set announces it, and what can be done; None if it can be.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    is_image: bool = False
    problem: str | None = None


@dataclass(frozen=True)
class Description:
    """What a data set says about its numbers.

    observations: by key, only those that a policy may observe. actions: one per dimension; None without an array of actions.
    control_hz: None if unknown. arrays: {key: array} for keys that differ from their array's name. origins: for keys,
    ``action`` and ``control_hz``: where their description comes from. notes: contradictions, and what is ignored.
    """

    observations: Mapping[str, ObservationField]
    actions: tuple[ActionDimension, ...] | None = None
    control_hz: float | None = None
    arrays: Mapping[str, str] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class DamageError(DatasetError):
    """Rows that cannot be read. problem: what is wrong with them, in words."""

    def __init__(self, message: str, problem: str) -> None:
        super().__init__(message)
        self.problem = problem


@dataclass(frozen=True, kw_only=True)
class EpisodeSource(ABC):
    """A data set on disk; open one with ``open_dataset(path)``.

    sources: for each key what it reads: an array, a slice of its columns (``state[:2]``), or several of them joined
    (``position + gripper[:1]``); by default every array is available under its name. image_size: the (height, width) that
    images are scaled to; as recorded by default.
    """

    path: Path
    sources: Mapping[str, str] = field(default_factory=dict)
    image_size: tuple[int, int] | None = None

    # -- what a format provides ---------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def open(
        cls,
        path: Path,
        *,
        sources: Mapping[str, str] | None = None,
        image_size: tuple[int, int] | None = None,
    ) -> Self:
        """Open a data set for reading. Raises DatasetError if it is damaged, or contradicts itself."""

    @property
    @abstractmethod
    def format(self) -> str:
        """The name of the format, as users know it."""

    @property
    @abstractmethod
    def episode_lengths(self) -> np.ndarray:
        """(E,) int64: the number of time steps of each episode."""

    @property
    @abstractmethod
    def arrays(self) -> Mapping[str, ArrayInfo]:
        """The arrays by name."""

    @property
    @abstractmethod
    def description(self) -> Description:
        """What the format says about its numbers."""

    @abstractmethod
    def read_array(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start … stop - 1 of an array, (stop - start, …); images RGB. Raises DamageError if they are damaged."""

    @abstractmethod
    def files(self, name: str) -> tuple[Path, list[Path]]:
        """A folder, and the files in it that determine an array's content."""

    def chunk_rows(self, name: str) -> int:
        """The number of rows that are stored together: damage is limited to them."""
        return 1

    @property
    def tasks(self) -> tuple[str, ...]:
        """The texts of the tasks that were demonstrated; empty if they are not stored."""
        return ()

    @property
    def task_indices(self) -> np.ndarray | None:
        """(N,) int64: for each row the index of its task in ``tasks``; None without tasks."""
        return None

    @property
    def validation_episodes(self) -> np.ndarray | None:
        """Indices of the episodes that the data set itself sets aside for validation; None if it does not."""
        return None

    # -- the same for all ---------------------------------------------------------------------------------------------

    @property
    def observation_spec(self) -> ObservationSpec | None:
        """The stored specification; None in data sets that were not written by flowchunk."""
        return None

    @property
    def action_spec(self) -> ActionSpec | None:
        """The stored specification; None in data sets that were not written by flowchunk."""
        return None

    @cached_property
    def episode_ends(self) -> np.ndarray:
        """(E,) int64: the row after the last one of each episode."""
        return np.cumsum(self.episode_lengths)

    @property
    def episode_starts(self) -> np.ndarray:
        """(E,) the first row of each episode."""
        return np.concatenate([[0], self.episode_ends[:-1]])

    @property
    def num_frames(self) -> int:
        """N, the number of time steps in all episodes."""
        return int(self.episode_ends[-1])

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that ``read`` accepts: the described ones, the arrays and those in ``sources``."""
        described = {*self.description.observations, *self.description.arrays}
        return tuple(sorted({*self.arrays, *self.sources, *described, *([TASK] if self.tasks else [])}))

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of ``key`` at one time step. Raises DatasetError if it is missing."""
        if self._is_task(key):
            return (len(self.tasks),)
        parts = self.find(key)
        if len(parts) > 1:
            return (sum(prod(self._shape(part)) for part in parts),)
        return () if self._is_scalar(key) else self._shape(parts[0])

    def is_image(self, key: str) -> bool:
        """Whether ``key`` holds images."""
        return not self._is_task(key) and any(self.arrays[name].is_image for name, _ in self.find(key))

    def require_shape(self, key: str, shape: tuple[int, ...]) -> None:
        """Raise DatasetError unless ``key`` has this shape at each time step."""
        if (got := self.shape(key)) != shape:
            raise DatasetError(
                f"{self.label(key)} in {self.path} has frames of shape {got}, but the task expects {shape}; use the task "
                "that the data was recorded with"
            )

    def read(self, key: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start … stop - 1 of ``key``, (stop - start, …), all by default. Raises DatasetError if they are damaged.

        Images are as they are stored, usually uint8, but for their size; ``ImageReader`` also converts floats.
        The key ``task`` of a data set with several tasks is one-hot, (stop - start, number of tasks).
        """
        stop = self.num_frames if stop is None else min(stop, self.num_frames)
        start = min(start, stop)
        if self._is_task(key):
            indices = self.task_indices
            assert indices is not None
            return np.eye(len(self.tasks), dtype=np.float32)[indices[start:stop]]
        found = self.find(key)
        parts = [self._read_part(part, start, stop) for part in found]
        if len(parts) == 1:
            return parts[0].reshape(-1) if self._is_scalar(key) else parts[0]
        return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)

    def blocks(self, key: str, *, frames: int = 8192) -> Iterator[np.ndarray]:
        """All rows of ``key`` in order, in blocks. Raises DatasetError for a value that is not finite."""
        for start in range(0, self.num_frames, frames):
            values = self.read(key, start, min(start + frames, self.num_frames))
            self.require_finite(key, start, values)
            yield values

    def require_finite(self, key: str, start: int, values: np.ndarray) -> None:
        """Raise DatasetError with the first row that is not finite; ``values`` (n, …) begin at row ``start``."""
        finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        if finite.all():
            return
        row = start + int(np.argmin(finite))
        episode, number = self.place_of(row)
        raise DatasetError(
            f"{self.label(key)} in {self.path} holds NaN or infinity, first in episode {episode}, frame {number} "
            f"(row {row}); repair or drop that episode"
        )

    def find(self, key: str) -> tuple[Part, ...]:
        """The arrays that ``key`` reads, with the slices of their columns. Raises DatasetError if one is missing."""
        text = self.sources.get(key) or self.description.arrays.get(key) or key
        return tuple(self._find_part(key, part.strip()) for part in text.split("+"))

    def place_of(self, row: int) -> tuple[int, int]:
        """The episode of a row, and the row's index in that episode."""
        episode = int(np.searchsorted(self.episode_ends, row, side="right"))
        return episode, row - int(self.episode_starts[episode])

    def parts_of(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Rows start … stop - 1 by episode: the episode, and its first row and the one after its last among them."""
        row = start
        while row < stop:
            episode, _ = self.place_of(row)
            last = min(stop, int(self.episode_ends[episode]))
            yield episode, row, last
            row = last

    def label(self, name: str) -> str:
        """The name of an array or a key in messages."""
        return name

    def damage_error(self, name: str, problem: str) -> DamageError:
        """The error for rows of an array that cannot be read."""
        return DamageError(
            f"{self.label(name)} in {self.path} cannot be read: it is damaged ({problem}); copy the data set again",
            problem,
        )

    def _is_task(self, key: str) -> bool:
        has_own = TASK in self.arrays or TASK in self.sources or TASK in self.description.observations
        return key == TASK and bool(self.tasks) and not has_own

    def _is_scalar(self, key: str) -> bool:
        """Whether a stored specification says that there is one number without a dimension of its own."""
        described = self.description.observations.get(key)
        return described is not None and described.shape == () and key not in self.sources

    def _read_part(self, part: Part, start: int, stop: int) -> np.ndarray:
        name, columns = part
        values = self.read_array(name, start, stop)
        values = values if columns is None else values[:, columns]
        if self.image_size is None or not self.arrays[name].is_image:
            return values
        if values.dtype != np.uint8:
            raise DatasetError(
                f"{self.label(name)} in {self.path} holds images as {values.dtype}, which are not scaled when they are read "
                "directly; read them by ImageReader"
            )
        return scale_images(values, self.image_size)

    def _shape(self, part: Part) -> tuple[int, ...]:
        name, columns = part
        info = self.arrays[name]
        if info.is_image and self.image_size is not None:
            return (*self.image_size, 3)
        if columns is None:
            return info.shape
        if not len(range(info.shape[0])[columns]) or (columns.stop or 0) > info.shape[0]:
            raise DatasetError(
                f"{name}[{columns.start or ''}:{columns.stop or ''}] is outside of {self.label(name)} in {self.path}, which "
                f"has {info.shape[0]} columns"
            )
        return (len(range(info.shape[0])[columns]), *info.shape[1:])

    def _find_part(self, key: str, text: str) -> Part:
        name, bracket, columns = text.partition("[")
        if name not in self.arrays and name in self.description.arrays:
            name = self.description.arrays[name]
        if name not in self.arrays:
            raise self.missing_error(key, name)
        if problem := self.arrays[name].problem:
            raise DatasetError(f"{name} in {self.path}: {problem}")
        return name, self._columns(key, columns) if bracket else None

    def require_tasks(self, indices: np.ndarray, tasks: int) -> np.ndarray:
        """The indices of tasks. Raises DatasetError if one is not that of a task."""
        if len(indices) and not (indices.min() >= 0 and indices.max() < tasks):
            raise DatasetError(
                f"{self.path} has task indices from {indices.min()} to {indices.max()}, but the texts of {tasks} tasks; "
                "correct them, or copy the data set again"
            )
        return indices

    def missing_error(self, key: str, name: str) -> DatasetError:
        """The error for an array that is not there."""
        return DatasetError(
            f"{self.path} has no array {self.label(name)} (wanted for {key!r}); it has {sorted(self.arrays)}"
        )

    def _columns(self, key: str, text: str) -> slice:
        if match := re.fullmatch(r"(\d*):(\d*)\]", text):
            start, stop = (int(number) if number else None for number in match.groups())
            return slice(start, stop)
        raise DatasetError(
            f"dataset.sources.{key}={self.sources.get(key)!r}: expected NAME or NAME[START:STOP], or several of them "
            "joined by +"
        )
