"""A progress bar that appears only if the work takes longer than a moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

PATIENCE_S = 2.0


@contextmanager
def progress_if_slow(description: str, total: int, *, visible: bool = True) -> Iterator[Callable[[int], None]]:
    """Yield ``advance(amount)``; the bar, up to ``total``, appears after two seconds."""
    progress, is_shown, started = Progress(console=Console(), transient=True), False, time.monotonic()
    task = progress.add_task(description, total=total)

    def advance(amount: int) -> None:
        nonlocal is_shown
        progress.advance(task, amount)
        if visible and not is_shown and time.monotonic() - started > PATIENCE_S:
            is_shown = True
            progress.start()

    try:
        yield advance
    finally:
        if is_shown:
            progress.stop()
