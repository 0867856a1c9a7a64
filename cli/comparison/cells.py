"""The cells of the comparison: each trains one model, sweeps its network calls, and is done once and for all."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
MEASURES = 2  # raised where what is measured changes: 2 judges digits by pictures set aside, over several draws
TIMES = torch.linspace(0.02, 0.98, 25)


@dataclass(frozen=True)
class Cell:
    """One model. section: toys, digits or pusht; key: how the page finds it; arguments: of train and of sweep."""

    section: str
    key: tuple[str, ...]
    training: tuple[str, ...]
    sweeping: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its directory."""
        letters = "-".join((self.section, *self.key)).lower()
        return "".join(letter if letter.isalnum() else "_" for letter in letters)


def all_cells(options: Mapping[str, Any]) -> list[Cell]:
    """Every cell that the options of ``schemas.COMPARE`` ask for; Push-T's where its data are given."""
    longer = 5 if options["full"] else 1
    common = (f"seed={options['seed']}", "device=cpu")
    cells: list[Cell] = []
    arguments: tuple[str, ...]
    for toy in TOYS:
        for objective, schedule in TOY_PAIRS:
            arguments = (
                *common,
                "task=toy2d",
                f"dataset={toy}",
                f"training.steps={2000 * longer}",
                "evaluation.samples=0",
                "model.coupling=independent",
            )
            cells.append(_cell("toys", (toy, objective, schedule or ""), arguments, TOY_NFE, "n=5000"))
    for name, (objective, schedule, more) in DIGIT_PAIRS.items():
        arguments = (*common, "task=images", f"training.steps={800 * longer}", "evaluation.samples=0", *more)
        cells.append(_cell("digits", (name, objective, schedule), arguments, DIGIT_NFE, "n=800"))
    path = options["dataset"]["path"]
    for objective in PUSHT_OBJECTIVES if path is not None else ():
        size = ("network.width=200", "network.blocks=4", f"training.steps={4000 * longer}", "evaluation.episodes=0")
        arguments = (*common, "task=pusht_state", f"dataset.path={path}", *size)
        episodes = f"episodes={500 if options['full'] else 200}"
        cells.append(_cell("pusht", (objective, "", ""), arguments, PUSHT_NFE, episodes))
    return sorted(cells, key=lambda cell: cell.section)  # the longest first, so that no core waits at the end


def _cell(section: str, key: tuple[str, str, str], arguments: tuple[str, ...], nfe: tuple[int, ...], size: str) -> Cell:
    objective, schedule = (key[1], key[2]) if section != "pusht" else (key[0], "")
    chosen = (f"objective={objective}", *([f"schedule={schedule}"] if schedule else []))
    return Cell(section, key, (*arguments, *chosen), (f"nfe=[{','.join(map(str, nfe))}]", size))


def run_cell(cell: Cell, folder: Path) -> str:
    """Train and measure, unless that was done; what it prints goes to ``log.txt``. Returns the cell's name.

    Raises ConfigurationError where the folder holds this cell with other options.
    """
    run, result = folder / cell.name, folder / cell.name / "cell.json"
    told = {"training": list(cell.training), "sweeping": list(cell.sweeping), "measures": MEASURES}
    if result.exists():
        done = json.loads(result.read_text())
        if any(done.get(name) != arguments for name, arguments in told.items()):
            raise ConfigurationError(
                f"{run} was measured with other options ({' '.join(done['training'])}) or by another flowchunk; "
                "choose another output_dir"
            )
        return cell.name
    run.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    with (run / "log.txt").open("a") as log, redirect_stdout(log), redirect_stderr(log):
        resume = f"training.resume={'true' if (run / 'config.yaml').exists() else 'false'}"
        arguments = [*cell.training, resume, f"output_dir={run}"]
        if cell.section == "pusht":
            train(read_options("train", arguments))
        else:
            train_generative(read_options("train_generative", arguments))
        swept = json.loads(sweep(run, read_options("sweep", list(cell.sweeping))).read_text())
    found = {**told, "section": cell.section, "key": list(cell.key), "floor": swept["floor"], "rows": swept["rows"]}
    if cell.section != "pusht":
        found |= _looked_into(cell, run)
    write_report(result, found)
    return cell.name


def _looked_into(cell: Cell, run: Path) -> dict[str, Any]:
    """Where the loss comes from, how straight the ways are, and what the samples look like."""
    directory = find_checkpoint(run)
    model, training = DataModel.load(directory), read_json(directory / "checkpoint.json")["training"]
    domain = make_domain(training["task"], {name: training["options"][name] for name in DOMAIN_OPTIONS})
    looked: dict[str, Any] = {}
    if model.objective.valid_nfe is None:
        batch = domain.fresh(512, 1)
        mean, deviation = loss_over_time(model, batch.batch(torch.arange(len(batch))), TIMES)
        looked = {"loss_mean": mean.tolist(), "loss_std": deviation.tolist()}
    if cell.section == "toys" and model.objective.valid_nfe is None:
        looked["straightness"] = straightness(torch.from_numpy(trajectories(model, 2000, nfe=32).points))
    if cell.section == "digits":
        data = domain.fresh(60, 2)
        write_grid(generate_like(model, data, nfe=16, seed=0).x, run / "samples.png", columns=12, pixels=24)
    return looked
