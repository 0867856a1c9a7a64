"""Numbered files that grow up to a size: rows of frames, descriptions of episodes, and the videos of a camera."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from flowchunk.datasets.formats.lerobot_layout import (
    DATA_PATH,
    EPISODES_PATH,
    VIDEO_PATH,
    FilePlace,
    episodes_schema,
)
from flowchunk.datasets.formats.video_encoder import VideoCodec, VideoEncoder

MEGABYTE = 2**20
ROWS_PER_GROUP = 1000
EPISODES_PER_GROUP = 100


class DataFiles:
    """The frames of all episodes; an episode is in one file. ``paths`` are the files so far."""

    def __init__(self, root: Path, schema: pa.Schema, *, limit_mb: float) -> None:
        self._schema, self._files = schema, _ParquetFiles(root, DATA_PATH, schema, limit_mb=limit_mb)
        self.paths = self._files.paths

    def add(self, columns: Mapping[str, np.ndarray]) -> FilePlace:
        """Append an episode: for each column of the schema, values (T, …), or images, which are encoded as PNG."""
        place = self._files.place
        for start in range(0, len(columns["index"]), ROWS_PER_GROUP):
            rows = slice(start, start + ROWS_PER_GROUP)
            arrays = [_arrow_array(columns[field.name][rows], field.type) for field in self._schema]
            self._files.add(pa.table(arrays, schema=self._schema))
        self._files.end_group()
        return place

    def close(self) -> None:
        """Write what makes the last file readable. It may be called again."""
        self._files.close()


class EpisodeFiles:
    """The descriptions of the episodes, a row for each."""

    def __init__(self, root: Path, *, limit_mb: float) -> None:
        self._root, self._limit_mb = root, limit_mb
        self._files: _ParquetFiles | None = None
        self._rows: list[dict[str, Any]] = []

    def add(self, row: Mapping[str, Any]) -> None:
        """Append an episode's row; all have the same columns."""
        place = FilePlace() if self._files is None else self._files.place
        named = {"meta/episodes/chunk_index": place.chunk, "meta/episodes/file_index": place.file}
        self._rows.append({**row, **named})
        if self._files is None:
            schema = episodes_schema(self._rows[0])
            self._files = _ParquetFiles(self._root, EPISODES_PATH, schema, limit_mb=self._limit_mb)
        if len(self._rows) == EPISODES_PER_GROUP:
            self._write()

    def close(self) -> None:
        """Write the remaining rows and what makes the last file readable. It may be called again."""
        if self._files is not None:
            self._write()
            self._files.close()

    def _write(self) -> None:
        if self._rows and self._files is not None:
            self._files.add(pa.Table.from_pylist(self._rows, schema=self._files.schema))
            self._files.end_group()
            self._rows = []


class _ParquetFiles:
    """Append tables to files; a file of ``limit_mb`` or more is complete, and the next group of tables begins another.

    template: of the files' paths in the folder ``root``. ``paths`` are the files so far; ``place`` is that of the next table.
    """

    def __init__(self, root: Path, template: str, schema: pa.Schema, *, limit_mb: float) -> None:
        self.schema, self.place, self.paths = schema, FilePlace(), list[Path]()
        self._root, self._template, self._limit = root, template, limit_mb * MEGABYTE
        self._writer: pq.ParquetWriter | None = None

    def add(self, table: pa.Table) -> None:
        """Append a table."""
        if self._writer is None:
            self.paths.append(self._root / self.place.path(self._template))
            self.paths[-1].parent.mkdir(parents=True, exist_ok=True)
            self._file = self.paths[-1].open("wb")
            self._writer = pq.ParquetWriter(self._file, self.schema)
        self._writer.write_table(table)

    def end_group(self) -> None:
        """Complete the file if it is large enough."""
        if self._writer is not None and self._file.tell() >= self._limit:
            self.close()
            self.place = self.place.next

    def close(self) -> None:
        """Write the footer, without which a file is unreadable."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            with self._file:
                writer.close()


@dataclass(frozen=True)
class VideoPlace:
    """Where an episode is: the file, and the index of its first image in it."""

    file: FilePlace
    first_image: int


class VideoFiles:
    """The videos of a camera; the images of an episode follow one another in one file, after those of earlier episodes."""

    def __init__(
        self, root: Path, name: str, shape: tuple[int, ...], codec: VideoCodec, *, fps: int, limit_mb: float
    ) -> None:
        self._root, self._name, self._size = root, name, shape[:2]
        self._codec, self._fps, self._limit = codec, fps, limit_mb * MEGABYTE
        self._encoder: VideoEncoder | None = None
        self._place = FilePlace()

    def add(self, images: np.ndarray) -> VideoPlace:
        """Append an episode's images (T, height, width, 3) uint8."""
        if self._encoder is None:
            path = self._root / self._place.path(VIDEO_PATH, video_key=self._name)
            self._encoder = VideoEncoder(path, *self._size, codec=self._codec, fps=self._fps)
        place = VideoPlace(self._place, self._encoder.num_images)
        self._encoder.add(images)
        if self._encoder.num_bytes >= self._limit:
            self.finish()
            self._place = self._place.next
        return place

    def finish(self) -> None:
        """Complete the file."""
        if self._encoder is not None:
            encoder, self._encoder = self._encoder, None
            encoder.finish()

    def abandon(self) -> None:
        """Close the file, which is of no use."""
        if self._encoder is not None:
            self._encoder.abandon()


def _arrow_array(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    """Values (T, …) as a column of this type."""
    if pa.types.is_struct(kind):
        return pa.array([{"bytes": _encode_png(image), "path": None} for image in values], kind)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(values.ravel(), kind.list_size)
    return pa.array(values.tolist() if pa.types.is_list(kind) else values.ravel(), kind)


def _encode_png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)  # slower levels save a few percent
    return file.getvalue()
