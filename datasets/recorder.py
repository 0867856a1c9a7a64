"""Record episodes into a new store, which appears at its path only when it is whole."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.jpeg_codec import JpegCodec
from flowchunk.datasets.specs import ActionSpec, ObservationField, ObservationSpec
from flowchunk.datasets.store import ACTION, ATTRIBUTE

FORMAT_VERSION = 1
CHUNK_FRAMES = 4096
PICTURE_CHUNK_FRAMES = 16
SHARD_FRAMES = 1024
SHARD_BYTES = 256 * 2**20  # before compression: shards of large pictures hold fewer frames


class StoreWriter:
    """Write episodes to ``path``; use it as a context manager.

    Everything goes to a folder beside it, which takes the name ``path`` when the ``with`` block ends well.
    jpeg: the quality, 1 to 100, of the JPEGs that pictures are stored as; by default they are stored without loss.
    Raises DatasetError where ``path`` exists already: recordings are never overwritten; ConfigurationError for another
    quality.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        observation_spec: ObservationSpec,
        action_spec: ActionSpec,
        jpeg: int | None = None,
    ) -> None:
        self.path = Path(path).expanduser()
        if self.path.exists():
            raise DatasetError(f"{self.path} exists already; choose another path, or move it away first")
        self.observation_spec, self.action_spec = observation_spec, action_spec
        self._jpeg = None if jpeg is None else JpegCodec(jpeg)
        self._partial = self.path.with_name(f".{self.path.name}.partial")
        self._episode_ends: list[int] = []

    def __enter__(self) -> Self:
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.parent.mkdir(parents=True, exist_ok=True)
        self._root = zarr.open_group(self._partial, mode="w", zarr_format=3)
        self._root.attrs[ATTRIBUTE] = {
            "format_version": FORMAT_VERSION,
            "observation_spec": self.observation_spec.to_json(),
            "action_spec": self.action_spec.to_json(),
        }
        data = self._root.create_group("data")
        self._columns: dict[str, _Column] = {
            key: _PictureColumn(data, key, field.shape, self._jpeg) if field.is_picture else _Column(data, key)
            for key, field in self.observation_spec.fields.items()
        }
        self._columns[ACTION] = _Column(data, ACTION)
        return self

    def add_episode(self, observations: Mapping[str, np.ndarray], actions: np.ndarray) -> None:
        """Append one episode of T frames: observations {key: (T, …)}, actions (T, D); action k follows observation k.

        Raises DatasetError where keys, lengths or shapes are not those of the specs, or pictures are not uint8.
        """
        length = len(actions)
        for key, field in self.observation_spec.pictures.items():
            if key in observations:
                _require_picture(key, field, observations[key], length)
        expected = {key: field.shape for key, field in self.observation_spec.fields.items()}
        got = {key: np.shape(values) for key, values in observations.items()}
        if got != {key: (length, *shape) for key, shape in expected.items()} or length == 0:
            raise DatasetError(f"an episode of {length} actions needs observations {expected} a frame, but got {got}")
        if np.shape(actions) != (length, self.action_spec.size):
            raise DatasetError(f"actions must be (T, {self.action_spec.size}), but are {np.shape(actions)}")
        for key, values in (*observations.items(), (ACTION, actions)):
            self._columns[key].add(np.asarray(values))
        self._episode_ends.append(length + (self._episode_ends[-1] if self._episode_ends else 0))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and self._episode_ends:
            for column in self._columns.values():
                column.finish()
            ends = np.asarray(self._episode_ends, dtype=np.int64)
            self._root.create_array("meta/episode_ends", data=ends)
            self._partial.rename(self.path)
            return
        shutil.rmtree(self._partial, ignore_errors=True)
        if kind is None:
            raise DatasetError(f"nothing was recorded, so {self.path} was not written")


class _Column:
    """One array that grows by whole files, so that none is written twice."""

    def __init__(self, data: zarr.Group, key: str) -> None:
        self._data, self._key = data, key
        self._file_frames = CHUNK_FRAMES
        self._array: zarr.Array[Any] | None = None
        self._waiting: list[np.ndarray] = []

    def add(self, values: np.ndarray) -> None:
        """Append values (T, …)."""
        self._waiting.append(values)
        frames = sum(map(len, self._waiting))
        if frames >= self._file_frames:
            values = np.concatenate(self._waiting)
            whole = frames - frames % self._file_frames
            self._write(values[:whole])
            self._waiting = [values[whole:].copy()] if whole < frames else []

    def finish(self) -> None:
        """Write what is left."""
        if self._waiting:
            self._write(np.concatenate(self._waiting))

    def _write(self, values: np.ndarray) -> None:
        values = values if values.dtype in (np.uint8, np.bool_) else values.astype(np.float32)
        if self._array is None:
            self._array = self._create(values)
        self._array.append(values)

    def _create(self, values: np.ndarray) -> zarr.Array[Any]:
        return self._data.create_array(
            self._key,
            shape=(0, *values.shape[1:]),
            dtype=values.dtype,
            chunks=(self._file_frames, *values.shape[1:]),
            config={"write_empty_chunks": True},  # so that a missing chunk always means damage
        )


class _PictureColumn(_Column):
    """Pictures: chunks of a few frames, or one JPEG each, many to a file; all carry a checksum."""

    def __init__(self, data: zarr.Group, key: str, shape: tuple[int, ...], jpeg: JpegCodec | None) -> None:
        super().__init__(data, key)
        self._jpeg = jpeg
        fitting = SHARD_BYTES // prod(shape) // PICTURE_CHUNK_FRAMES * PICTURE_CHUNK_FRAMES
        self._file_frames = max(PICTURE_CHUNK_FRAMES, min(SHARD_FRAMES, fitting))

    def _create(self, values: np.ndarray) -> zarr.Array[Any]:
        return self._data.create_array(
            self._key,
            shape=(0, *values.shape[1:]),
            dtype=values.dtype,
            shards=(self._file_frames, *values.shape[1:]),
            chunks=(PICTURE_CHUNK_FRAMES if self._jpeg is None else 1, *values.shape[1:]),
            serializer="auto" if self._jpeg is None else self._jpeg,
            compressors=ZstdCodec(level=1, checksum=True) if self._jpeg is None else Crc32cCodec(),
            config={"write_empty_chunks": True},
        )


def _require_picture(key: str, field: ObservationField, values: np.ndarray, length: int) -> None:
    got = np.asarray(values)
    if got.dtype != np.uint8 or got.shape != (length, *field.shape):
        raise DatasetError(
            f"{key!r} needs pictures, uint8 {(length, *field.shape)} (frames, height, width, RGB) from 0 to 255, but got "
            f"{got.dtype} {got.shape}"
        )
