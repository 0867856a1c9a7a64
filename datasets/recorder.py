"""Record episodes into a new store, which is valid after every episode and gets its final name at the end."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from flowchunk.datasets.episode_source import ACTION
from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.formats.zarr_store import ATTRIBUTE, PARTIAL, describe_unfinished
from flowchunk.datasets.jpeg_codec import JpegCodec
from flowchunk.datasets.specs import ActionSpec, ObservationField, ObservationSpec

FORMAT_VERSION = 1
CHUNK_FRAMES = 4096
IMAGE_CHUNK_FRAMES = 16
SHARD_FRAMES = 1024
SHARD_BYTES = 256 * 2**20  # before compression; shards of large images hold fewer frames
EXACT_INTEGERS = 2**24  # float32 represents all integers up to here

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
        self.path = Path(path).expanduser()
        if self.path.exists():
            raise DatasetError(f"{self.path} exists already; choose another path, or move it away first")
        self.observation_spec, self.action_spec = observation_spec, action_spec
        self.partial = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
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
        self._check_shapes(observations, actions)
        episode = {
            key: np.asarray(values) if key in self.observation_spec.images else self._as_float32(key, values)
            for key, values in (*observations.items(), (ACTION, actions))
        }
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
        _sync(self.partial)
        try:
            self.partial.rename(self.path)
        except OSError as error:
            if not self.path.exists():
                raise
            raise DatasetError(
                f"{self.path} exists by now, and recordings are never overwritten; choose another path"
            ) from error
        _sync_one(self.path.parent)

    def _leave_unfinished(self) -> None:
        if self._keep_unfinished and self._episode_ends:
            self._say(
                f"{self.num_episodes} finished episodes are kept in {self.partial}: "
                "it opens as a data set, and may be renamed"
            )
        else:
            shutil.rmtree(self.partial, ignore_errors=True)

    def _check_shapes(self, observations: Mapping[str, np.ndarray], actions: np.ndarray) -> None:
        length = len(actions)
        for key, field in self.observation_spec.images.items():
            if key in observations:
                _require_image(key, field, observations[key], length)
        expected = {key: field.shape for key, field in self.observation_spec.fields.items()}
        got = {key: np.shape(values) for key, values in observations.items()}
        if got != {key: (length, *shape) for key, shape in expected.items()} or length == 0:
            raise DatasetError(f"an episode of {length} actions needs observations {expected} per frame, but got {got}")
        if np.shape(actions) != (length, self.action_spec.size):
            raise DatasetError(f"actions must be (T, {self.action_spec.size}), but are {np.shape(actions)}")

    def _as_float32(self, key: str, values: np.ndarray) -> np.ndarray:
        """A copy of values (T, …). Raises DatasetError with key, episode and frame if one is not representable."""
        given = np.asarray(values)
        if given.dtype.kind not in "biuf":
            raise DatasetError(f"{key!r} needs numbers, but got {given.dtype}")
        with np.errstate(over="ignore"):
            converted = given.astype(np.float32)
        is_large = (given.dtype.kind in "iu") & ((given > EXACT_INTEGERS) | (given < -EXACT_INTEGERS))
        for is_bad, what in (
            (~np.isfinite(given), "NaN or infinity"),
            (~np.isfinite(converted), "a value outside the range of float32"),
            (is_large, f"integers beyond {EXACT_INTEGERS}, which float32 cannot represent exactly"),
        ):
            if is_bad.any():
                frame = int(np.argmax(is_bad.reshape(len(given), -1).any(axis=1)))
                raise DatasetError(
                    f"{key!r} holds {what}, first in episode {self.num_episodes}, frame {frame}; repair the values, or "
                    "leave the episode out"
                )
        return converted


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


def _require_image(key: str, field: ObservationField, values: np.ndarray, length: int) -> None:
    got = np.asarray(values)
    if got.dtype != np.uint8 or got.shape != (length, *field.shape):
        raise DatasetError(
            f"{key!r} needs images, uint8 {(length, *field.shape)} (frames, height, width, RGB) from 0 to 255, but got "
            f"{got.dtype} {got.shape}"
        )


def _sync(folder: Path) -> None:
    """Flush a folder and everything in it to the disk."""
    for path in (*folder.rglob("*"), folder):
        _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _ignore(_: str) -> None:
    pass
