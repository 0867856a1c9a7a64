"""The progress bar of training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import Progress, TextColumn


@contextmanager
def training_progress(steps: int, done: int, *, visible: bool) -> Iterator[Callable[[int, float], None]]:
    """A progress bar with the loss, once there is one, and the time left; yields ``advance(step, loss)``."""
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[loss]}"))
    with Progress(*columns, disable=not visible) as progress:
        task = progress.add_task("training", total=steps, completed=done, loss="")

        def advance(step: int, loss: float) -> None:
            progress.update(task, completed=step, loss="" if math.isnan(loss) else f"loss {loss:.4f}")

        yield advance
