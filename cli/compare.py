"""flowchunk compare: the history of diffusion objectives side by side, measured on one page.

usage: flowchunk compare objectives [KEY=VALUE ...]

  dataset.path=PATH                Push-T's demonstrations; without them that section is left out
  output_dir=DIR                   default: compare-objectives
  full=true                        five times the training, and 500 episodes
  processes=N                      models trained side by side, one thread each (default: the cores)
  seed=0

Trains every objective with every schedule on two toys, seven named pairs on digits, and five objectives on Push-T, all
with the same network, budget, loss and sampler. Each model is a cell: a cell that is done is not done again, one that
was interrupted goes on. Writes DIR/index.html, which needs no other file.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from flowchunk.cli.comparison.cells import Cell, all_cells, run_cell
from flowchunk.cli.comparison.page import write_page
from flowchunk.cli.options import read_options
from flowchunk.cli.reports import print_written
from flowchunk.datasets.errors import ConfigurationError, DatasetError


def run(arguments: list[str]) -> None:
    """Compare as the arguments say."""
    if not arguments or arguments[0] != "objectives":
        raise ConfigurationError("say what to compare: flowchunk compare objectives [KEY=VALUE ...]")
    compare(read_options("compare", arguments[1:]))


def compare(options: dict[str, Any]) -> Path:
    """Compare with the options of ``schemas.COMPARE``; returns the path of the page."""
    console, folder = Console(), Path(options["output_dir"]).expanduser()
    path, processes = options["dataset"]["path"], options["processes"]
    processes = (os.cpu_count() or 1) if processes is None else processes
    if path is not None and not Path(path).exists():
        raise DatasetError(f"dataset.path={path}: there is nothing; give Push-T's demonstrations or leave it out")
    if processes < 1:
        raise ConfigurationError(f"processes={processes} must be at least 1")
    cells = all_cells(options)
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes to come: threads of many would get in each other's way
    with Progress(console=console) as progress:
        task = progress.add_task(f"training and measuring {len(cells)} models", total=len(cells))
        _run_cells(cells, folder / "cells", processes=processes, advance=lambda: progress.advance(task))
    page = write_page(folder, cells)
    print_written(console, page)
    return page


def _run_cells(cells: Sequence[Cell], folder: Path, *, processes: int, advance: Callable[[], None]) -> None:
    """Every cell, so many side by side. An error or Ctrl-C stops all at once: cells go on where they were another time."""
    others = set(multiprocessing.active_children())
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=_leave_interruptions_to_the_parent) as pool:
        futures = [pool.submit(run_cell, cell, folder) for cell in cells]
        try:
            for future in as_completed(futures):
                future.result()
                advance()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


def _leave_interruptions_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
