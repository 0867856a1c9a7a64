"""flowchunk sweep: what more network calls buy, in quality and in time.

usage: flowchunk sweep CHECKPOINT ["nfe=[1,2,4,8,16,100]"] [KEY=VALUE ...]

  CHECKPOINT                       a run directory (its best, else last) or a checkpoint directory
  nfe=[1,2,4]                      numbers of network calls; those that the checkpoint does not admit are shown as -
  solver=NAME                      another way through the same field than the checkpoint's
  episodes=200  seed=100000        policies: episodes in simulation for each number, the same ones
  noise_scale=1.0                  policies: what the starting noise is multiplied by
  num_envs=50  n_action_steps=N  env_id=ID  env.KEY=VALUE
  device=cpu|auto|cuda|cuda:N|mps  where the network runs, its latency included
  n=N  guidance=1.0                models of toys and pictures: samples for each number
  output_dir=DIR                   default: RUN/sweep

Prints a table (score and success with its interval, or the measures beside their floors; latency at batch 1 on one
thread), and writes DIR/sweep.json, row by row as they are measured, and DIR/sweep.png.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy.stats import bootstrap

from flowchunk.cli.domains.domain import Samples, figure, save
from flowchunk.cli.eval import PolicyEvaluation
from flowchunk.cli.generate import (
    Spread,
    against_data,
    as_numbers,
    data_draws,
    domain_of,
    floors,
    how_many,
    load,
    samples_like_data,
)
from flowchunk.cli.options import read_options, take_checkpoint
from flowchunk.cli.reports import print_table, print_written, table_of, write_report
from flowchunk.cli.train_generative import generate_like
from flowchunk.datasets.errors import ConfigurationError
from flowchunk.policy.checkpoint import find_checkpoint, find_run, read_json
from flowchunk.policy.chunk_policy import KIND as CHUNK_POLICY
from flowchunk.policy.devices import choose_device
from flowchunk.policy.evaluation.intervals import wilson_interval
from flowchunk.policy.evaluation.latency import latency_ms

Row = dict[str, Any]
RESAMPLINGS = 2000


def run(arguments: list[str]) -> None:
    """Sweep as the arguments say."""
    checkpoint, overrides = take_checkpoint("sweep", arguments)
    sweep(checkpoint, read_options("sweep", overrides))


@dataclass(frozen=True)
class Subject:
    """What is swept. check: raises ConfigurationError for a number of calls that is not admitted. conditions: what else
    the numbers depend on. floor: measures of data against data, for the rows to be seen beside."""

    check: Callable[[int], object]
    measure: Callable[[int], Row]
    conditions: Row
    floor: Callable[[], Row]


def sweep(checkpoint: str | Path, options: Mapping[str, Any]) -> Path:
    """Sweep with the options of ``schemas.SWEEP``; returns the path of ``sweep.json``."""
    directory = find_checkpoint(checkpoint)
    numbers = options["nfe"]
    if not numbers or not all(type(nfe) is int and nfe >= 1 for nfe in numbers):
        raise ConfigurationError(f"nfe={numbers}: expected a list of whole numbers of at least 1, such as [1,2,4]")
    output_dir = Path(options["output_dir"] or find_run(directory) / "sweep").expanduser()
    kind = read_json(directory / "checkpoint.json").get("kind")
    console = Console()
    subject = (_of_policy if kind == CHUNK_POLICY else _of_generative_model)(directory, options, console)
    refusals = {nfe: reason for nfe in numbers if (reason := _refusal(subject, nfe)) is not None}
    if len(refusals) == len(set(numbers)):
        raise ConfigurationError(f"none of nfe={numbers} is admitted: {refusals[numbers[0]]}")
    output_dir.mkdir(parents=True, exist_ok=True)
    file = output_dir / "sweep.json"
    about = {"checkpoint": str(directory), "kind": kind, "seed": options["seed"], **subject.conditions}
    report: Row = {**about, "floor": subject.floor(), "rows": []}
    with Progress(console=console) as progress:
        for nfe in progress.track(numbers, description="sweeping"):
            found = {"refused": refusals[nfe]} if nfe in refusals else subject.measure(nfe)
            report["rows"].append({"nfe": nfe, **found})
            write_report(file, report)
    print_table(console, str(directory), _table(report))
    print_written(console, file, _plot(report, output_dir / "sweep.png"))
    return file


def _refusal(subject: Subject, nfe: int) -> str | None:
    try:
        subject.check(nfe)
    except ConfigurationError as error:
        return str(error)
    return None


def _of_policy(directory: Path, options: Mapping[str, Any], console: Console) -> Subject:
    """Score and success in simulation, on the same episodes for each number of calls."""
    evaluation = PolicyEvaluation.load(directory, options, console=console)

    def measure(nfe: int) -> Row:
        result = evaluation.run(nfe=nfe)
        return {
            "score": result.score_mean,
            "score_ci95": _interval_of_mean(np.array([episode.score for episode in result.episodes])),
            "success": result.success_rate,
            "success_ci95": list(wilson_interval(result.successes, len(result.episodes))),
            "latency_ms": evaluation.latency_ms(nfe),
        }

    conditions = {**evaluation.conditions(), "episodes": options["episodes"]}
    return Subject(lambda nfe: evaluation.policy.with_sampling(nfe=nfe), measure, conditions, floor=dict)


def _interval_of_mean(scores: np.ndarray) -> list[float]:
    """The middle 95 % of bootstrapped means; a single score says nothing of how far it is off."""
    if len(scores) == 1:
        return [float(scores[0])] * 2
    drawn = bootstrap((scores,), np.mean, n_resamples=RESAMPLINGS, method="percentile", rng=0)
    return [float(end) for end in drawn.confidence_interval]


def _of_generative_model(directory: Path, options: Mapping[str, Any], console: Console) -> Subject:
    """The domain's measures, against the same data for each number of calls."""
    if options["noise_scale"] is not None:
        raise ConfigurationError(f"noise_scale={options['noise_scale']} is for robots' policies; leave it out")
    model = load(directory, solver=options["solver"], device=choose_device(options["device"]))
    domain, guidance = domain_of(directory), options["guidance"]
    n = how_many(options["n"], domain)
    draws = data_draws(domain, n)
    alone = Samples(**draws[0][0].batch(torch.arange(1)))

    def measure(nfe: int) -> Row:
        made = samples_like_data(model, domain, n, nfe=nfe, seed=options["seed"], guidance=guidance)

        def one(number: int) -> None:
            generate_like(model, alone, nfe=nfe, seed=number, guidance=guidance)

        latency = latency_ms(one, calls=20, warm_up=3)
        return {**_flat(against_data(domain, made, draws)), "latency_ms": latency}

    conditions = {
        "task": read_json(directory / "checkpoint.json")["training"]["task"],
        "n": n,
        "guidance": guidance,
        "solver": model.objective.solver_name(model.config.sampling),
        "device": str(model.model.device),
        "versions": {name: version(name) for name in ("flowchunk", "torch", "numpy")},
    }
    return Subject(
        check=lambda nfe: model.with_sampling(nfe=nfe, guidance=guidance),
        measure=measure,
        conditions=conditions,
        floor=lambda: _flat(floors(domain, draws)),
    )


