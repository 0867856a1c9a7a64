"""Notice that a process was killed before its pipe closes."""

from __future__ import annotations

from pathlib import Path

HAS_PROC = Path("/proc/self/statm").exists()


def is_ending(pid: int) -> bool:
    """Whether a process has ended or is about to; False on systems that do not tell.

    A killed process closes its pipes after the kernel has freed its memory, which for that of torch takes more than a tenth
    of a second. That it has given up its memory can be read much earlier.
    """
    if not HAS_PROC:
        return False
    try:
        with Path(f"/proc/{pid}/statm").open("rb", buffering=0) as file:
            return file.read(2) == b"0 "
    except (FileNotFoundError, ProcessLookupError):
        return True
