"""Damage to the files of a zarr array that zarr itself does not report.

zarr reads a missing file, and a missing chunk inside a shard, as zeros; and Blosc reads past the end of a truncated chunk of
incompressible data. In an array that was written completely, all of these are damage.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import Blosc
from zarr.codecs import ShardingCodec
from zarr.codecs.sharding import ShardingCodecIndexLocation
from zarr.core.metadata import ArrayV2Metadata

EMPTY = np.iinfo(np.uint64).max  # a shard's index entry for a missing chunk
CHECKSUM_BYTES = 4


def count_files(array: zarr.Array[Any]) -> int:
    """The number of files of the complete array."""
    return prod(_files_along(array))


def missing_files(array: zarr.Array[Any], folder: Path, rows: int) -> list[str]:
    """Names, relative to the array's folder, of the missing files of its first ``rows`` rows."""
    return [name for name, _ in _files(array, 0, rows) if not (folder / name).exists()]


def find_damage(
    array: zarr.Array[Any], folder: Path, start: int, stop: int, *, may_have_holes: bool = False
) -> str | None:
    """What is wrong with the files of rows start … stop - 1, in words; None if nothing shows without decoding them.

    may_have_holes: whether a missing chunk stands for zeros.
    """
    for name, place in _files(array, start, stop):
        file = folder / name
        if not file.exists():
            if may_have_holes:
                continue
            return f"the file {name} is missing"
        if isinstance(array.metadata, ArrayV2Metadata):
            problem = _blosc_problem(array.metadata, file, name)
        else:
            problem = None if may_have_holes else _shard_problem(array, file, place, start, stop)
        if problem:
            return problem
    return None


def _files_along(array: zarr.Array[Any]) -> tuple[int, ...]:
    return tuple(-(-size // step) for size, step in zip(array.shape, array.shards or array.chunks, strict=True))


def _files(array: zarr.Array[Any], start: int, stop: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and grid position of each file with a part of rows start … stop - 1."""
    step = (array.shards or array.chunks)[0]
    for place in product(range(start // step, -(-stop // step)), *map(range, _files_along(array)[1:])):
        yield array.metadata.encode_chunk_key(place), place


def _blosc_problem(metadata: ArrayV2Metadata, file: Path, name: str) -> str | None:
    if not isinstance(metadata.compressor, Blosc):
        return None
    with file.open("rb") as chunk:
        header = chunk.read(16)
    if len(header) < 16 or int.from_bytes(header[12:16], "little") != file.stat().st_size:
        return f"{name} has {file.stat().st_size} bytes, which does not match its header"
    return None


def _shard_problem(array: zarr.Array[Any], file: Path, place: tuple[int, ...], start: int, stop: int) -> str | None:
    """The first missing chunk among those of rows start … stop - 1, by the index at the shard's end."""
    codecs = getattr(array.metadata, "codecs", ())
    codec = next((codec for codec in codecs if isinstance(codec, ShardingCodec)), None)
    if codec is None or codec.index_location != ShardingCodecIndexLocation.end:
        return None
    shard = array.shards
    assert shard is not None
    grid = tuple(whole // part for whole, part in zip(shard, array.chunks, strict=True))
    content = file.read_bytes() if file.stat().st_size < 16 * prod(grid) + CHECKSUM_BYTES else _tail(file, prod(grid))
    if len(content) != 16 * prod(grid) + CHECKSUM_BYTES:
        return f"the file {file.name} is truncated"
    offsets = np.frombuffer(content[:-CHECKSUM_BYTES], "<u8").reshape(*grid, 2)[..., 0]
    first_row = place[0] * shard[0]
    rows = slice(max(start - first_row, 0) // array.chunks[0], -(-min(stop - first_row, shard[0]) // array.chunks[0]))
    inside = tuple(
        slice(0, -(-min(size - at * whole, whole) // part))
        for size, at, whole, part in zip(array.shape[1:], place[1:], shard[1:], array.chunks[1:], strict=True)
    )
    empty = (offsets[(rows, *inside)] == EMPTY).reshape(rows.stop - rows.start, -1).any(axis=1)
    if not empty.any():
        return None
    row = first_row + (rows.start + int(np.argmax(empty))) * array.chunks[0]
    return f"the chunk that starts at row {row} is missing in its shard"


def _tail(file: Path, chunks: int) -> bytes:
    with file.open("rb") as shard:
        shard.seek(-(16 * chunks + CHECKSUM_BYTES), 2)
        return shard.read()
