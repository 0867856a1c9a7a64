"""flowchunk compare: policies tested on the same episodes, or diffusion objectives on one page.

usage: flowchunk compare [NAME=]RUN[,RUN ...] [NAME=]RUN ... [KEY=VALUE ...]
       flowchunk compare objectives [KEY=VALUE ...]

  RUN                              a run, or an eval.json of flowchunk eval or flowchunk run
  NAME=RUN,RUN,RUN                 runs of one method that differ only in the seed of their training
  episodes=N                       the first N episodes of each; evaluates those that are missing, under
                                   the conditions of those that are there, and adds them to eval.json
  stop=sequential  round=10        evaluate so many at a time, and stop once every pair is told apart
  measure=success|score            what is tested
  alpha=0.05                       the probability of any false alarm among all pairs
  seed=100000                      of the first episode of runs that were never evaluated
  num_envs=50  processes=1  device=cpu   as for flowchunk eval
  output_dir=DIR                   default: comparison

All must have the same task, environment and seeds. Two single runs: McNemar's exact test and the
paired bootstrap. Several runs: hierarchical bootstrap, training seeds and then episodes. Holm's
correction for the number of pairs; methods that share a letter cannot be told apart. Prints a table,
and that one is better only where its test says so. Writes DIR/compare.json and DIR/compare.html.

objectives:
  dataset.path=PATH                demonstrations of Push-T; without them its section is left out
  full=true                        five times the training, and 500 episodes
  processes=N                      models trained in parallel, one thread each (default: all cores)
  seed=0
  output_dir=DIR                   default: compare-objectives

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
    if not arguments:
        raise ConfigurationError("usage: flowchunk compare RUN RUN [KEY=VALUE ...], or flowchunk compare objectives")
    if arguments[0] == "objectives":
        compare(read_options("compare", arguments[1:]))
        return
    from flowchunk.cli.compare_runs import run_comparison

    run_comparison(arguments)


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
