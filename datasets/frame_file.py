"""One expanded array of frames on disk: a ``.npy`` file, its name a hash of the data, beside it a note on damaged frames.

A build writes to a file of another name and renames it at the end, so that whatever carries the right name is whole,
several builds at once do no harm, and an interrupted one leaves nothing that is taken for it.
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

from flowchunk.datasets.frames import PictureSource
from flowchunk.datasets.progress import progress_if_slow

BLOCK_BYTES = 64 * 2**20  # of the source, read at once
SETTLED_S = 2  # of files that changed just before they were hashed, a further change might bear the same time
STALE_S = 3600  # a partial file that nobody has written to for so long is of a build that was killed


@dataclass(frozen=True)
class FrameFile:
    """Where the frames of one picture are kept: ``path`` (.npy, uint8 (N, H, W, 3)) and ``note`` beside it."""

    path: Path
    shape: tuple[int, ...]

    @property
    def note(self) -> Path:
        """JSON: where the frames came from, and {frame: what is wrong} of those that could not be read."""
        return self.path.with_suffix(".json")

    @property
    def nbytes(self) -> int:
        """Bytes of the frames."""
        return int(np.prod(self.shape))

    def read_damaged(self) -> dict[int, str] | None:
        """{frame: what is wrong} of the frames that could not be read; None where the file is not there or not whole."""
        try:
            if self.path.stat().st_size != self.nbytes + self._header_bytes():
                return None
            return {int(frame): reason for frame, reason in json.loads(self.note.read_text())["damaged"].items()}
        except (OSError, ValueError, KeyError, AttributeError):
            return None

    def build(self, source: PictureSource, *, skip_corrupt: bool, visible: bool) -> dict[int, str]:
        """Expand the source; returns {frame: what is wrong}. Raises DatasetError for damage unless it is skipped."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._remove_stale()
        partial = self.path.with_name(f".{self.path.stem}.{uuid.uuid4().hex}.partial")
        try:
            with partial.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, self._header())
                damaged = expand(
                    source, lambda frames: file.write(frames.data), skip_corrupt=skip_corrupt, visible=visible
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
        """The frames, mapped read-only (a writable map would have to fit into memory and swap together), and the map."""
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
            except OSError:  # its own build was faster
                continue


def frame_file(directory: Path, source: PictureSource, *, visible: bool) -> FrameFile:
    """The file in ``directory`` for these data, wherever they lie: named by a hash of the array's files and its part used.

    The hash is noted in ``directory`` beside the files' sizes and times, so that files that did not change are hashed once.
    """
    shape = (source.store.frames, *source.field.shape)
    part = repr((shape, source.columns)).encode()
    files = sorted(file for file in source.folder.rglob("*") if file.is_file())
    listing, is_settled = _list(files)
    note = directory / f"{hashlib.sha256(part + listing).hexdigest()[:32]}.hash"
    name = _read_noted(note)
    if name is None:
        name = _hash(source, files, part, visible=visible)
        if is_settled:
            with suppress(OSError):  # a folder that cannot be written only costs time
                directory.mkdir(parents=True, exist_ok=True)
                _write_whole(note, name)
    return FrameFile(directory / f"{name}.npy", shape)


def _list(files: list[Path]) -> tuple[bytes, bool]:
    """What tells whether files changed, and whether they are so old that a change from now on is sure to tell."""
    status = [(str(file.resolve()), file.stat()) for file in files]
    listing = [(name, one.st_size, one.st_ino, one.st_mtime_ns, one.st_ctime_ns) for name, one in status]
    newest = max((max(one.st_mtime, one.st_ctime) for _, one in status), default=0.0)
    return repr(listing).encode(), newest < time.time() - SETTLED_S


def _read_noted(note: Path) -> str | None:
    try:
        name = note.read_text()
    except (OSError, UnicodeDecodeError):
        return None
    return name if re.fullmatch("[0-9a-f]{32}", name) else None


def _hash(source: PictureSource, files: list[Path], part: bytes, *, visible: bool) -> str:
    digest = hashlib.sha256(part)
    with progress_if_slow(f"hashing {source}", sum(file.stat().st_size for file in files), visible=visible) as advance:
        for file in files:
            with file.open("rb") as content:
                own = hashlib.file_digest(content, "sha256")
            digest.update(file.relative_to(source.folder).as_posix().encode() + b"\0" + own.digest())
            advance(file.stat().st_size)
    return digest.hexdigest()[:32]


def expand(
    source: PictureSource, take: Callable[[np.ndarray], object], *, skip_corrupt: bool, visible: bool
) -> dict[int, str]:
    """Hand all frames to ``take`` in order, uint8 (n, H, W, 3) at a time; returns {frame: what is wrong}, black frames.

    Raises DatasetError that names the first damaged frame unless damage is skipped.
    """
    frames, step = source.store.frames, block_frames(source)
    damaged: dict[int, str] = {}
    with progress_if_slow(f"expanding {source}", frames, visible=visible) as advance:
        for start in range(0, frames, step):
            stop = min(start + step, frames)
            if skip_corrupt:
                block, lost = source.read_undamaged(start, stop)
                damaged |= lost
            else:
                block = source.read(start, stop)
            take(np.ascontiguousarray(block))
            advance(stop - start)
    return damaged


def block_frames(source: PictureSource) -> int:
    """Frames to read at once: whole chunks, of about BLOCK_BYTES."""
    chunk = source.array.chunks[0]
    return max(1, BLOCK_BYTES // (source.frame_bytes() * chunk)) * chunk


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.partial")
    partial.write_text(text)
    partial.replace(path)
