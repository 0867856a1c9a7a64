"""A new file or folder that is written beside its path, and renamed to it once it is complete and on the disk."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from pathlib import Path

from flowchunk.datasets.errors import DatasetError

PARTIAL = ".partial"  # suffix of an output until it is finished


class PartialOutput:
    """``path``, which does not exist yet, and ``partial``, ``PATH.<random>.partial``, where it is written until then.

    Raises DatasetError if ``path`` exists, since recordings are never overwritten.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        if self.path.exists():
            raise DatasetError(f"{self.path} exists already; choose another path, or move it away first")
        self.partial = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")

    def publish(self) -> None:
        """Flush ``partial`` to the disk and rename it to ``path``. Raises DatasetError if that exists by now."""
        for path in (*self.partial.rglob("*"), self.partial):
            _sync(path)
        try:
            if self.path.exists():  # a file would be replaced
                raise FileExistsError
            self.partial.rename(self.path)
        except OSError as error:
            if not self.path.exists():
                raise
            raise DatasetError(
                f"{self.path} exists by now, and recordings are never overwritten; choose another path"
            ) from error
        _sync(self.path.parent)

    def remove(self) -> None:
        """Delete ``partial``, if it exists."""
        if self.partial.is_file():
            self.partial.unlink()
        for _ in range(20):  # after an error in one of its threads, zarr's others may write one more file
            if not self.partial.exists():
                return
            shutil.rmtree(self.partial, ignore_errors=True)
            time.sleep(0.05)


def _sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
