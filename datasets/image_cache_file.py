"""The decoded images of one key on disk: a ``.npy`` file named by a hash of the data, and a JSON file on damaged frames.

A build writes to a temporary name and renames the file at the end. So every file with the final name is complete,
concurrent builds are safe, and an interrupted build leaves nothing that could be mistaken for a result.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowchunk.datasets.image_reader import ImageReader
from flowchunk.datasets.progress import progress_if_slow

BLOCK_BYTES = 64 * 2**20  # read from the source at once
SETTLED_S = 2  # a file that changed less than this before it was hashed may change again without a new timestamp
STALE_S = 3600  # a partial file untouched for this long belongs to a build that was killed


@dataclass(frozen=True)
class ImageCacheFile:
    """The cached images of one key: ``path`` (.npy, uint8 (N, H, W, 3)) and ``note`` beside it."""

    path: Path
    shape: tuple[int, ...]

    @property
    def note(self) -> Path:
        """JSON: the source of the images, and {frame: what is wrong} for those that could not be read."""
        return self.path.with_suffix(".json")

    @property
    def nbytes(self) -> int:
        """Bytes of the images."""
        return int(np.prod(self.shape))

    def read_damaged(self) -> dict[int, str] | None:
        """{frame: what is wrong} for the frames that could not be read; None if the file is missing or incomplete."""
        try:
            if self.path.stat().st_size != self.nbytes + self._header_bytes():
                return None
            return {int(frame): reason for frame, reason in json.loads(self.note.read_text())["damaged"].items()}
        except (OSError, ValueError, KeyError, AttributeError):
            return None

    def build(self, source: ImageReader, *, skip_corrupt: bool, visible: bool) -> dict[int, str]:
        """Decode the source; returns {frame: what is wrong}. Raises DatasetError for damage unless ``skip_corrupt``."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._remove_stale()
        partial = self.path.with_name(f".{self.path.stem}.{uuid.uuid4().hex}.partial")
        try:
            with partial.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, self._header())
                damaged = decode_images(
                    source, lambda images: file.write(images.data), skip_corrupt=skip_corrupt, visible=visible
                )
                file.flush()
                os.fsync(file.fileno())
            note = {"source": str(source), "shape": self.shape, "damaged": damaged}
            _write_whole(self.note, json.dumps(note))
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)
        return damaged

    def open(self) -> tuple[np.ndarray, mmap.mmap]:
        """The images, mapped read-only (a writable map would have to fit into memory and swap together), and the map."""
        with self.path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(mapped, np.uint8, offset=self._header_bytes()).reshape(self.shape), mapped

    def _header(self) -> dict[str, object]:
        return {"descr": "|u1", "fortran_order": False, "shape": self.shape}

    def _header_bytes(self) -> int:
        with self.path.open("rb") as file:
            np.lib.format.read_magic(file)
            if np.lib.format.read_array_header_1_0(file) != (self.shape, False, np.dtype(np.uint8)):
                raise ValueError("another array")
            return file.tell()

    def _remove_stale(self) -> None:
        for partial in self.path.parent.glob(".*.partial"):
            try:
                if time.time() - partial.stat().st_mtime > STALE_S:
                    partial.unlink()
            except OSError:  # its build has just finished
                continue


def find_cache_file(directory: Path, source: ImageReader, *, visible: bool) -> ImageCacheFile:
    """The file in ``directory`` for this source, named by a hash of the array's files and of the slice that is used.

    The name does not depend on the data set's path. The hash is stored in ``directory`` under the files' sizes and times,
    so that unchanged files are hashed only once.
    """
    shape = (source.store.num_frames, *source.field.shape)
    folder, files = source.store.files(source.name)
    own = () if folder.name == source.name else (source.name,)  # files that several arrays share
    part = repr((shape, source.columns, *own)).encode()
    listing, is_settled = _list(files)
    note = directory / f"{hashlib.sha256(part + listing).hexdigest()[:32]}.hash"
    name = _read_noted(note)
    if name is None:
        name = _hash(str(source), folder, files, part, visible=visible)
        if is_settled:
            with suppress(OSError):  # without a writable folder, the next run hashes again
                directory.mkdir(parents=True, exist_ok=True)
                _write_whole(note, name)
    return ImageCacheFile(directory / f"{name}.npy", shape)


def _list(files: list[Path]) -> tuple[bytes, bool]:
    """A fingerprint of the files' metadata, and whether they are old enough for any later change to alter it."""
    status = [(str(file.resolve()), file.stat()) for file in files]
    listing = [(name, stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in status]
    newest = max((max(stat.st_mtime, stat.st_ctime) for _, stat in status), default=0.0)
    return repr(listing).encode(), newest < time.time() - SETTLED_S


def _read_noted(note: Path) -> str | None:
    try:
        name = note.read_text()
    except (OSError, UnicodeDecodeError):
        return None
    return name if re.fullmatch("[0-9a-f]{32}", name) else None


def _hash(source: str, folder: Path, files: list[Path], part: bytes, *, visible: bool) -> str:
    digest = hashlib.sha256(part)
    with progress_if_slow(f"hashing {source}", sum(file.stat().st_size for file in files), visible=visible) as advance:
        for file in files:
            with file.open("rb") as content:
                file_digest = hashlib.file_digest(content, "sha256")
            digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file_digest.digest())
            advance(file.stat().st_size)
    return digest.hexdigest()[:32]


def decode_images(
    source: ImageReader, write: Callable[[np.ndarray], object], *, skip_corrupt: bool, visible: bool
) -> dict[int, str]:
    """Pass all images to ``write`` in order, in blocks of uint8 (n, H, W, 3); returns {frame: what is wrong}.

    Damaged images are black if ``skip_corrupt``; otherwise raises DatasetError for the first of them.
    """
    total, step = source.store.num_frames, frames_per_block(source)
    damaged: dict[int, str] = {}
    with progress_if_slow(f"decoding {source}", total, visible=visible) as advance:
        for start in range(0, total, step):
            stop = min(start + step, total)
            if skip_corrupt:
                block, lost = source.read_undamaged(start, stop)
                damaged |= lost
            else:
                block = source.read(start, stop)
            write(np.ascontiguousarray(block))
            advance(stop - start)
    return damaged


def frames_per_block(source: ImageReader) -> int:
    """How many frames to read at once: whole chunks, about BLOCK_BYTES."""
    chunk = source.store.chunk_rows(source.name)
    return max(1, BLOCK_BYTES // (source.frame_bytes() * chunk)) * chunk


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.partial")
    partial.write_text(text)
    partial.replace(path)
