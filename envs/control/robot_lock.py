"""One control loop per robot: a lock that ends with the process that holds it."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from flowchunk.datasets.errors import RobotError

LOCKS = Path("/tmp")  # and not TMPDIR, which may be another one in another shell


@contextmanager
def only_loop(name: str) -> Iterator[None]:
    """Hold the lock of the robot of this name. Raises RobotError if another process has it."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    file = LOCKS / f"flowchunk-robot-{digest}.lock"
    try:
        lock = _locked(file)
    except OSError as error:
        raise RobotError(
            f"another control loop drives the robot {name}; stop it first (the lock {file}: {error.strerror})"
        ) from error
    with lock:
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def _locked(file: Path) -> IO[str]:
    """The file, opened and locked. Raises OSError."""
    while True:
        lock = file.open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, lock):
                return lock
        except OSError:
            lock.close()
            raise
        lock.close()  # its last owner has removed it in between: this lock would hold nobody off


def _is_at(file: Path, lock: IO[str]) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(lock.fileno()))
    except FileNotFoundError:
        return False
