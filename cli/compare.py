"""flowchunk compare: diffusion objectives side by side, measured on one page.

usage: flowchunk compare objectives [KEY=VALUE ...]

  dataset.path=PATH                demonstrations of Push-T; without them its section is left out
  output_dir=DIR                   default: compare-objectives
  full=true                        five times the training, and 500 episodes
  processes=N                      models trained in parallel, one thread each (default: all cores)
  seed=0

Trains every objective with every schedule on two toys, seven named pairs on digits, and five
objectives on Push-T, all with the same network, budget, loss and sampler. Each model is a variant:
finished variants are skipped, interrupted ones are resumed. Writes DIR/index.html, a page without
external files, and DIR/results.json, from which it can be rendered again.
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

from flowchunk.cli.comparison.page import write_page
from flowchunk.cli.comparison.variants import Variant, all_variants, run_variant
from flowchunk.cli.options import read_options
from flowchunk.cli.reports import print_written
from flowchunk.datasets.errors import ConfigurationError, DatasetError


def run(arguments: list[str]) -> None:
    """Compare with command-line arguments."""
    if not arguments or arguments[0] != "objectives":
        raise ConfigurationError("usage: flowchunk compare objectives [KEY=VALUE ...]")
    compare(read_options("compare", arguments[1:]))


def compare(options: dict[str, Any]) -> Path:
    """Compare with the options of ``schemas.COMPARE``; returns the path of the page."""
    console, folder = Console(), Path(options["output_dir"]).expanduser()
    path, processes = options["dataset"]["path"], options["processes"]
    processes = (os.cpu_count() or 1) if processes is None else processes
    if path is not None and not Path(path).exists():
        raise DatasetError(f"dataset.path={path}: it does not exist; give demonstrations of Push-T, or leave it out")
    if processes < 1:
        raise ConfigurationError(f"processes={processes} must be at least 1")
    variants = all_variants(options)
    (folder / "variants").mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the worker processes, whose threads would compete for the cores
    with Progress(console=console) as progress:
        task = progress.add_task(f"training and measuring {len(variants)} models", total=len(variants))
        _run_variants(variants, folder / "variants", processes=processes, advance=lambda: progress.advance(task))
    page = write_page(folder, variants)
    print_written(console, page)
    return page


def _run_variants(variants: Sequence[Variant], folder: Path, *, processes: int, advance: Callable[[], None]) -> None:
    """Run every variant, so many in parallel. An error or Ctrl-C stops all at once; they can be resumed."""
    others = set(multiprocessing.active_children())
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=_ignore_interruptions) as pool:
        futures = [pool.submit(run_variant, variant, folder) for variant in variants]
        try:
            for future in as_completed(futures):
                future.result()
                advance()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


def _ignore_interruptions() -> None:
    """Leave Ctrl-C, which reaches every process of the terminal, to the parent process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
