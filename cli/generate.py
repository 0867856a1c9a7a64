"""flowchunk generate: samples of a generative model, with plots and measures.

usage: flowchunk generate CHECKPOINT [KEY=VALUE ...]

  CHECKPOINT                       a run (its best checkpoint, otherwise its last) or a checkpoint
  n=N                              number of samples (default: the domain's own)
  nfe=16                           network evaluations per sample; guidance takes two per step
  solver=NAME                      another solver than the checkpoint's
  label=3                          samples of one class only, given by its number or name
  guidance=1.5                     above 1: samples more typical of their class
  floor_pairs=8                    pairs of data samples that the measures are averaged over
  seed=0  output_dir=DIR           default: RUN/generated

Writes DIR/samples.npy, plots (DIR/*.png, *.gif) and DIR/metrics.json: each measure and its floor,
which is the same measure of data against data. Both are means, with standard deviations, over pairs
of disjoint data samples: the floor compares the first of a pair with the second, and the generated
samples are compared with the second, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from flowchunk.cli.domains.domain import Domain, Samples, make_domain
from flowchunk.cli.options import read_options, take_checkpoint
from flowchunk.cli.reports import print_table, print_written, table_of, write_report
from flowchunk.cli.train_generative import generate_like
from flowchunk.datasets.errors import CheckpointError, ConfigurationError
from flowchunk.policy.checkpoint import find_checkpoint, find_run, read_json
from flowchunk.policy.data_model import DataModel

DataPairs = list[tuple[Samples, Samples]]
CONDITIONS_SEED = 100_000  # of the data that samples are generated for; the pairs of data start two seeds later


def run(arguments: list[str]) -> None:
    """Generate with command-line arguments."""
    checkpoint, overrides = take_checkpoint("generate", arguments)
    generate(checkpoint, read_options("generate", overrides))


@dataclass(frozen=True)
class Estimate:
    """The mean of a measure over several data samples, and its standard deviation; None for a single one."""

    mean: float
    std: float | None

    def __str__(self) -> str:
        return f"{self.mean:.4f}" if self.std is None else f"{self.mean:.4f} ± {self.std:.4f}"

    def entries(self, name: str) -> dict[str, float]:
        """The estimate in a report: NAME and, unless it is None, NAME_std."""
        return {name: self.mean} | ({} if self.std is None else {f"{name}_std": self.std})


def generate(checkpoint: str | Path, options: Mapping[str, Any]) -> dict[str, float]:
    """Generate with the options of ``schemas.GENERATE``; returns the measures."""
    console = Console()
    directory = find_checkpoint(checkpoint)
    model = load_model(directory, solver=options["solver"])
    model.with_sampling(nfe=options["nfe"], guidance=options["guidance"])  # raises for invalid values before all else
    domain = load_domain(directory)
    label = _label(options["label"], domain)
    n = resolve_num_samples(options["n"], domain)
    if (num_pairs := options["floor_pairs"]) < 1:
        raise ConfigurationError(f"floor_pairs={num_pairs} must be at least 1")
    pairs = sample_data_pairs(domain, n, label=label, num_pairs=num_pairs)
    output_dir = Path(options["output_dir"] or find_run(directory) / "generated").expanduser()
    output_dir.mkdir(parents=True, exist_ok=True)

    generated = generate_samples(
        model, domain, n, nfe=options["nfe"], seed=options["seed"], guidance=options["guidance"], label=label
    )
    measured = _measure_with_floors(domain, generated, pairs, console)
    metrics: dict[str, float] = {}
    for name, (estimate, floor) in measured.items():
        metrics |= estimate.entries(name) | floor.entries(f"{name}_floor")
    np.save(output_dir / "samples.npy", generated.x.numpy())
    write_report(output_dir / "metrics.json", metrics)
    table = table_of("measure", "generated", "floor (data against data)")
    for name, (estimate, floor) in measured.items():
        table.add_row(name, str(estimate), str(floor))
    print_table(console, f"{len(generated):,} samples of {directory}", table)
    print_written(console, *domain.plot(model, generated, output_dir, nfe=options["nfe"]))
    print_written(console, output_dir / "metrics.json", output_dir / "samples.npy")
    return metrics


def _measure_with_floors(
    domain: Domain, generated: Samples, pairs: DataPairs, console: Console
) -> dict[str, tuple[Estimate, Estimate]]:
    """Every measure of generated samples, and its floor."""
    with _progress(2 * len(pairs), console) as advance:
        measured = measure_samples(domain, generated, pairs, advance=advance)
        floors = measure_floors(domain, pairs, advance=advance)
    memorization = {
        name: (Estimate(value, None), Estimate(floor, None))
        for name, (value, floor) in domain.memorization(generated).items()
    }
    return {name: (measured[name], floors[name]) for name in measured} | memorization


def load_model(directory: Path, *, solver: str | None = None, device: torch.device | str = "cpu") -> DataModel:
    """The model of a checkpoint, with another solver if one is given."""
    model = DataModel.load(directory, device=device)
    return model if solver is None else model.with_sampling(solver=solver)


def load_domain(directory: Path) -> Domain:
    """The domain that a checkpoint was trained on. Raises CheckpointError if the checkpoint does not name it."""
    training = read_json(directory / "checkpoint.json")["training"]
    if "task" not in training or "options" not in training:
        raise CheckpointError(f"{directory} does not say what it was trained on; train it with flowchunk train task=…")
    return make_domain(training["task"], training["options"])


def resolve_num_samples(n: int | None, domain: Domain) -> int:
    """n, or the domain's default for None. Raises ConfigurationError if they are too few to measure."""
    n = domain.default_num_samples if n is None else n
    if n < 2:
        raise ConfigurationError(f"n={n} must be at least 2")
    return n


