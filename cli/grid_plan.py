"""A grid of trainings: every combination of the options' values, a folder for each."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from flowchunk.cli.options import read_options
from flowchunk.cli.runs import CONFIG, check_folder
from flowchunk.cli.train import config_of
from flowchunk.datasets.errors import ConfigurationError

OWN = ("output_dir", "training.resume")
"""Options that the grid itself gives to each training."""
OPENING, CLOSING, QUOTES = "([{", ")]}", "'\""
ONLY = "run"  # the name of a training without alternatives
LONGEST_NAME = 200


@dataclass(frozen=True)
class GridRun:
    """A training of the grid. values: of the options that differ between its runs; arguments: of ``flowchunk train``."""

    name: str
    folder: Path
    values: Mapping[str, str]
    arguments: tuple[str, ...]

    @property
    def command(self) -> list[str]:
        """Arguments of ``flowchunk train``, which start the run or resume it."""
        return [*self.arguments, "training.resume=true", f"output_dir={self.folder}"]


def plan_grid(arguments: Sequence[str], folder: Path) -> list[GridRun]:
    """The runs of a grid, checked, in the order of the arguments; the last option changes fastest.

    arguments: of ``flowchunk train``, with lists KEY=A,B of alternatives. Raises ConfigurationError for an option that cannot
    be used, for one that is given twice, and for a folder that holds a run with other options.
    """
    alternatives = [_alternatives(argument) for argument in arguments]
    _require_single_keys([key for key, _ in alternatives])
    differing = [key for key, values in alternatives if len(values) > 1]
    shown = _short_names(differing)
    runs = []
    for values in product(*(values for _, values in alternatives)):
        given = {key: value for (key, _), value in zip(alternatives, values, strict=True)}
        chosen = {key: given[key] for key in differing}
        name = "_".join(f"{shown[key]}={_for_path(value)}" for key, value in chosen.items()) or ONLY
        runs.append(GridRun(name, folder / name, chosen, tuple(f"{key}={value}" for key, value in given.items())))
    _require_distinct_names(runs)
    for run in runs:
        _check(run)
    return runs


def slurm_script(runs: Sequence[GridRun], *, processes: int) -> str:
    """A job-array script for Slurm, a task per run, of which so many run at a time."""
    folder = runs[0].folder.parent.absolute()
    cases = "\n".join(
        f"  {number}) run={shlex.quote(str(run.folder.absolute()))}; arguments=({shlex.join(run.arguments)}) ;;"
        for number, run in enumerate(runs)
    )
    return f"""#!/bin/bash
#SBATCH --job-name=flowchunk-grid
#SBATCH --array=0-{len(runs) - 1}%{processes}
#SBATCH --cpus-per-task=1
#SBATCH --output=/dev/null
# Written by flowchunk grid. Submit it again to resume what was interrupted; afterwards the same flowchunk grid command,
# without print=slurm, collects the runs in {shlex.quote(str(folder))}.
set -eu
export OMP_NUM_THREADS="${{SLURM_CPUS_PER_TASK:-1}}"
case "$SLURM_ARRAY_TASK_ID" in
{cases}
  *) echo "there is no run $SLURM_ARRAY_TASK_ID" >&2; exit 2 ;;
esac
mkdir -p "$run"
exec flowchunk train "${{arguments[@]}}" training.resume=true "output_dir=$run" >> "$run/log.txt" 2>&1
"""


def _alternatives(argument: str) -> tuple[str, list[str]]:
    """The key of an argument, and its values: parts between commas that stand in no brackets or quotes."""
    key, separator, text = argument.partition("=")
    if not separator or key.startswith(("-", "+", "~")) or not key:
        raise ConfigurationError(f"expected KEY=VALUE or KEY=VALUE,VALUE, but got {argument!r}; see --help")
    if key in OWN:
        raise ConfigurationError(f"{argument}: the grid gives {key} to each run; leave it out")
    values = [text] if Path(text).expanduser().exists() else [*_split(text)]
    if len(values) > 1 and "" in values:
        raise ConfigurationError(f"{argument} has an empty value; remove a comma")
    if double := [value for value, count in Counter(values).items() if count > 1]:
        raise ConfigurationError(f"{argument} has the value {double[0]} twice; remove one")
    return key, values


def _split(text: str) -> Iterator[str]:
    depth, quote, start = 0, "", 0
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in QUOTES:
            quote = letter
        elif letter == "," and depth == 0:
            yield text[start:place]
            start = place + 1
        else:
            depth += (letter in OPENING) - (letter in CLOSING)
    yield text[start:]


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each key, or all of it if another ends in the same."""
    last = {key: key.rpartition(".")[2] for key in keys}
    counts = Counter(last.values())
    return {key: name if counts[name] == 1 else key for key, name in last.items()}


def _for_path(value: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", value).strip("-")


def _require_single_keys(keys: Sequence[str]) -> None:
    if double := [key for key, count in Counter(keys).items() if count > 1]:
        raise ConfigurationError(f"{double[0]} is given twice; give all of its values once: {double[0]}=A,B")


def _require_distinct_names(runs: Sequence[GridRun]) -> None:
    for name, count in Counter(run.name for run in runs).items():
        if count > 1:
            same = " and ".join(str(dict(run.values)) for run in runs if run.name == name)
            raise ConfigurationError(f"{same} would have the same folder, {name}; run them as two grids")
        if len(name) > LONGEST_NAME:
            raise ConfigurationError(f"the folder {name} would have too long a name; run a grid of fewer options")


def _check(run: GridRun) -> None:
    """Raise ConfigurationError if a run's options cannot be used, or if its folder holds a run with others."""
    config = config_of(run.arguments)
    options = read_options(config, run.command)
    is_derived = config == "train" and options["task"]["env_id"] is None  # then flowchunk train compares them
    if (run.folder / CONFIG).exists() and not is_derived:
        check_folder(options)
