"""A replay store: episodes of demonstrations, concatenated in zarr arrays and read lazily.

The layout is diffusion_policy's: ``data/KEY`` (N, …) with one row per frame, and ``meta/episode_ends`` (E,). Zarr formats 2
and 3 are supported. Flowchunk's stores add the observation and action specifications to the root's attributes; stores
without them are called foreign.
"""

from __future__ import annotations

import glob
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.errors import ZarrUserWarning

import flowchunk.datasets.jpeg_codec  # noqa: F401 -- registers the codec, also without an installation
from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.partial_output import PARTIAL
from flowchunk.datasets.specs import ActionSpec, ObservationSpec
from flowchunk.datasets.zarr_integrity import count_files, find_damage, missing_files

ATTRIBUTE = "flowchunk"
ACTION = "action"
TASK_INDEX = "meta/task_index"


@dataclass(frozen=True)
class Store:
    """A data set on disk; open it with ``Store.open(path)``.

    sources: for each key, the array it reads or a slice of its columns, ``"state[:2]"``; by default, every array is
    available under its name.
    """

    path: Path
    root: zarr.Group
    sources: Mapping[str, str] = field(default_factory=dict)
    _checked: set[str] = field(default_factory=set, repr=False, compare=False)

    @classmethod
    def open(cls, path: str | Path, *, sources: Mapping[str, str] | None = None) -> Store:
        """Open a store for reading. Raises DatasetError if the path is not a store or its episodes are inconsistent.

        sources: for foreign stores, the array that each key reads; ignored for flowchunk's stores, which use its keys.
        """
        path = Path(path).expanduser()
        if not path.exists():
            found = "; ".join(describe_unfinished(path)) or "the path does not exist; check dataset.path"
            raise DatasetError(f"no data set at {path}: {found}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ZarrUserWarning)
                root = zarr.open(path, mode="r")
        except Exception as error:
            raise DatasetError(f"{path} is not a data set: zarr cannot open it ({error}); {_EXPECTED}") from error
        if (
            not isinstance(root, zarr.Group)
            or "meta/episode_ends" not in root
            or not isinstance(root.get("data"), zarr.Group)
        ):
            raise DatasetError(f"{path} is not a data set: {_EXPECTED}")
        store = cls(path, root, sources={} if ATTRIBUTE in root.attrs else dict(sources or {}))
        store._check_episodes()
        return store

    @cached_property
    def episode_ends(self) -> np.ndarray:
        """(E,) int64: episode i consists of the frames ``episode_ends[i - 1] … episode_ends[i] - 1``."""
        ends = _read(self.path, "meta/episode_ends", self.root["meta/episode_ends"], slice(None)).astype(np.int64)
        return ends if self.is_finished else ends[ends > 0]  # the last is 0 if a kill interrupted its writing

    @property
    def episode_starts(self) -> np.ndarray:
        """(E,) the first frame of each episode."""
        return np.concatenate([[0], self.episode_ends[:-1]])

    @property
    def episode_lengths(self) -> np.ndarray:
        """(E,) the number of frames of each episode."""
        return np.diff(self.episode_ends, prepend=0)

    @property
    def num_frames(self) -> int:
        """N, the number of frames in all episodes."""
        return int(self.episode_ends[-1])

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that ``read`` accepts: the names of the arrays and those in ``sources``."""
        return tuple(sorted({*self.arrays, *self.sources}))

    @cached_property
    def arrays(self) -> dict[str, zarr.Array[Any]]:
        """The arrays under ``data``, by name."""
        group = self.root["data"]
        assert isinstance(group, zarr.Group)
        try:
            return dict(group.arrays())
        except Exception as error:  # zarr raises exceptions of many types
            raise DatasetError(
                f"{self.path} is not a data set: the description of an array is damaged ({error}); copy it again"
            ) from error

    @property
    def observation_spec(self) -> ObservationSpec | None:
        """The stored specification; None in foreign stores."""
        attributes = self._attributes
        return ObservationSpec.from_json(attributes["observation_spec"]) if attributes else None

    @property
    def action_spec(self) -> ActionSpec | None:
        """The stored specification; None in foreign stores."""
        attributes = self._attributes
        return ActionSpec.from_json(attributes["action_spec"]) if attributes else None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The distinct tasks of the frames, as texts; frames without a task have the empty text. Empty if none has one."""
        return tuple((self._attributes or {}).get("tasks", ()))

    @cached_property
    def task_indices(self) -> np.ndarray | None:
        """(N,) int64, the index in ``tasks`` of each frame's task; None if no episode has a task.

        Raises DatasetError if they are damaged.
        """
        if not self.tasks:
            return None
        if TASK_INDEX not in self.root:
            raise DatasetError(f"{self.path} names tasks, but has no {TASK_INDEX}; copy the data set again")
        indices = _read(self.path, TASK_INDEX, self.root[TASK_INDEX], slice(self.num_frames)).astype(np.int64)
        if indices.shape != (self.num_frames,) or not np.isin(indices, range(len(self.tasks))).all():
            raise DatasetError(
                f"{TASK_INDEX} in {self.path} must hold {self.num_frames} numbers from 0 to {len(self.tasks) - 1}, the "
                "indices of the tasks; copy the data set again"
            )
        return indices

    @property
    def is_finished(self) -> bool:
        """Whether the recording ended normally; if not, its arrays may hold a part of one more episode."""
        return self._attributes is None or bool(self._attributes.get("finished", True))

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of one frame of ``key``."""
        array, columns = self.find(key)
        if columns is None:
            return tuple(array.shape[1:])
        return (len(range(array.shape[1])[columns]), *array.shape[2:])

    def require_shape(self, key: str, shape: tuple[int, ...]) -> None:
        """Raise DatasetError unless frames of ``key`` have this shape."""
        if (got := self.shape(key)) != shape:
            raise DatasetError(
                f"data/{key} in {self.path} has frames of shape {got}, but the task expects {shape}; use the task that the "
                "data was recorded with"
            )

    def read(self, key: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Frames start … stop - 1 of ``key``, (stop - start, …), all by default. Raises DatasetError if they are damaged."""
        array, columns = self.find(key)
        self._require_all_files(array)
        stop = self.num_frames if stop is None else stop
        if problem := self.damage(array, start, stop):
            raise DatasetError(f"{key} in {self.path} {_DAMAGED.format(problem)}")
        values = _read(self.path, key, array, slice(start, stop))
        return values if columns is None else values[:, columns]

    def damage(self, array: zarr.Array[Any], start: int, stop: int) -> str | None:
        """What is wrong with the files of frames start … stop - 1 of an array, of what zarr does not detect; else None."""
        return find_damage(array, self._folder(array), start, stop, may_have_holes=not self._was_written_whole(array))

    def blocks(self, key: str, *, frames: int = 8192) -> Iterator[np.ndarray]:
        """All frames of ``key`` in order, in blocks. Raises DatasetError for a value that is not finite."""
        for start in range(0, self.num_frames, frames):
            values = self.read(key, start, min(start + frames, self.num_frames))
            self.require_finite(key, start, values)
            yield values

    def require_finite(self, key: str, start: int, values: np.ndarray) -> None:
        """Raise DatasetError with the first frame that is not finite; ``values`` (n, …) begin at frame ``start``."""
        finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        if finite.all():
            return
        frame = start + int(np.argmin(finite))
        episode, number = self.place_of(frame)
        raise DatasetError(
            f"data/{key} in {self.path} holds NaN or infinity, first in episode {episode}, frame {number} (row {frame}); "
            "repair or drop that episode"
        )

    def find(self, key: str) -> tuple[zarr.Array[Any], slice | None]:
        """The array that ``key`` reads, and the slice of its columns (None for all). Raises DatasetError if it is missing."""
        name, bracket, columns = self.sources.get(key, key).partition("[")
        if name not in self.arrays:
            raise DatasetError(
                f"{self.path} has no array data/{name} (wanted for {key!r}); it has {sorted(self.arrays)}"
            )
        array = self.arrays[name]
        if array.shape[0] < self.num_frames:
            raise DatasetError(
                f"data/{name} in {self.path} is truncated: it has {array.shape[0]} frames, but meta/episode_ends counts "
                f"{self.num_frames}; restore the array or shorten meta/episode_ends"
            )
        return array, self._columns(key, columns) if bracket else None

    def place_of(self, frame: int) -> tuple[int, int]:
        """The episode of a frame, and the frame's index in that episode."""
        episode = int(np.searchsorted(self.episode_ends, frame, side="right"))
        return episode, frame - int(self.episode_starts[episode])

    def _require_all_files(self, array: zarr.Array[Any]) -> None:
        if array.basename in self._checked or not self._was_written_whole(array):
            return
        if missing := missing_files(array, self._folder(array), self.num_frames):
            raise DatasetError(
                f"data/{array.basename} in {self.path} is incomplete: {len(missing)} of {count_files(array)} chunk files "
                "are missing; copy the data set again"
            )
        self._checked.add(array.basename)

    def _was_written_whole(self, array: zarr.Array[Any]) -> bool:
        """Whether a missing chunk is damage; in foreign stores of format 3, it may stand for zeros."""
        return array.metadata.zarr_format == 2 or self._attributes is not None

    def _folder(self, array: zarr.Array[Any]) -> Path:
        return self.path / "data" / array.basename

    def _columns(self, key: str, text: str) -> slice:
        if match := re.fullmatch(r"(\d*):(\d*)\]", text):
            start, stop = (int(number) if number else None for number in match.groups())
            return slice(start, stop)
        raise DatasetError(f"dataset.sources.{key}={self.sources[key]!r}: expected NAME or NAME[START:STOP]")

    @cached_property
    def _attributes(self) -> Mapping[str, Any] | None:
        attributes = self.root.attrs.get(ATTRIBUTE)
        return attributes if isinstance(attributes, Mapping) else None

    def _check_episodes(self) -> None:
        ends = self.episode_ends
        if ends.ndim != 1 or len(ends) == 0:
            raise DatasetError(
                f"meta/episode_ends in {self.path} must be a non-empty vector, but has shape {ends.shape}"
            )
        if (steps := np.diff(ends, prepend=0)).min() <= 0:
            worst = int(np.argmin(steps))
            raise DatasetError(
                f"meta/episode_ends in {self.path} must increase from above 0, but entry {worst} is {ends[worst]} after "
                f"{ends[worst - 1] if worst else 0}; rebuild it from the episodes' lengths"
            )
        rows = self.arrays[ACTION].shape[0] if ACTION in self.arrays else self.num_frames
        if rows < self.num_frames or (rows > self.num_frames and self.is_finished):
            raise DatasetError(
                f"{self.path} is inconsistent: meta/episode_ends counts {self.num_frames} frames, but data/action has "
                f"{rows}; one of the two is truncated"
            )


def describe_unfinished(path: Path) -> list[str]:
    """One sentence for each recording for this path that was interrupted, or that is still running."""
    sentences = []
    for folder in sorted(path.parent.glob(f"{glob.escape(path.name)}.*{PARTIAL}")):
        with suppress(DatasetError):  # interrupted before the first episode was finished
            episodes = len(Store.open(folder).episode_ends)
            sentences.append(
                f"{folder} holds {episodes} finished episodes of a recording for {path.name} that was interrupted or is "
                "still running; it opens as a data set, and may be renamed once nothing writes to it"
            )
    return sentences


_EXPECTED = "expected a zarr folder with data/action, other arrays beside it, and meta/episode_ends"


_DAMAGED = "cannot be read: a chunk is damaged ({}); copy the data set again"


def _read(path: Path, key: str, array: Any, rows: slice) -> np.ndarray:
    try:
        return np.asarray(array[rows])
    except Exception as error:  # codecs raise exceptions of any type
        raise DatasetError(f"{key} in {path} {_DAMAGED.format(error)}") from error
