"""What folders hold, so that a test can tell that nothing in them was touched."""

from __future__ import annotations

from pathlib import Path


def contents(*folders: Path) -> dict[Path, bytes]:
    """Every file in the folders and below, and its bytes."""
    return {path: path.read_bytes() for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()}
