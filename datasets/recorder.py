"""Record episodes into a new store, which is valid after every episode and gets its final name at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import zarr
from numcodecs import Blosc
from numpy.typing import DTypeLike
from zarr.codecs import Crc32cCodec, ZstdCodec

from flowchunk.datasets.episode_checks import check_episode
from flowchunk.datasets.episode_source import ACTION
from flowchunk.datasets.errors import ConfigurationError, DatasetError
from flowchunk.datasets.formats.zarr_store import ATTRIBUTE, TASK_INDEX, describe_unfinished
from flowchunk.datasets.jpeg_codec import JpegCodec
from flowchunk.datasets.partial_output import PartialOutput
from flowchunk.datasets.specs import ActionSpec, ObservationSpec
from flowchunk.datasets.tasks import NO_TASK, EpisodeTask, TaskTable

FORMAT_VERSION = 1
CHUNK_FRAMES = 4096
IMAGE_CHUNK_FRAMES = 16
SHARD_FRAMES = 1024
SHARD_BYTES = 256 * 2**20  # before compression; shards of large images hold fewer frames
BLOSC = Blosc(cname="zstd", clevel=5, shuffle=Blosc.BITSHUFFLE)  # of format 2, what diffusion_policy uses on disks

Say = Callable[[str], None]


class StoreWriter:
    """Write episodes to ``path``; use it as a context manager.

    Episodes are written to the folder ``partial`` beside it, ``PATH.<random>.partial``, which is renamed to ``path`` when
    the ``with`` block ends normally. That folder is a valid store from the first episode on: if the recording ends by an
    exception, Ctrl-C or a kill, it holds every episode for which ``add_episode`` returned.
    jpeg: store images as JPEGs of this quality, 1 to 100; lossless by default. zarr_format: 2 for diffusion_policy and other
    code that needs it; its files of images are smaller and more numerous.
    keep_unfinished: false for data that can be reproduced, such as a conversion: an exception then leaves nothing behind, and
    writing is faster, because episodes are buffered until they fill a file. say: called with messages on unfinished
    recordings that are kept, from this writer or from an earlier one for the same path; None for silence.
    Raises DatasetError if ``path`` exists, since recordings are never overwritten; ConfigurationError for an invalid quality,
    or for JPEGs in format 2.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        observation_spec: ObservationSpec,
        action_spec: ActionSpec,
        jpeg: int | None = None,
        zarr_format: Literal[2, 3] = 3,
        keep_unfinished: bool = True,
        say: Say | None = print,
    ) -> None:
        if with_slash := [key for key in observation_spec.fields if "/" in key]:
            raise DatasetError(f"keys of a store have no '/', but {with_slash[0]!r} has; rename the observation")
        self._output = PartialOutput(path)
        self.path, self.partial = self._output.path, self._output.partial
        self.observation_spec, self.action_spec = observation_spec, action_spec
        if jpeg is not None and zarr_format == 2:
            raise ConfigurationError(f"jpeg={jpeg} needs zarr_format=3; format 2 stores lossless images")
        self._jpeg, self._zarr_format = None if jpeg is None else JpegCodec(jpeg), zarr_format
        self._keep_unfinished, self._say = keep_unfinished, say or _ignore
        self._episode_ends: list[int] = []
        self._tasks = TaskTable()
        self._task_column: _Column | None = None

    @property
    def num_episodes(self) -> int:
        """The number of episodes added so far."""
        return len(self._episode_ends)

    def __enter__(self) -> Self:
        for text in describe_unfinished(self.path):
            self._say(text)
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        self._root = zarr.open_group(self.partial, mode="w-", zarr_format=self._zarr_format)
        self._describe(finished=False)
        data = self._root.create_group("data")
        arrays = {
            key: _create_images(data, key, field.shape, jpeg=self._jpeg)
            if field.is_image
            else _create_values(data, key, field.shape)
            for key, field in self.observation_spec.fields.items()
        }
        arrays[ACTION] = _create_values(data, ACTION, (self.action_spec.size,))
        self._columns = {key: self._column(array) for key, array in arrays.items()}
        self._ends = self._root.create_array("meta/episode_ends", shape=(0,), dtype=np.int64, chunks=(CHUNK_FRAMES,))
        return self

    def add_episode(
        self, observations: Mapping[str, np.ndarray], actions: np.ndarray, *, task: EpisodeTask = None
    ) -> None:
        """Append one episode of T frames: observations {key: (T, …)}, actions (T, D); action k follows observation k.

        task: what the robot is to do, a text for the episode, a sequence of T texts, or None.
        Images are stored as uint8 and all other values as float32, whatever their type: float64 is rounded, and booleans
        become 0 and 1. The arrays may be reused afterwards. Raises DatasetError if keys, lengths or shapes differ from the
        specs, if images are not uint8, if a value is not finite or not representable in float32, or if the task is of another
        kind; such an episode is left out, and further episodes can be added.
        """
        episode = check_episode(
            observations,
            actions,
            observation_spec=self.observation_spec,
            action_spec=self.action_spec,
            episode=self.num_episodes,
        )
        task_indices = self._tasks.add(task, len(actions))
        start = self._episode_ends[-1] if self._episode_ends else 0
        for key, values in episode.items():
            self._columns[key].add(start, values)
        self._add_tasks(start, task_indices)
        if self._keep_unfinished:
            self._ends.resize((self.num_episodes + 1,))
            self._ends[self.num_episodes] = start + len(actions)  # from here on, readers see the episode
        self._episode_ends.append(start + len(actions))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None and not self._episode_ends:
                raise DatasetError(f"nothing was recorded, so {self.path} was not written")
            if kind is None:
                self._finish()
        finally:
            if self.partial.exists():
                self._leave_unfinished()

    def _column(self, array: zarr.Array[Any]) -> _Column:
        return _Column(array, keep_unfinished=self._keep_unfinished)

    def _add_tasks(self, start: int, indices: np.ndarray) -> None:
        """Store indices of tasks if any episode had a task so far; those before it have the empty text, which is text 0."""
        if self._task_column is None:
            if self._tasks.texts == [NO_TASK]:
                return
            column = self._column(_create_values(self._root, TASK_INDEX, (), np.int64))
            column.add(0, np.zeros(start, np.int64))
            self._task_column = column
        self._task_column.add(start, indices)
        self._describe(finished=False)  # with the texts, before readers see the episode

    def _describe(self, *, finished: bool) -> None:
        tasks = {} if self._task_column is None else {"tasks": self._tasks.texts}
        self._root.attrs[ATTRIBUTE] = {
            "format_version": FORMAT_VERSION,
            "observation_spec": self.observation_spec.to_json(),
            "action_spec": self.action_spec.to_json(),
            "finished": finished,
            **tasks,
        }

    def _finish(self) -> None:
        tasks = () if self._task_column is None else (self._task_column,)
        for column in (*self._columns.values(), *tasks):
            column.finish(self._episode_ends[-1])
        self._ends.resize((self.num_episodes,))
        self._ends[:] = np.asarray(self._episode_ends)
        self._describe(finished=True)
        self._output.publish()

    def _leave_unfinished(self) -> None:
        if self._keep_unfinished and self._episode_ends:
            self._say(
                f"{self.num_episodes} finished episodes are kept in {self.partial}: "
                "it opens as a data set, and may be renamed"
            )
        else:
            self._output.remove()


