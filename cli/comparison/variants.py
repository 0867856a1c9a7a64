"""The variants of the comparison: each is one model, trained, and then swept over numbers of network evaluations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from flowchunk.cli.domains.domain import make_domain
from flowchunk.cli.domains.images import write_grid
from flowchunk.cli.domains.toy2d import trajectories
from flowchunk.cli.options import read_options
from flowchunk.cli.reports import write_report
from flowchunk.cli.sweep import sweep
from flowchunk.cli.train import train
from flowchunk.cli.train_generative import DOMAIN_OPTIONS, generate_like, train_generative
from flowchunk.datasets.errors import ConfigurationError
from flowchunk.policy.checkpoint import find_checkpoint, read_json
from flowchunk.policy.data_model import DataModel
from flowchunk.policy.evaluation.field import loss_over_time, straightness

TOYS = ("8gaussians", "checkerboard")
CURVED = ("linear_beta", "cosine", "sigmoid")
TOY_PAIRS = (
    ("flow", "linear"),
    *product(("noise_prediction", "data_prediction", "v", "posterior"), ("linear", *CURVED)),
    ("flow_map", None),
    ("regression", None),
    ("mip", None),
)
DIGIT_PAIRS = {
    "2015: posterior mean": ("posterior", "linear_beta", ()),
    "DDPM": ("noise_prediction", "linear_beta", ()),
    "improved DDPM": ("noise_prediction", "cosine", ()),
    "x, min-SNR": ("data_prediction", "cosine", ("model.min_snr_gamma=5",)),
    "v (Salimans and Ho)": ("v", "cosine", ()),
    "v, sigmoid": ("v", "sigmoid", ()),
    "flow": ("flow", "linear", ()),
}
PUSHT_OBJECTIVES = ("flow", "v", "noise_prediction", "regression", "mip")
TOY_NFE, DIGIT_NFE, PUSHT_NFE = (1, 2, 4, 8, 16, 32), (1, 2, 4, 8, 16, 32), (1, 2, 4, 10)
MEASURES = 2  # raised when the measures change; 2: digits by a classifier with images of its own, over several samples
TIMES = torch.linspace(0.02, 0.98, 25)


@dataclass(frozen=True)
class Variant:
    """One model of the comparison.

    section: toys, digits or pusht. key: identifies it within its section. train_arguments, sweep_arguments: of
    ``flowchunk train`` and ``flowchunk sweep``.
    """

    section: str
    key: tuple[str, ...]
    train_arguments: tuple[str, ...]
    sweep_arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of its directory."""
        letters = "-".join((self.section, *self.key)).lower()
        return "".join(letter if letter.isalnum() else "_" for letter in letters)


def all_variants(options: Mapping[str, Any]) -> list[Variant]:
    """The variants of the options of ``schemas.COMPARE``; those of Push-T only if its demonstrations are given."""
    factor = 5 if options["full"] else 1
    common = (f"seed={options['seed']}", "device=cpu")
    path = options["dataset"]["path"]
    variants = [*_toy_variants(common, factor), *_digit_variants(common, factor)]
    if path is not None:
        variants += _pusht_variants(common, factor, path=path, episodes=500 if options["full"] else 200)
    return sorted(variants, key=lambda variant: variant.section)  # the longest first, so that no core idles at the end


def _toy_variants(common: tuple[str, ...], factor: int) -> Iterator[Variant]:
    for toy, (objective, schedule) in product(TOYS, TOY_PAIRS):
        arguments = (
            *common,
            "task=toy2d",
            f"dataset={toy}",
            f"training.steps={2000 * factor}",
            "evaluation.samples=0",
            "model.coupling=independent",
            *_objective_arguments(objective, schedule),
        )
        yield Variant("toys", (toy, objective, schedule or ""), arguments, (_nfe_argument(TOY_NFE), "n=5000"))


