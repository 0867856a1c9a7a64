"""Record episodes into a new store, which is valid after every episode and gets its final name at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from flowchunk.datasets.episode_checks import check_episode
from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.jpeg_codec import JpegCodec
from flowchunk.datasets.partial_output import PartialOutput
from flowchunk.datasets.specs import ActionSpec, ObservationSpec
from flowchunk.datasets.store import ACTION, ATTRIBUTE, describe_unfinished

FORMAT_VERSION = 1
CHUNK_FRAMES = 4096
IMAGE_CHUNK_FRAMES = 16
SHARD_FRAMES = 1024
SHARD_BYTES = 256 * 2**20  # before compression; shards of large images hold fewer frames

Say = Callable[[str], None]


class StoreWriter:
    """Write episodes to ``path``; use it as a context manager.

    Episodes are written to the folder ``partial`` beside it, ``PATH.<random>.partial``, which is renamed to ``path`` when
    the ``with`` block ends normally. That folder is a valid store from the first episode on: if the recording ends by an
    exception, Ctrl-C or a kill, it holds every episode for which ``add_episode`` returned.
    jpeg: store images as JPEGs of this quality, 1 to 100; lossless by default.
    keep_unfinished: false for data that can be reproduced, such as a conversion: an exception then leaves nothing behind, and
    writing is faster, because episodes are buffered until they fill a file. say: called with messages on unfinished
    recordings that are kept, from this writer or from an earlier one for the same path; None for silence.
    Raises DatasetError if ``path`` exists, since recordings are never overwritten; ConfigurationError for an invalid quality.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        observation_spec: ObservationSpec,
        action_spec: ActionSpec,
        jpeg: int | None = None,
        keep_unfinished: bool = True,
        say: Say | None = print,
    ) -> None:
        self._output = PartialOutput(path)
        self.path, self.partial = self._output.path, self._output.partial
        self.observation_spec, self.action_spec = observation_spec, action_spec
        self._jpeg = None if jpeg is None else JpegCodec(jpeg)
        self._keep_unfinished, self._say = keep_unfinished, say or _ignore
        self._episode_ends: list[int] = []

    @property
    def num_episodes(self) -> int:
        """The number of episodes added so far."""
        return len(self._episode_ends)

    def __enter__(self) -> Self:
        for text in describe_unfinished(self.path):
            self._say(text)
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        self._root = zarr.open_group(self.partial, mode="w-", zarr_format=3)
        self._describe(finished=False)
        data, fields = self._root.create_group("data"), self.observation_spec.fields
        options = {"keep_unfinished": self._keep_unfinished}
        self._columns: dict[str, _Column] = {
            key: _ImageColumn(data, key, field.shape, jpeg=self._jpeg, **options)
            if field.is_image
            else _Column(data, key, field.shape, **options)
            for key, field in fields.items()
        }
        self._columns[ACTION] = _Column(data, ACTION, (self.action_spec.size,), **options)
        self._ends = self._root.create_array("meta/episode_ends", shape=(0,), dtype=np.int64, chunks=(CHUNK_FRAMES,))
        return self

    def add_episode(self, observations: Mapping[str, np.ndarray], actions: np.ndarray) -> None:
        """Append one episode of T frames: observations {key: (T, …)}, actions (T, D); action k follows observation k.

        Images are stored as uint8 and all other values as float32, whatever their type: float64 is rounded, and booleans
        become 0 and 1. The arrays may be reused afterwards. Raises DatasetError if keys, lengths or shapes differ from the
        specs, if images are not uint8, or if a value is not finite or not representable in float32; such an episode is left
        out, and further episodes can be added.
        """
        episode = check_episode(
            observations,
            actions,
            observation_spec=self.observation_spec,
            action_spec=self.action_spec,
            episode=self.num_episodes,
        )
        start = self._episode_ends[-1] if self._episode_ends else 0
        for key, values in episode.items():
            self._columns[key].add(start, values)
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

    def _describe(self, *, finished: bool) -> None:
        self._root.attrs[ATTRIBUTE] = {
            "format_version": FORMAT_VERSION,
            "observation_spec": self.observation_spec.to_json(),
            "action_spec": self.action_spec.to_json(),
            "finished": finished,
        }

    def _finish(self) -> None:
        for column in self._columns.values():
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

    def __init__(self, data: zarr.Group, key: str, shape: tuple[int, ...], *, keep_unfinished: bool) -> None:
        self._file_frames = self._frames_per_file(shape)
        self._array = self._create(data, key, shape)
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

    def _frames_per_file(self, shape: tuple[int, ...]) -> int:
        return CHUNK_FRAMES

    def _create(self, data: zarr.Group, key: str, shape: tuple[int, ...]) -> zarr.Array[Any]:
        return data.create_array(
            key,
            shape=(0, *shape),
            dtype=np.float32,
            chunks=(self._file_frames, *shape),
            config={"write_empty_chunks": True},  # so that a missing chunk always means damage
        )


class _ImageColumn(_Column):
    """Images: chunks of a few frames, or one JPEG each, with many chunks per file; every chunk has a checksum."""

    def __init__(
        self, data: zarr.Group, key: str, shape: tuple[int, ...], *, jpeg: JpegCodec | None, keep_unfinished: bool
    ) -> None:
        self._jpeg = jpeg
        super().__init__(data, key, shape, keep_unfinished=keep_unfinished)

    def _frames_per_file(self, shape: tuple[int, ...]) -> int:
        fitting = SHARD_BYTES // prod(shape) // IMAGE_CHUNK_FRAMES * IMAGE_CHUNK_FRAMES
        return max(IMAGE_CHUNK_FRAMES, min(SHARD_FRAMES, fitting))

    def _create(self, data: zarr.Group, key: str, shape: tuple[int, ...]) -> zarr.Array[Any]:
        return data.create_array(
            key,
            shape=(0, *shape),
            dtype=np.uint8,
            shards=(self._file_frames, *shape),
            chunks=(IMAGE_CHUNK_FRAMES if self._jpeg is None else 1, *shape),
            serializer="auto" if self._jpeg is None else self._jpeg,
            compressors=ZstdCodec(level=1, checksum=True) if self._jpeg is None else Crc32cCodec(),
            config={"write_empty_chunks": True},
        )


def _ignore(_: str) -> None:
    pass
