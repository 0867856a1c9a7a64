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
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from flowchunk.cli.comparison.cells import all_cells, run_cell
from flowchunk.cli.comparison.page import write_page
from flowchunk.cli.options import read_options
from flowchunk.datasets.errors import ConfigurationError, DatasetError


def run(arguments: list[str]) -> None:
    """Compare as the arguments say."""
    if not arguments or arguments[0] != "objectives":
        raise ConfigurationError("say what to compare: flowchunk compare objectives [KEY=VALUE ...]")
    compare(read_options("compare", arguments[1:]))


def compare(options: dict[str, Any]) -> Path:
    """Compare with the options of ``configs/compare.yaml``; returns the path of the page."""
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
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn) as pool, Progress(console=console) as progress:
        task = progress.add_task(f"training and measuring {len(cells)} models", total=len(cells))
        futures = {pool.submit(run_cell, cell, folder / "cells"): cell for cell in cells}
        try:
            for future in as_completed(futures):
                future.result()
                progress.advance(task)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    page = write_page(folder, cells)
    console.print(f"written: {page}")
    return page
