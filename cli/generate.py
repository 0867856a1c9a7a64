"""flowchunk generate: samples, pictures and measures of a generative model.

usage: flowchunk generate CHECKPOINT [KEY=VALUE ...]

  CHECKPOINT                       a run directory (its best, else last) or a checkpoint directory
  n=N                              how many (default: what the domain's measures need)
  nfe=16                           network calls for each; guidance by two passes counts twice
  solver=NAME                      another way through the same field than the checkpoint's
  label=3                          one class alone, where there are classes (a number or its name)
  guidance=1.5                     more typical of the class
  seed=0  output_dir=DIR           default: RUN/generated

writes DIR/samples.npy, pictures (DIR/*.png, *.gif) and DIR/metrics.json: each measure beside its floor, which is the same
measure of data against data. Both are means, with standard deviations, over floor_pairs=8 pairs of draws of the data: the
floor compares one of a pair with the other, and the samples are compared with that same other one.
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

Draws = list[tuple[Samples, Samples]]
CONDITIONS_SEED = 100_000  # of what is generated for; the pairs of data to compare with follow, from two further on


def run(arguments: list[str]) -> None:
    """Generate as the arguments say."""
    checkpoint, overrides = take_checkpoint("generate", arguments)
    generate(checkpoint, read_options("generate", overrides))


@dataclass(frozen=True)
class Spread:
    """A measure over several draws of the data: its mean, and its standard deviation unless there is one draw alone."""

    mean: float
    std: float | None

    def __str__(self) -> str:
        return f"{self.mean:.4f}" if self.std is None else f"{self.mean:.4f} ± {self.std:.4f}"


def generate(checkpoint: str | Path, options: Mapping[str, Any]) -> dict[str, float]:
    """Generate with the options of ``schemas.GENERATE``; returns the measures."""
    console = Console()
    directory = find_checkpoint(checkpoint)
    model = load(directory, solver=options["solver"])
    model.with_sampling(nfe=options["nfe"], guidance=options["guidance"])  # refuses what does not fit before all else
    domain = domain_of(directory)
    label = _label(options["label"], domain)
    n = how_many(options["n"], domain)
    if (pairs := options["floor_pairs"]) < 1:
        raise ConfigurationError(f"floor_pairs={pairs} must be at least 1")
    draws = data_draws(domain, n, label=label, pairs=pairs)
    output_dir = Path(options["output_dir"] or find_run(directory) / "generated").expanduser()
    output_dir.mkdir(parents=True, exist_ok=True)

    generated = samples_like_data(
        model, domain, n, nfe=options["nfe"], seed=options["seed"], guidance=options["guidance"], label=label
    )
    both = _beside_floors(domain, generated, draws, console)
    metrics = {
        key: value
        for name, pair in both.items()
        for end, spread in zip(("", "_floor"), pair, strict=True)
        for key, value in as_numbers(f"{name}{end}", spread).items()
    }
    np.save(output_dir / "samples.npy", generated.x.numpy())
    write_report(output_dir / "metrics.json", metrics)
    table = table_of("measure", "generated", "floor (data against data)")
    for name, pair in both.items():
        table.add_row(name, *map(str, pair))
    print_table(console, f"{len(generated):,} samples of {directory}", table)
    print_written(console, *domain.draw(model, generated, output_dir, nfe=options["nfe"]))
    print_written(console, output_dir / "metrics.json", output_dir / "samples.npy")
    return metrics


def _beside_floors(
    domain: Domain, generated: Samples, draws: Draws, console: Console
) -> dict[str, tuple[Spread, Spread]]:
    """Every measure of the samples, and the same of data."""
    with progress_of(2 * len(draws), console) as advance:
        measured = against_data(domain, generated, draws, advance=advance)
        floor = floors(domain, draws, advance=advance)
    memorised = {name: (Spread(a, None), Spread(b, None)) for name, (a, b) in domain.memorised(generated).items()}
    return {name: (measured[name], floor[name]) for name in measured} | memorised


def as_numbers(name: str, spread: Spread) -> dict[str, float]:
    """A measure as reports hold it: NAME and, where there were several draws, NAME_std."""
    return {name: spread.mean} | ({} if spread.std is None else {f"{name}_std": spread.std})


def load(directory: Path, *, solver: str | None = None, device: torch.device | str = "cpu") -> DataModel:
    """The model of a checkpoint, with another solver where one is given."""
    model = DataModel.load(directory, device=device)
    return model if solver is None else model.with_sampling(solver=solver)


def domain_of(directory: Path) -> Domain:
    """The domain that a checkpoint was trained on."""
    training = read_json(directory / "checkpoint.json")["training"]
    if "task" not in training or "options" not in training:
        raise CheckpointError(f"{directory} does not say what it was trained on; train it with flowchunk train task=…")
    return make_domain(training["task"], training["options"])


def how_many(n: int | None, domain: Domain) -> int:
    """The number of samples asked for, or the domain's own. Raises ConfigurationError where it is too few to measure."""
    n = domain.n if n is None else n
    if n < 2:
        raise ConfigurationError(f"n={n} must be at least 2")
    return n


