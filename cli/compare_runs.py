"""Compare policies on the same episodes; the arguments are explained in ``flowchunk.cli.compare``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from flowchunk.cli.compare_evaluations import (
    Evaluation,
    outcomes_of,
    require_comparable,
    require_one_method,
    require_same_number,
)
from flowchunk.cli.compare_report import write_comparison
from flowchunk.cli.options import read_options
from flowchunk.cli.schemas import COMPARE_RUNS
from flowchunk.datasets.errors import ConfigurationError
from flowchunk.policy.evaluation.method_comparison import MEASURES, compare_methods, undecided_pairs

Methods = Mapping[str, Sequence[Evaluation]]
SEQUENTIAL = "sequential"


@dataclass(frozen=True)
class Episodes:
    """How many episodes were compared, and how many were planned."""

    used: int
    planned: int


def run_comparison(arguments: Sequence[str]) -> Path:
    """Compare with command-line arguments; returns the path of ``compare.json``. Raises ConfigurationError."""
    given = [argument for argument in arguments if _is_option(argument)]
    options = read_options("compare_runs", given)
    return compare_runs(_methods([argument for argument in arguments if argument not in given]), options)


def compare_runs(paths: Mapping[str, Sequence[str]], options: Mapping[str, Any]) -> Path:
    """Compare methods, each by its runs, with the options of ``schemas.COMPARE_RUNS``; returns ``compare.json``.

    Raises ConfigurationError for options that cannot be used, and for runs that cannot be compared, which it names.
    """
    console = Console()
    _check(paths, options)
    methods = {name: [Evaluation.find(path) for path in group] for name, group in paths.items()}
    every = [evaluation for group in methods.values() for evaluation in group]
    if options["episodes"] is None and (missing := [found.path for found in every if not found.report]):
        raise ConfigurationError(
            f"{', '.join(missing)}: no evaluation; run flowchunk eval {missing[0]}, or give episodes=N, which evaluates what "
            "is missing"
        )
    for evaluation in every:
        evaluation.prepare(options, console)
    require_comparable(every)
    if options["seed"] is not None and options["seed"] != (seed := every[0].report["seed"]):
        raise ConfigurationError(f"seed={options['seed']}: these runs were evaluated from seed {seed}; leave it out")
    for name, group in methods.items():
        require_one_method(name, group)
    episodes = _evaluated(methods, options, console)
    outcomes = {name: outcomes_of(group, episodes.used) for name, group in methods.items()}
    is_sequential = options["stop"] == SEQUENTIAL
    comparison = compare_methods(outcomes, measure=options["measure"], alpha=options["alpha"], sequential=is_sequential)
    return write_comparison(
        console, Path(options["output_dir"]).expanduser(), comparison, methods, planned=episodes.planned
    )


def _evaluated(methods: Methods, options: Mapping[str, Any], console: Console) -> Episodes:
    """Evaluate what is missing; with stop=sequential only until every pair is told apart."""
    every = [evaluation for group in methods.values() for evaluation in group]
    if (planned := options["episodes"]) is None:
        number = require_same_number(every)
        return Episodes(number, number)
    step = options["round"] if options["stop"] == SEQUENTIAL else planned
    for used in [*range(step, planned, step), planned]:
        for evaluation in every:
            evaluation.complete(used, options, console)
        if options["stop"] == SEQUENTIAL:
            outcomes = {name: outcomes_of(group, used) for name, group in methods.items()}
            if not undecided_pairs(outcomes, measure=options["measure"], alpha=options["alpha"]):
                break
    return Episodes(used, planned)


def _is_option(argument: str) -> bool:
    key, separator, _ = argument.partition("=")
    return argument.startswith(("-", "+", "~")) or (bool(separator) and key in COMPARE_RUNS)


def _methods(arguments: Sequence[str]) -> dict[str, list[str]]:
    """The paths of each method's runs: of NAME=RUN,RUN, or of a path, which is named by its folder."""
    unnamed = [argument for argument in arguments if "=" not in argument or Path(argument).expanduser().exists()]
    folders = [_name(path) for path in unnamed]
    methods: dict[str, list[str]] = {}
    for argument in arguments:
        if argument in unnamed:
            name, runs = _name(argument), [argument]
            name = argument if folders.count(name) > 1 else name
        else:
            name, _, listed = argument.partition("=")
            runs = [listed] if Path(listed).expanduser().exists() else listed.split(",")
            _require_paths(name, runs)
        if name in methods:
            raise ConfigurationError(f"two methods are called {name}; give them other names with NAME=RUN")
        methods[name] = runs
    return methods


def _name(path: str) -> str:
    """The name of a run's folder."""
    parts = [part for part in Path(path).expanduser().absolute().parts if part not in ("eval.json", "eval")]
    return parts[-1]


def _require_paths(name: str, runs: Sequence[str]) -> None:
    if missing := [run for run in runs if not run or not Path(run).expanduser().exists()]:
        near = difflib.get_close_matches(name, COMPARE_RUNS, n=1)
        raise ConfigurationError(
            f"{name}={','.join(runs)}: there is no run at {missing[0] or 'an empty path'}; give NAME=RUN,RUN"
            + (f", or did you mean the option {near[0]}?" if near else "")
        )


def _check(paths: Mapping[str, Sequence[str]], options: Mapping[str, Any]) -> None:
    if len(paths) < 2:
        raise ConfigurationError(
            f"expected two runs or more to compare, but got {', '.join(paths) or 'none'}; give flowchunk compare RUN RUN, or "
            "flowchunk compare objectives"
        )
    if options["measure"] not in MEASURES:
        raise ConfigurationError(f"measure={options['measure']}: there are {', '.join(MEASURES)}")
    if not 0 < options["alpha"] < 1:
        raise ConfigurationError(f"alpha={options['alpha']} must lie between 0 and 1")
    for name in ("episodes", "round", "num_envs"):
        if options[name] is not None and options[name] < 1:
            raise ConfigurationError(f"{name}={options[name]} must be at least 1")
    if options["stop"] not in (None, SEQUENTIAL):
        raise ConfigurationError(f"stop={options['stop']}: there is {SEQUENTIAL}")
    if options["stop"] == SEQUENTIAL:
        if options["episodes"] is None:
            raise ConfigurationError(f"stop={SEQUENTIAL} needs episodes=N, the number to stop at the latest")
        if several := [name for name, group in paths.items() if len(group) > 1]:
            raise ConfigurationError(
                f"stop={SEQUENTIAL} compares single runs, but {several[0]} has {len(paths[several[0]])}; leave it out"
            )
