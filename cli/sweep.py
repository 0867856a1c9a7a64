"""flowchunk sweep: what more network calls buy, in quality and in time.

usage: flowchunk sweep CHECKPOINT ["nfe=[1,2,4,8,16,100]"] [KEY=VALUE ...]

  CHECKPOINT                       a run directory (its best, else last) or a checkpoint directory
  nfe=[1,2,4]                      numbers of network calls; those that the checkpoint does not admit are shown as -
  solver=NAME                      another way through the same field than the checkpoint's
  episodes=200  seed=100000        policies: episodes in simulation for each number, the same ones
  num_envs=50  n_action_steps=N  env_id=ID  env.KEY=VALUE
  n=N  guidance=1.0                models of toys and pictures: samples for each number
  output_dir=DIR                   default: RUN/sweep

Prints a table (score and success with its interval, or the measures beside their floors; latency at batch 1 on one
thread), and writes DIR/sweep.json and DIR/sweep.png.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy.stats import bootstrap

from flowchunk.cli.domains.domain import Samples, figure, save
from flowchunk.cli.eval import set_up
from flowchunk.cli.generate import DATA_SEED, domain_of, floors, how_many, load, samples_like_data
from flowchunk.cli.latency import latency_ms
from flowchunk.cli.options import read_options
from flowchunk.cli.train_generative import generate_like
from flowchunk.datasets.errors import ConfigurationError
from flowchunk.policy.checkpoint import find_checkpoint, read_json, run_of
from flowchunk.policy.chunk_policy import KIND as CHUNK_POLICY
from flowchunk.policy.evaluation.intervals import wilson_interval

Row = dict[str, Any]
RESAMPLINGS = 2000


def run(arguments: list[str]) -> None:
    """Sweep as the arguments say."""
    if not arguments or "=" in arguments[0]:
        raise ConfigurationError("give the checkpoint first: flowchunk sweep CHECKPOINT [KEY=VALUE ...]")
    sweep(arguments[0], read_options("sweep", arguments[1:]))


def sweep(checkpoint: str | Path, options: Mapping[str, Any]) -> Path:
    """Sweep with the options of ``configs/sweep.yaml``; returns the path of ``sweep.json``."""
    directory = find_checkpoint(checkpoint)
    numbers = options["nfe"]
    if not numbers or not all(type(nfe) is int and nfe >= 1 for nfe in numbers):
        raise ConfigurationError(f"nfe={numbers}: expected a list of whole numbers of at least 1, such as [1,2,4]")
    output_dir = Path(options["output_dir"] or run_of(directory) / "sweep").expanduser()
    kind = read_json(directory / "checkpoint.json").get("kind")
    console = Console()
    measure, floor = (_of_policy if kind == CHUNK_POLICY else _of_generative_model)(directory, options, console)
    rows = []
    with Progress(console=console) as progress:
        for nfe in progress.track(numbers, description="sweeping"):
            try:
                rows.append({"nfe": nfe, **measure(nfe)})
            except ConfigurationError as error:
                rows.append({"nfe": nfe, "refused": str(error)})
    if all("refused" in row for row in rows):
        raise ConfigurationError(f"none of nfe={numbers} is admitted: {rows[0]['refused']}")
    output_dir.mkdir(parents=True, exist_ok=True)
    report = {"checkpoint": str(directory), "kind": kind, "seed": options["seed"], "floor": floor, "rows": rows}
    file = output_dir / "sweep.json"
    file.write_text(json.dumps(report, indent=1))
    console.print(_table(report))
    console.print(f"written: {file}, {_plot(report, output_dir / 'sweep.png')}")
    return file


Measure = Callable[[int], Row]


def _of_policy(directory: Path, options: Mapping[str, Any], console: Console) -> tuple[Measure, Row]:
    """Score and success in simulation, on the same episodes for each number of calls."""
    setting = set_up(directory, options)

    def measure(nfe: int) -> Row:
        setting.policy.times(nfe)
        result = setting.roll_out(options, nfe=nfe, advance=lambda done: None)
        return {
            "score": result.score_mean,
            "score_ci95": _interval_of_mean(np.array([episode.score for episode in result.episodes])),
            "success": result.success_rate,
            "success_ci95": list(wilson_interval(result.successes, len(result.episodes))),
            "latency_ms": setting.latency_ms(nfe),
        }

    return measure, {}


def _interval_of_mean(scores: np.ndarray) -> list[float]:
    """The middle 95 % of bootstrapped means; a single score says nothing of how far it is off."""
    if len(scores) == 1:
        return [float(scores[0])] * 2
    drawn = bootstrap((scores,), np.mean, n_resamples=RESAMPLINGS, method="percentile", rng=0)
    return [float(end) for end in drawn.confidence_interval]


def _of_generative_model(directory: Path, options: Mapping[str, Any], console: Console) -> tuple[Measure, Row]:
    """The domain's measures, against the same data for each number of calls."""
    model, domain = load(directory, solver=options["solver"]), domain_of(directory)
    n, guidance = how_many(options["n"], domain), options["guidance"]
    data, first = domain.fresh(n, DATA_SEED), domain.fresh(2, DATA_SEED)
    alone = Samples(**first.batch(torch.arange(1)))
    floor = floors(domain, n, console=console)

    def measure(nfe: int) -> Row:
        model.times(nfe, guidance=guidance)
        made = samples_like_data(model, domain, n, nfe=nfe, seed=options["seed"], guidance=guidance)

        def one(number: int) -> None:
            generate_like(model, alone, nfe=nfe, seed=number, guidance=guidance)

        return {**domain.measure(made, data), "latency_ms": latency_ms(one, calls=20, warm_up=3)}

    return measure, dict(floor)


def _table(report: Row) -> Table:
    names = [name for name in _measured(report) if name != "latency_ms"]
    table = Table(*("nfe", *names, "latency p50 / p95"), title=f"{report['checkpoint']}")
    for row in report["rows"]:
        if "refused" in row:
            table.add_row(str(row["nfe"]), *["-"] * (len(names) + 1))
            continue
        latency = row["latency_ms"]
        cells = [_cell(row, name) for name in names]
        table.add_row(str(row["nfe"]), *cells, f"{latency['p50']:.1f} / {latency['p95']:.1f} ms")
    if report["floor"]:
        table.add_row("floor", *(f"{report['floor'][name]:.4f}" for name in names), "")
    return table


def _cell(row: Row, name: str) -> str:
    interval = row.get(f"{name}_ci95")
    return f"{row[name]:.4f}" if interval is None else f"{row[name]:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def _measured(report: Row) -> list[str]:
    row = next(row for row in report["rows"] if "refused" not in row)
    return [name for name in row if name != "nfe" and not name.endswith("_ci95")]


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
