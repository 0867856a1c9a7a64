"""flowchunk grid: train with every combination of some options, several at a time.

usage: flowchunk grid train KEY=VALUE ... KEY=A,B ... output_dir=DIR [processes=N] [print=slurm]

  KEY=VALUE           an option of flowchunk train, such as task=pusht_state dataset.path=PATH
  KEY=A,B             its alternatives, such as network.width=128,256 seed=0,1,2; every combination is trained
  processes=N         trainings at a time, one thread each (default: all cores)
  print=slurm         print a job-array script for Slurm, and train nothing
  output_dir=DIR      holds a folder for each training, named by the options that differ

The same command continues an interrupted grid: finished trainings are skipped, others are resumed. One that fails does
not stop the others; its error is reported at the end, and is in DIR/NAME/log.txt. Prints a table, and writes
DIR/grid.json and DIR/grid.html, with the best and the final scores of all.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from flowchunk.cli.grid_plan import GridRun, plan_grid, slurm_script
from flowchunk.cli.grid_report import write_grid
from flowchunk.cli.grid_training import LOG, Trainings, is_finished, result_of
from flowchunk.cli.options import read_options
from flowchunk.cli.report_schemas import GRID
from flowchunk.datasets.errors import ConfigurationError, TrainingError

SLURM = "slurm"


def run(arguments: list[str]) -> None:
    """Train a grid with command-line arguments."""
    if arguments[:1] != ["train"]:
        raise ConfigurationError("usage: flowchunk grid train KEY=VALUE ... KEY=A,B ... output_dir=DIR; see --help")
    own = [argument for argument in arguments[1:] if argument.partition("=")[0] in GRID]
    train_grid([argument for argument in arguments[1:] if argument not in own], read_options("grid", own))


def train_grid(arguments: Sequence[str], options: dict[str, Any]) -> Path | None:
    """Train every combination, or print a script, with the options of ``schemas.GRID``; returns ``grid.json``, if written.

    arguments: of ``flowchunk train``, with lists of alternatives. Raises ConfigurationError before anything is trained if an
    option cannot be used, TrainingError at the end if trainings failed.
    """
    processes = (os.cpu_count() or 1) if options["processes"] is None else options["processes"]
    if processes < 1:
        raise ConfigurationError(f"processes={processes} must be at least 1")
    if options["print"] not in (None, SLURM):
        raise ConfigurationError(f"print={options['print']}: there is {SLURM}")
    folder = Path(options["output_dir"]).expanduser()
    runs = plan_grid(arguments, folder)
    if options["print"] == SLURM:
        print(slurm_script(runs, processes=processes), end="")
        return None
    folder.mkdir(parents=True, exist_ok=True)
    console = Console()
    errors = _train(console, runs, processes=processes)
    file = write_grid(console, folder, [result_of(run, errors.get(run.name)) for run in runs])
    if errors:
        reasons = "; ".join(f"{name}: {error}" for name, error in errors.items())
        raise TrainingError(
            f"{len(errors)} of {len(runs)} trainings failed ({reasons}); see {folder}/NAME/{LOG}, and run the same command "
            "again to resume them"
        )
    return file


def _train(console: Console, runs: Sequence[GridRun], *, processes: int) -> dict[str, str]:
    """Train what is not finished yet; returns the errors by the runs' names."""
    waiting = [run for run in runs if not is_finished(run)]
    if len(waiting) < len(runs):
        console.print(f"{len(runs) - len(waiting)} of {len(runs)} trainings are finished already", highlight=False)
    with Progress(console=console) as progress:
        task = progress.add_task(f"training {len(waiting)} runs", total=len(waiting))
        return Trainings().run_all(waiting, processes=processes, advance=lambda: progress.advance(task))
