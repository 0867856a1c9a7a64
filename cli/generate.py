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
measure of data against data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from flowchunk.cli.domains.domain import Domain, Samples, make_domain
from flowchunk.cli.options import read_options
from flowchunk.cli.train_generative import generate_like
from flowchunk.datasets.errors import CheckpointError, ConfigurationError
from flowchunk.policy.checkpoint import find_checkpoint, read_json, run_of
from flowchunk.policy.generative_model import GenerativeModel

CONDITIONS_SEED, DATA_SEED = (
    100_000,
    100_001,
)  # a pair: what is generated for and what it is compared with share nothing


def run(arguments: list[str]) -> None:
    """Generate as the arguments say."""
    if not arguments or "=" in arguments[0]:
        raise ConfigurationError("give the checkpoint first: flowchunk generate CHECKPOINT [KEY=VALUE ...]")
    generate(arguments[0], read_options("generate", arguments[1:]))


def generate(checkpoint: str | Path, options: Mapping[str, Any]) -> dict[str, float]:
    """Generate with the options of ``configs/generate.yaml``; returns the measures."""
    console = Console()
    directory = find_checkpoint(checkpoint)
    model = load(directory, solver=options["solver"])
    model.times(options["nfe"], guidance=options["guidance"])  # refuse what the model does not admit before all else
    domain = domain_of(directory)
    label = _label(options["label"], domain)
    n = how_many(options["n"], domain)
    if (pairs := options["floor_pairs"]) < 1:
        raise ConfigurationError(f"floor_pairs={pairs} must be at least 1")
    output_dir = Path(options["output_dir"] or run_of(directory) / "generated").expanduser()
    output_dir.mkdir(parents=True, exist_ok=True)

    generated = samples_like_data(
        model, domain, n, nfe=options["nfe"], seed=options["seed"], guidance=options["guidance"], label=label
    )
    measured = domain.measure(generated, _of_class(domain.fresh(n, DATA_SEED), label))
    floor = floors(domain, n, label=label, pairs=pairs, console=console)
    both = {name: (measured[name], floor[name]) for name in measured} | domain.memorised(generated)
    metrics = {
        key: value for name, pair in both.items() for key, value in zip((name, f"{name}_floor"), pair, strict=True)
    }
    np.save(output_dir / "samples.npy", generated.x.numpy())
    (output_dir / "metrics.json").write_text(json.dumps(metrics, indent=1))
    table = Table(
        "measure", "generated", "floor (data against data)", title=f"{len(generated):,} samples of {directory}"
    )
    for name, (value, least) in both.items():
        table.add_row(name, f"{value:.4f}", f"{least:.4f}")
    console.print(table)
    for file in domain.draw(model, generated, output_dir, nfe=options["nfe"]):
        console.print(f"written: {file}")
    console.print(f"written: {output_dir / 'metrics.json'}, {output_dir / 'samples.npy'}")
    return metrics


def load(directory: Path, *, solver: str | None = None) -> GenerativeModel:
    """The model of a checkpoint, with another solver where one is given."""
    model = GenerativeModel.load(directory)
    return model if solver is None else model.with_solver(solver)


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


def floors(
    domain: Domain, n: int, *, label: int | None = None, pairs: int = 8, console: Console | None = None
) -> dict[str, float]:
    """Every measure of data against data: the mean over so many pairs of independent draws as large as the samples."""
    numbers = track(range(pairs), "data against data", console=console or Console(), transient=True)
    draws = ([_of_class(domain.fresh(n, CONDITIONS_SEED + 2 * k + side), label) for side in (2, 3)] for k in numbers)
    measured = [domain.measure(one, other) for one, other in draws]
    return {name: float(np.mean([values[name] for values in measured])) for name in measured[0]}


def samples_like_data(
    model: GenerativeModel,
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
