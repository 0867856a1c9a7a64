"""Command lines that train, and what they leave, for several tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def description(checkpoint: Path) -> dict[str, Any]:
    content = json.loads((checkpoint / "checkpoint.json").read_text())
    assert isinstance(content, dict)
    return content


def pusht(store: Path, run: Path, *more: str) -> list[str]:
    return ["train", "task=pusht_state", f"dataset.path={store}", f"output_dir={run}", *more]


def pickplace(store: Path, run: Path, *more: str) -> list[str]:
    return ["train", "task=pickplace_state", f"dataset.path={store}", f"output_dir={run}", *more]
