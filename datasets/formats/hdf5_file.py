"""A new HDF5 file on a disk that may become full.

HDF5 crashes the process if it cannot write what it still holds when a file is closed, so it must not notice: the file that it
is given keeps the first error, drops everything from then on, and the error is raised where Python can handle it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py

LIBRARY_VERSIONS = ("v108", "v110")  # of HDF5; earlier formats hold attributes of up to 64 kB, 4,096 texts


class HDF5File:
    """``root`` is the file's root group. Creates ``path``, which must not exist."""

    def __init__(self, path: Path) -> None:
        self._disk = _Disk(path)
        self.root = h5py.File(self._disk, "w", libver=LIBRARY_VERSIONS)

    def flush(self) -> None:
        """Write what HDF5 still holds. Raises OSError if this or an earlier write failed."""
        self.root.flush()
        self._disk.raise_error()

    def close(self) -> None:
        """Complete the file. Raises OSError if a write failed."""
        self.root.close()
        self._disk.close()
        self._disk.raise_error()

    def abandon(self) -> None:
        """Close the file, which is of no use."""
        with suppress(OSError, RuntimeError):
            self.root.close()
        self._disk.close()


class _Disk(io.FileIO):
    """A file in which writing never fails; see the module's docstring."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "x+")
        self._error: OSError | None = None

    def write(self, data: Any) -> int:
        remaining = memoryview(data)
        with self._kept_error():
            while remaining and self._error is None:
                remaining = remaining[super().write(remaining) :]
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        with self._kept_error():
            super().truncate(size)
        return self.tell() if size is None else size

    def raise_error(self) -> None:
        """Raise the first error, if there was one."""
        if self._error is not None:
            raise self._error

    @contextmanager
    def _kept_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._error = self._error or error