def _flat(spreads: Mapping[str, Spread]) -> Row:
    return {key: value for name, spread in spreads.items() for key, value in as_numbers(name, spread).items()}


def _table(report: Row) -> Table:
    names = [name for name in _measured(report) if name != "latency_ms"]
    table = table_of("nfe", *names, "latency p50 / p95")
    for row in report["rows"]:
        if "refused" in row:
            table.add_row(str(row["nfe"]), *["-"] * (len(names) + 1))
            continue
        latency = f"{row['latency_ms']['p50']:.1f} / {row['latency_ms']['p95']:.1f} ms"
        table.add_row(str(row["nfe"]), *(_cell(row, name) for name in names), latency)
    if report["floor"]:
        table.add_row("floor", *(_cell(report["floor"], name) for name in names), "")
    return table


def _cell(row: Row, name: str) -> str:
    if (interval := row.get(f"{name}_ci95")) is not None:
        return f"{row[name]:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
    return str(Spread(row[name], row.get(f"{name}_std")))


def _measured(report: Row) -> list[str]:
    row = next(row for row in report["rows"] if "refused" not in row)
    return [name for name in row if name != "nfe" and not name.endswith(("_ci95", "_std"))]


def _plot(report: Row, file: Path) -> Path:
    """Every measure against the number of network calls, with its interval or its floor."""
    rows = [row for row in report["rows"] if "refused" not in row]
    names = _measured(report)
    drawn, axes = figure(1, len(names), size=3.6)
    calls = [row["nfe"] for row in rows]
    for name, ax in zip(names, axes[0], strict=True):
        values = [row[name]["p50"] if name == "latency_ms" else row[name] for row in rows]
        ax.plot(calls, values, marker="o")
        ax.set(xscale="log", xlabel="network calls", title=name.replace("_", " "), xticks=calls, xticklabels=calls)
        ax.minorticks_off()
        if f"{name}_ci95" in rows[0]:
            ax.fill_between(calls, *zip(*(row[f"{name}_ci95"] for row in rows), strict=True), alpha=0.2)
        if name in report["floor"]:
            ax.axhline(report["floor"][name], color="0.5", ls="--", label="data against data")
            ax.legend()
    return save(drawn, file)