def data_draws(domain: Domain, n: int, *, label: int | None = None, pairs: int = 8) -> Draws:
    """Pairs of draws of the data as large as the samples, as far as there are so many; the two of a pair share nothing."""
    return [
        (
            _of_class(domain.fresh(n, CONDITIONS_SEED + 2 * k), label),
            _of_class(domain.fresh(n, CONDITIONS_SEED + 2 * k + 1), label),
        )
        for k in range(1, pairs + 1)
    ]


def against_data(
    domain: Domain, generated: Samples, draws: Draws, *, advance: Callable[[], None] = lambda: None
) -> dict[str, Spread]:
    """Every measure of samples against the second of each pair of draws."""
    return _spreads(domain, [(generated, other) for _, other in draws], advance)


def floors(domain: Domain, draws: Draws, *, advance: Callable[[], None] = lambda: None) -> dict[str, Spread]:
    """Every measure of data against data: the first of each pair of draws against the second."""
    return _spreads(domain, draws, advance)


def _spreads(domain: Domain, pairs: Draws, advance: Callable[[], None]) -> dict[str, Spread]:
    measured = []
    for one, other in pairs:
        measured.append(domain.measure(one, other))
        advance()
    return {name: _spread([values[name] for values in measured]) for name in measured[0]}


def _spread(values: list[float]) -> Spread:
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


@contextmanager
def progress_of(total: int, console: Console) -> Iterator[Callable[[], None]]:
    """A bar for measuring that vanishes; gives the function that moves it on by one."""
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=total)
        yield lambda: progress.advance(task)


def samples_like_data(
    model: DataModel,
    domain: Domain,
    n: int,
    *,
    nfe: int | None,
    seed: int,
    guidance: float = 1.0,
    label: int | None = None,
) -> Samples:
    """n samples for conditions and labels as new data have them, or for one label."""
    data = domain.fresh(n, CONDITIONS_SEED)
    if len(data) < n:  # a small data set: its labels are used again
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
            f"label={label}: of {len(data)} data to compare with {len(chosen)} are of this class, which is too few; "
            "give a larger n"
        )
    return Samples(**data.batch(chosen))


def _label(label: Any, domain: Domain) -> int | None:
    """The number of a class, given as a number or by name."""
    if label is None:
        return None
    names = list(domain.label_names)
    if not names:
        raise ConfigurationError(f"label={label}: this model knows no classes")
    if str(label) in names:
        return names.index(str(label))
    if isinstance(label, int) and 0 <= label < len(names):
        return label
    few = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    raise ConfigurationError(f"unknown label {label!r}; expected 0 to {len(names) - 1} or one of {few}")