class _Column:
    """One array that grows episode by episode.

    keep_unfinished: write each episode immediately; otherwise buffer rows until they fill a file, so that no file is
    written twice.
    """

    def __init__(self, array: zarr.Array[Any], *, keep_unfinished: bool) -> None:
        self._array, self._file_frames = array, (array.shards or array.chunks)[0]
        self._buffers = not keep_unfinished
        self._buffer: list[np.ndarray] = []

    def add(self, start: int, values: np.ndarray) -> None:
        """Add values (T, …) at row ``start``, the end of the rows added so far; anything beyond it is replaced."""
        self._truncate(start)
        if not self._buffers:
            self._write(start, values)
            return
        self._buffer.append(values.copy())
        frames = sum(map(len, self._buffer))
        if frames >= self._file_frames:
            rows, whole = np.concatenate(self._buffer), frames - frames % self._file_frames
            self._buffer = [rows]  # instead of its parts, which need as much memory
            self._write(start + len(values) - frames, rows[:whole])
            self._buffer = [rows[whole:].copy()]

    def finish(self, rows: int) -> None:
        """Write the buffered rows, so that the array has this number of rows."""
        self._truncate(rows)
        if self._buffer:
            self._write(self._array.shape[0], np.concatenate(self._buffer))

    def _truncate(self, rows: int) -> None:
        """Drop what follows: a part of an episode that could not be added."""
        written = self._array.shape[0]
        if written > rows:
            self._array.resize((rows, *self._array.shape[1:]))
        if written + sum(map(len, self._buffer)) > rows:
            self._buffer = [np.concatenate(self._buffer)[: max(0, rows - written)]] if self._buffer else []

    def _write(self, start: int, values: np.ndarray) -> None:
        self._array.resize((start + len(values), *values.shape[1:]))
        self._array[start:] = values


def _create_values(
    group: zarr.Group, name: str, shape: tuple[int, ...], dtype: DTypeLike = np.float32
) -> zarr.Array[Any]:
    """An empty array for values of this shape per frame."""
    return group.create_array(
        name,
        shape=(0, *shape),
        dtype=dtype,
        chunks=(CHUNK_FRAMES, *shape),
        compressors=BLOSC if group.metadata.zarr_format == 2 else "auto",
        config={"write_empty_chunks": True},  # so that a missing chunk always means damage
        overwrite=True,  # the array of tasks, if its first episode was interrupted
    )


def _create_images(group: zarr.Group, key: str, shape: tuple[int, ...], *, jpeg: JpegCodec | None) -> zarr.Array[Any]:
    """An empty array for images: chunks of a few frames, or one JPEG each. In format 3, with many chunks per file, and a
    checksum each."""
    options: dict[str, Any] = {"shape": (0, *shape), "dtype": np.uint8, "config": {"write_empty_chunks": True}}
    if group.metadata.zarr_format == 2:
        return group.create_array(key, chunks=(IMAGE_CHUNK_FRAMES, *shape), compressors=BLOSC, **options)
    fitting = SHARD_BYTES // prod(shape) // IMAGE_CHUNK_FRAMES * IMAGE_CHUNK_FRAMES
    return group.create_array(
        key,
        shards=(max(IMAGE_CHUNK_FRAMES, min(SHARD_FRAMES, fitting)), *shape),
        chunks=(IMAGE_CHUNK_FRAMES if jpeg is None else 1, *shape),
        serializer="auto" if jpeg is None else jpeg,
        compressors=ZstdCodec(level=1, checksum=True) if jpeg is None else Crc32cCodec(),
        **options,
    )


def _ignore(_: str) -> None:
    pass
