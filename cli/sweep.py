"""flowchunk sweep: quality and latency of a checkpoint by its number of network evaluations.

usage: flowchunk sweep CHECKPOINT ["nfe=[1,2,4,8,16,100]"] [KEY=VALUE ...]

  CHECKPOINT                       a run (its best checkpoint, otherwise its last) or a checkpoint
  nfe=[1,2,4]                      numbers of network evaluations; invalid ones are shown as -
  solver=NAME                      another solver than the checkpoint's
  device=cpu|auto|cuda|cuda:N|mps  where the network runs and its latency is measured
  output_dir=DIR                   default: RUN/sweep

of policies:
  episodes=200  seed=100000        simulated episodes, the same ones for each number
  noise_scale=1.0                  factor of the initial noise (default: the policy's own)
  num_envs=50  processes=1  n_action_steps=N  env_id=ID  env.KEY=VALUE
                                   as for flowchunk eval

of models of generated data:
  n=N  guidance=1.0  seed=100000   samples for each number

Prints a table: score and success with their intervals, or the measures and their floors; and the
latency at batch size 1 on one thread. Writes DIR/sweep.json, row by row as they are measured, and
DIR/sweep.png.
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

from flowchunk.cli.domains.domain import Samples, make_figure, save_figure
from flowchunk.cli.eval import PolicyEvaluation
from flowchunk.cli.generate import (
    Estimate,
    generate_samples,
    load_domain,
    load_model,
    measure_floors,
    measure_samples,
    resolve_num_samples,
    sample_data_pairs,
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
    """Sweep with command-line arguments."""
    checkpoint, overrides = take_checkpoint("sweep", arguments)
    sweep(checkpoint, read_options("sweep", overrides))


@dataclass(frozen=True)
class Subject:
    """A checkpoint that is swept.

    check: raises ConfigurationError for an invalid number of network evaluations. measure: the row of a number. conditions:
    what else the rows depend on. floor: measures of data against data, empty for policies.
    """

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
    subject = (_policy_subject if kind == CHUNK_POLICY else _generative_subject)(directory, options, console)
    refused = {nfe: reason for nfe in numbers if (reason := _refusal(subject, nfe)) is not None}
    if len(refused) == len(set(numbers)):
        raise ConfigurationError(f"none of nfe={numbers} is valid: {refused[numbers[0]]}")
    output_dir.mkdir(parents=True, exist_ok=True)
    file = output_dir / "sweep.json"
    settings = {"checkpoint": str(directory), "kind": kind, "seed": options["seed"], **subject.conditions}
    report: Row = {**settings, "floor": subject.floor(), "rows": []}
    with Progress(console=console) as progress:
        for nfe in progress.track(numbers, description="sweeping"):
            row = {"refused": refused[nfe]} if nfe in refused else subject.measure(nfe)
            report["rows"].append({"nfe": nfe, **row})
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


def _policy_subject(directory: Path, options: Mapping[str, Any], console: Console) -> Subject:
    """Score and success in simulation, on the same episodes for each number of evaluations."""
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
    """The 95 % bootstrap interval of the mean; a single score is both of its ends."""
    if len(scores) == 1:
        return [float(scores[0])] * 2
    resampled = bootstrap((scores,), np.mean, n_resamples=RESAMPLINGS, method="percentile", rng=0)
    return [float(end) for end in resampled.confidence_interval]


def _generative_subject(directory: Path, options: Mapping[str, Any], console: Console) -> Subject:
    """The domain's measures, against the same data for each number of evaluations."""
    if options["noise_scale"] is not None:
        raise ConfigurationError(f"noise_scale={options['noise_scale']} is for policies only; leave it out")
    model = load_model(directory, solver=options["solver"], device=choose_device(options["device"]))
    domain, guidance = load_domain(directory), options["guidance"]
    n = resolve_num_samples(options["n"], domain)
    pairs = sample_data_pairs(domain, n)
    single = Samples(**pairs[0][0].batch(torch.arange(1)))

    def measure(nfe: int) -> Row:
        generated = generate_samples(model, domain, n, nfe=nfe, seed=options["seed"], guidance=guidance)

        def generate_single(seed: int) -> None:
            generate_like(model, single, nfe=nfe, seed=seed, guidance=guidance)

        latency = latency_ms(generate_single, calls=20, warm_up=3)
        return {**_entries(measure_samples(domain, generated, pairs)), "latency_ms": latency}

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
        floor=lambda: _entries(measure_floors(domain, pairs)),
    )


def _entries(estimates: Mapping[str, Estimate]) -> Row:
    return {key: value for name, estimate in estimates.items() for key, value in estimate.entries(name).items()}


def _table(report: Row) -> Table:
    names = [name for name in _measure_names(report) if name != "latency_ms"]
    table = table_of("nfe", *names, "latency p50 / p95")
    for row in report["rows"]:
        if "refused" in row:
            table.add_row(str(row["nfe"]), *["-"] * (len(names) + 1))
            continue
        latency = f"{row['latency_ms']['p50']:.1f} / {row['latency_ms']['p95']:.1f} ms"
        table.add_row(str(row["nfe"]), *(_formatted(row, name) for name in names), latency)
    if report["floor"]:
        table.add_row("floor", *(_formatted(report["floor"], name) for name in names), "")
    return table


def _formatted(row: Row, name: str) -> str:
    if (interval := row.get(f"{name}_ci95")) is not None:
        return f"{row[name]:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
    return str(Estimate(row[name], row.get(f"{name}_std")))


def _measure_names(report: Row) -> list[str]:
    row = next(row for row in report["rows"] if "refused" not in row)
    return [name for name in row if name != "nfe" and not name.endswith(("_ci95", "_std"))]


def _plot(report: Row, file: Path) -> Path:
    """Plot every measure against the number of network evaluations, with its interval or its floor; returns the file."""
    rows = [row for row in report["rows"] if "refused" not in row]
    names = _measure_names(report)
    figure, axes = make_figure(1, len(names), size=3.6)
    nfe = [row["nfe"] for row in rows]
    for name, ax in zip(names, axes[0], strict=True):
        values = [row[name]["p50"] if name == "latency_ms" else row[name] for row in rows]
        ax.plot(nfe, values, marker="o")
        ax.set(xscale="log", xlabel="network evaluations", title=name.replace("_", " "), xticks=nfe, xticklabels=nfe)
        ax.minorticks_off()
        if f"{name}_ci95" in rows[0]:
            ax.fill_between(nfe, *zip(*(row[f"{name}_ci95"] for row in rows), strict=True), alpha=0.2)
        if name in report["floor"]:
            ax.axhline(report["floor"][name], color="0.5", ls="--", label="data against data")
            ax.legend()
    return save_figure(figure, file)