def _digit_variants(common: tuple[str, ...], factor: int) -> Iterator[Variant]:
    for name, (objective, schedule, more) in DIGIT_PAIRS.items():
        arguments = (
            *common,
            "task=images",
            f"training.steps={800 * factor}",
            "evaluation.samples=0",
            *more,
            *_objective_arguments(objective, schedule),
        )
        yield Variant("digits", (name, objective, schedule), arguments, (_nfe_argument(DIGIT_NFE), "n=800"))


def _pusht_variants(common: tuple[str, ...], factor: int, *, path: str, episodes: int) -> Iterator[Variant]:
    for objective in PUSHT_OBJECTIVES:
        arguments = (
            *common,
            "task=pusht_state",
            f"dataset.path={path}",
            "network.width=200",
            "network.blocks=4",
            f"training.steps={4000 * factor}",
            "evaluation.episodes=0",
            *_objective_arguments(objective),
        )
        yield Variant("pusht", (objective, "", ""), arguments, (_nfe_argument(PUSHT_NFE), f"episodes={episodes}"))


def _objective_arguments(objective: str, schedule: str | None = None) -> tuple[str, ...]:
    return (f"objective={objective}", *([f"schedule={schedule}"] if schedule else []))


def _nfe_argument(nfe: tuple[int, ...]) -> str:
    return f"nfe=[{','.join(map(str, nfe))}]"


def run_variant(variant: Variant, folder: Path) -> str:
    """Train and measure a variant unless it is finished, with its output in ``log.txt``; returns its name.

    Raises ConfigurationError if the folder holds the variant with other options.
    """
    run = folder / variant.name
    file = run / "variant.json"
    settings = {
        "training": list(variant.train_arguments),
        "sweeping": list(variant.sweep_arguments),
        "measures": MEASURES,
    }
    if file.exists():
        _require_same_settings(run, json.loads(file.read_text()), settings)
        return variant.name
    run.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    with (run / "log.txt").open("a") as log, redirect_stdout(log), redirect_stderr(log):
        resume = f"training.resume={'true' if (run / 'config.yaml').exists() else 'false'}"
        arguments = [*variant.train_arguments, resume, f"output_dir={run}"]
        if variant.section == "pusht":
            train(read_options("train", arguments))
        else:
            train_generative(read_options("train_generative", arguments))
        swept = json.loads(sweep(run, read_options("sweep", list(variant.sweep_arguments))).read_text())
    results = {
        **settings,
        "section": variant.section,
        "key": list(variant.key),
        "floor": swept["floor"],
        "rows": swept["rows"],
    }
    if variant.section != "pusht":
        results |= _analyze(variant, run)
    write_report(file, results)
    return variant.name


def _require_same_settings(run: Path, finished: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    if any(finished.get(name) != value for name, value in settings.items()):
        raise ConfigurationError(
            f"{run} was measured with other options ({' '.join(finished['training'])}) or by another flowchunk; "
            "choose another output_dir"
        )


def _analyze(variant: Variant, run: Path) -> dict[str, Any]:
    """The loss over time, the straightness of the trajectories of toys, and samples of digits as an image."""
    directory = find_checkpoint(run)
    model, training = DataModel.load(directory), read_json(directory / "checkpoint.json")["training"]
    domain = make_domain(training["task"], {name: training["options"][name] for name in DOMAIN_OPTIONS})
    analysis: dict[str, Any] = {}
    if model.objective.valid_nfe is None:
        data = domain.sample_data(512, 1)
        mean, std = loss_over_time(model, data.batch(torch.arange(len(data))), TIMES)
        analysis = {"loss_mean": mean.tolist(), "loss_std": std.tolist()}
        if variant.section == "toys":
            points = trajectories(model, 2000, nfe=32).points
            analysis["straightness"] = straightness(torch.from_numpy(points))
    if variant.section == "digits":
        data = domain.sample_data(60, 2)
        write_grid(generate_like(model, data, nfe=16, seed=0).x, run / "samples.png", columns=12, pixels=24)
    return analysis
