"""Train a model of generated data (points, images, …): see ``flowchunk train --help``."""

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
"""The options of its data that a checkpoint stores; ``dataset`` is a name, or the path of images."""


def train_generative(options: dict[str, Any]) -> Path:
    """Train with the options of ``schemas.TRAIN_GENERATIVE``; returns the run's directory."""
    task, data_options = options["task"]["name"], domain_options(options)
    if (samples := data_options["samples"]) is not None and samples < 2:
        raise ConfigurationError(f"dataset.samples={samples} must be at least 2")
    if (compared := options["evaluation"]["samples"]) < 0:
        raise ConfigurationError(f"evaluation.samples={compared} must be at least 0")
    if options["training"]["init_from"] is not None:
        raise ConfigurationError("training.init_from is for policies only; leave it out")
    run = open_run(
        options["output_dir"], training_config(options), device=options["device"], resume=check_folder(options)
    )
    domain = make_domain(task, data_options)
    data = domain.train_data()
    config = generative_config(options, domain, data)
    torch.manual_seed(options["seed"])
    model = DataModel(config, fit_normalizer(domain, data))
    evaluation = options["evaluation"]
    if evaluation["samples"]:
        model.with_sampling(nfe=evaluation["nfe"])  # raises for an invalid number before training
    run.train(
        model,
        data.to(run.accelerator.device),
        kind=KIND,
        plan=Plan(
            network=config.network,
            data=f"{len(data):,} data of shape {tuple(config.shape)}",
            nbytes=sum(values.nbytes for values in data.batch(torch.arange(len(data))).values()),
        ),
        evaluate=make_evaluate(domain, evaluation) if evaluation["samples"] else None,
        metadata={"task": task, "options": data_options},
        wandb=options["logging"]["wandb"],
        write_run_files=lambda directory: write_options(directory, options),
    )
    return finish(options)


def domain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a domain is made from. Raises ConfigurationError for the dataset of another task."""
    dataset, task = options["dataset"], options["task"]["name"]
    if dataset["name"] not in DATASETS[task]:
        raise ConfigurationError(unknown_dataset(task, dataset["name"]))
    chosen = {name: dataset[name] for name in DOMAIN_OPTIONS if name in dataset}
    return {"dataset": dataset.get("path", dataset["name"]), **chosen, "seed": options["seed"]}


def generative_config(options: Mapping[str, Any], domain: Domain, data: Samples) -> DataConfig:
    """The configuration of a model of the data. Raises ConfigurationError."""
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
    """Normalizes vectors to mean 0 and standard deviation 1, the same for all tokens; images and angles stay unchanged."""
    is_unchanged = domain.is_wrapped or data.x.ndim == 4
    scalings = {X: _scaling(data.x, "identity" if is_unchanged else "gaussian")}
    if data.condition is not None:
        scalings[CONDITION] = _scaling(data.condition, "gaussian")
    return Normalizer(scalings)


def _scaling(values: Tensor, mode: Any) -> Scaling:
    if values.ndim == 4:  # one range for all pixels
        return Scaling(mode, *(np.asarray(number) for number in (0.0, 1.0, -1.0, 1.0)))
    return Scaling.fit(mode, [values.flatten(0, -2).numpy()])


def make_evaluate(domain: Domain, settings: Mapping[str, Any]) -> Evaluate:
    """A function that scores a model by the energy distance to new data, jointly with their conditions."""

    def evaluate(model: DataModel) -> dict[str, float]:
        data = domain.sample_data(settings["samples"], settings["seed"])
        generated = generate_like(model, data, nfe=settings["nfe"], seed=settings["seed"])
        distance = float(energy_distance(*(joint(samples, domain) for samples in (generated, data))))
        return {"score": -distance, "energy_distance": distance}

    return evaluate


def joint(samples: Samples, domain: Domain) -> Tensor:
    """(N, d) samples as vectors joined with their conditions; angles as points on the unit circle."""
    if domain.is_wrapped:
        samples = replace(samples, x=torch.cat([samples.x.cos(), samples.x.sin()], dim=-1))
    return samples.joint()


def generate_like(model: DataModel, data: Samples, *, nfe: int | None, seed: int, guidance: float = 1.0) -> Samples:
    """Generate as many samples as there are data, for the same conditions and labels."""
    device = model.model.device
    given = data.to(device)
    x = model.generate(len(data), condition=given.condition, label=given.label, nfe=nfe, seed=seed, guidance=guidance)
    return replace(data, x=x.cpu())
