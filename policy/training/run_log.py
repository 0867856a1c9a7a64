"""The metrics of a training run: JSON lines, TensorBoard and, optionally, Weights & Biases."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from flowchunk.datasets.errors import ConfigurationError

METRICS, WANDB_ID = "metrics.jsonl", "wandb_id.txt"


class RunLog:
    """Appends the metrics of a run to ``metrics.jsonl``, ``tensorboard/`` and, with wandb=True, W&B.

    start: the step that a resumed run continues from; later lines are of work that was lost, and are removed, and so is the
    evaluation of that step unless it ``is_evaluated``. A resumed run continues the same W&B run. Raises ConfigurationError
    if W&B is not installed.
    """

    def __init__(self, output_dir: Path, *, start: int = 0, is_evaluated: bool = True, wandb: bool = False) -> None:
        output_dir.mkdir(parents=True, exist_ok=True)

        def is_kept(entry: Mapping[str, Any]) -> bool:
            is_lost = entry["step"] == start and "score" in entry and not is_evaluated
            return entry["step"] <= start and not is_lost

        kept = [entry for entry in read_metrics(output_dir) if is_kept(entry)]
        rewritten = output_dir / f".{METRICS}.partial"
        rewritten.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
        rewritten.replace(output_dir / METRICS)
        self._file = (output_dir / METRICS).open("a")
        self._tensorboard = SummaryWriter(output_dir / "tensorboard", purge_step=start + 1)
        self._wandb = _start_wandb(output_dir) if wandb else None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step; its line is written to the file before this returns."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(metrics), step=step)

    def close(self) -> None:
        """Flush and close all logs."""
        self._file.close()
        self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(output_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``, in order; a last line that a crash cut off is ignored."""
    file = output_dir / METRICS
    entries = []
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


def _start_wandb(output_dir: Path) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ConfigurationError("logging.wandb=true needs W&B: pip install 'flowchunk[wandb]'") from error
    file = output_dir / WANDB_ID
    if not file.exists():
        file.write_text(uuid.uuid4().hex)
    return wandb.init(project="flowchunk", dir=output_dir, id=file.read_text(), resume="allow")
