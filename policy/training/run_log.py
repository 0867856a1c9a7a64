"""What a training run leaves to look at: JSON lines, TensorBoard, and Weights & Biases by a switch."""

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
    """Append metrics of a run to ``metrics.jsonl``, ``tensorboard/`` and, if asked, W&B.

    start: the step a resumed run continues from; lines past it come from work that a crash lost, and are dropped, and if
    it ``is_evaluated`` not yet, that of its evaluation too. A resumed run goes on in the same W&B run.
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
        """Log metrics of a step; the line is on disk when this returns."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(metrics), step=step)

    def close(self) -> None:
        """Flush and close all of them."""
        self._file.close()
        self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(output_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``, in order; a last line cut short by a crash is left out."""
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
