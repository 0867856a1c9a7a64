"""Small ``eval.json`` files, as ``flowchunk eval`` writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPORT = {
    "step": 6,
    "seed": 100_000,
    "nfe": 4,
    "task": "pusht_state",
    "env_id": "flowchunk/PushT-v1",
    "env": {"observation": "state"},
    "solver": "euler",
    "noise_scale": 1.0,
    "n_action_steps": 4,
    "strategy": "synchronous",
    "prefix_method": None,
    "reanchor_steps": 0,
    "delay": {"steps": 0, "jitter": 0, "drop": 0.0, "seed": 0},
    "versions": {"mujoco": "3.3.0", "gymnasium": "1.1"},
    "seeds_overlap_selection": False,
}


def write_evaluation(
    run: Path, successes: Sequence[int], scores: Sequence[float] | None = None, **changes: Any
) -> Path:
    """An evaluation of a run that need not exist, with these outcomes; returns the run. changes: to the report."""
    report = {**REPORT, "checkpoint": str(run / "checkpoints" / "best"), **changes}
    outcomes = zip(successes, successes if scores is None else scores, strict=True)
    report["episodes"] = [
        {"seed": report["seed"] + number, "score": float(score), "success": bool(success), "steps": 40}
        for number, (success, score) in enumerate(outcomes)
    ]
    (run / "eval").mkdir(parents=True, exist_ok=True)
    (run / "eval" / "eval.json").write_text(json.dumps(report))
    return run
