"""Train a model of toys, pictures or the other domains: see ``flowchunk train --help``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowchunk.cli.domains import DATASETS
from flowchunk.cli.domains.domain import Domain, Samples, make_domain
from flowchunk.cli.options import fill, unknown_dataset
from flowchunk.cli.runs import check_folder, finish, training_config, write_options
from flowchunk.datasets.errors import ConfigurationError
from flowchunk.policy.data_model import CONDITION, KIND, DataConfig, DataModel, X
from flowchunk.policy.evaluation.generative_metrics import energy_distance
from flowchunk.policy.normalizer import Normalizer, Scaling
from flowchunk.policy.sampling import SamplingOptions
from flowchunk.policy.training.run import Plan, open_run
from flowchunk.policy.training.trainer import Evaluate

DOMAIN_OPTIONS = ("dataset", "samples", "size", "invert", "half", "seed")
"""What a checkpoint remembers of its data; ``dataset`` is a name, or the path of images."""


def train_generative(options: dict[str, Any]) -> Path:
    """Train with the options of ``schemas.TRAIN_GENERATIVE``; returns the run's directory."""
    task, of_domain = options["task"]["name"], domain_options(options)
    if (samples := of_domain["samples"]) is not None and samples < 2:
        raise ConfigurationError(f"dataset.samples={samples} must be at least 2")
    if (measured := options["evaluation"]["samples"]) < 0:
        raise ConfigurationError(f"evaluation.samples={measured} must be at least 0")
    if options["training"]["init_from"] is not None:
        raise ConfigurationError("training.init_from is for robots' policies; models of other data begin anew")
    run = open_run(
        options["output_dir"], training_config(options), device=options["device"], resume=check_folder(options)
    )
    domain = make_domain(task, of_domain)
    data = domain.training()
    config = generative_config(options, domain, data)
    torch.manual_seed(options["seed"])
    model = DataModel(config, fit_normalizer(domain, data))
    evaluation = options["evaluation"]
    if evaluation["samples"]:
        model.with_sampling(nfe=evaluation["nfe"])  # refuses what does not fit before it is trained
    run.train(
        model,
        data.to(run.accelerator.device),
        kind=KIND,
        plan=Plan(
            network=config.network,
            data=f"{len(data):,} data of shape {tuple(config.shape)}",
            nbytes=sum(values.nbytes for values in data.batch(torch.arange(len(data))).values()),
        ),
        evaluate=evaluation_of(domain, evaluation) if evaluation["samples"] else None,
        metadata={"task": task, "options": of_domain},
        wandb=options["logging"]["wandb"],
        write_run_files=lambda directory: write_options(directory, options),
    )
    return finish(options)


def domain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """What a domain is made from. Raises ConfigurationError for a dataset that is another task's."""
    dataset, task = options["dataset"], options["task"]["name"]
    if dataset["name"] not in DATASETS[task]:
        raise ConfigurationError(unknown_dataset(task, dataset["name"]))
    of_data = {name: dataset[name] for name in DOMAIN_OPTIONS if name in dataset}
    return {"dataset": dataset.get("path", dataset["name"]), **of_data, "seed": options["seed"]}


def generative_config(options: Mapping[str, Any], domain: Domain, data: Samples) -> DataConfig:
    """The model of these data that the options ask for. Raises ConfigurationError."""
    network = dict(options["network"])
    return fill(
        DataConfig,
        {
            **options["model"],
            "network": network.pop("name"),
            "network_options": network,
            "objective": options["objective"],
            "schedule": options["schedule"],
            "sampling": fill(
                SamplingOptions, {name: options["model"][name] for name in ("solver", "eta")}, section="model"
            ),
            "shape": tuple(data.x.shape[1:]),
            "condition_size": 0 if data.condition is None else data.condition.shape[1],
            "classes": len(domain.label_names),
            "is_wrapped": domain.is_wrapped,
        },
        section="model",
    )


def fit_normalizer(domain: Domain, data: Samples) -> Normalizer:
    """Vectors to mean 0 and deviation 1, one for all their tokens; pictures, in [-1, 1], and angles stay as they are."""
    as_is = domain.is_wrapped or data.x.ndim == 4
    scalings = {X: _scaling(data.x, "identity" if as_is else "gaussian")}
    if data.condition is not None:
        scalings[CONDITION] = _scaling(data.condition, "gaussian")
    return Normalizer(scalings)


def _scaling(values: Tensor, mode: Any) -> Scaling:
    if values.ndim == 4:  # one range for all pixels
        return Scaling(mode, *(np.asarray(number) for number in (0.0, 1.0, -1.0, 1.0)))
    return Scaling.fit(mode, [values.flatten(0, -2).numpy()])


def evaluation_of(domain: Domain, settings: Mapping[str, Any]) -> Evaluate:
    """Measures a model by the energy distance to fresh data, jointly with their conditions."""

    def evaluate(model: DataModel) -> dict[str, float]:
        data = domain.fresh(settings["samples"], settings["seed"])
        made = generate_like(model, data, nfe=settings["nfe"], seed=settings["seed"])
        distance = float(energy_distance(*(joint(samples, domain) for samples in (made, data))))
        return {"score": -distance, "energy_distance": distance}

    return evaluate


def joint(samples: Samples, domain: Domain) -> Tensor:
    """(N, d) samples with their conditions as vectors; angles as points on circles."""
    if domain.is_wrapped:
        samples = replace(samples, x=torch.cat([samples.x.cos(), samples.x.sin()], dim=-1))
    return samples.joint()


def generate_like(model: DataModel, data: Samples, *, nfe: int | None, seed: int, guidance: float = 1.0) -> Samples:
    """As many samples as data, for the same conditions and labels."""
    device = model.model.device
    known = data.to(device)
    x = model.generate(len(data), condition=known.condition, label=known.label, nfe=nfe, seed=seed, guidance=guidance)
    return replace(data, x=x.cpu())
