"""Ways to damage a data set, and to notice it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowchunk.datasets.derived_specs import SpecOptions, derive_specs
from flowchunk.datasets.formats import open_dataset
from flowchunk.datasets.image_reader import ImageReader
from tests.datasets.formats.foreign import (
    FRAMES,
    HZ,
)


def truncate(file: Path, part: float = 0.5) -> None:
    """Keep only the first part of a file, as an interrupted copy does."""
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * part)])


def edit_info(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change ``meta/info.json`` of a LeRobot data set."""
    file = path / "meta" / "info.json"
    info = json.loads(file.read_text())
    change(info)
    file.write_text(json.dumps(info))


def read_everything(path: Path) -> None:
    """Open, describe and read every key, as training does."""
    source = open_dataset(path)
    specs = derive_specs(source, SpecOptions(control_hz=HZ))
    for key, field in specs.observation_spec.fields.items():
        if field.is_image:
            ImageReader.find(source, key, field).read(0, FRAMES)
        else:
            source.read(key)
    source.read("action")