def sample_data_pairs(domain: Domain, n: int, *, label: int | None = None, num_pairs: int = 8) -> DataPairs:
    """Pairs of data samples, each of n data or as many as there are; the two of a pair are disjoint."""
    return [
        (
            _of_class(domain.sample_data(n, CONDITIONS_SEED + 2 * k), label),
            _of_class(domain.sample_data(n, CONDITIONS_SEED + 2 * k + 1), label),
        )
        for k in range(1, num_pairs + 1)
    ]


def measure_samples(
    domain: Domain, generated: Samples, pairs: DataPairs, *, advance: Callable[[], None] = lambda: None
) -> dict[str, Estimate]:
    """Every measure of generated samples against the second data sample of each pair."""
    return _measure_pairs(domain, [(generated, second) for _, second in pairs], advance)


def measure_floors(
    domain: Domain, pairs: DataPairs, *, advance: Callable[[], None] = lambda: None
) -> dict[str, Estimate]:
    """Every measure of data against data: the first data sample of each pair against the second."""
    return _measure_pairs(domain, pairs, advance)


def _measure_pairs(domain: Domain, pairs: DataPairs, advance: Callable[[], None]) -> dict[str, Estimate]:
    measured = []
    for first, second in pairs:
        measured.append(domain.measure(first, second))
        advance()
    return {name: _estimate([values[name] for values in measured]) for name in measured[0]}


def _estimate(values: list[float]) -> Estimate:
    return Estimate(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


@contextmanager
def _progress(total: int, console: Console) -> Iterator[Callable[[], None]]:
    """A progress bar for measuring, removed at the end; gives the function that advances it by one."""
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=total)
        yield lambda: progress.advance(task)


def generate_samples(
    model: DataModel,
    domain: Domain,
    n: int,
    *,
    nfe: int | None,
    seed: int,
    guidance: float = 1.0,
    label: int | None = None,
) -> Samples:
    """Generate n samples for conditions and labels of new data, or for one label."""
    data = domain.sample_data(n, CONDITIONS_SEED)
    if len(data) < n:  # a small data set: its labels are repeated
        data = Samples(**data.batch(torch.arange(n) % len(data)))
    if label is not None:
        data = replace(data, label=torch.full((n,), label))
    return generate_like(model, data, nfe=nfe, seed=seed, guidance=guidance)


def _of_class(data: Samples, label: int | None) -> Samples:
    if label is None or data.label is None:
        return data
    chosen = (data.label == label).nonzero()[:, 0]
    if len(chosen) < 2:
        raise ConfigurationError(
            f"label={label}: only {len(chosen)} of {len(data)} data to compare with are of this class, which are too few; "
            "give a larger n"
        )
    return Samples(**data.batch(chosen))


def _label(label: Any, domain: Domain) -> int | None:
    """The number of a class that is given by number or name. Raises ConfigurationError for an unknown one."""
    if label is None:
        return None
    names = list(domain.label_names)
    if not names:
        raise ConfigurationError(f"label={label}: this model has no classes")
    if str(label) in names:
        return names.index(str(label))
    if isinstance(label, int) and 0 <= label < len(names):
        return label
    listed = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    raise ConfigurationError(f"unknown label {label!r}; expected 0 to {len(names) - 1} or one of {listed}")
