"""Small policies, and observations for them, that several tests share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.normalizer import Normalizer, Scaling
from flowchunk.policy.policy_config import PolicyConfig
from flowchunk.policy.sampling import SamplingOptions

HORIZON, STEPS = 8, 2
SAMPLING = ("solver", "eta", "nfe", "noise_scale", "prefix_method")
OBSERVATION = ObservationSpec(
    {
        "state": ObservationField((3,), names=("x", "y", "theta"), units=("m", "m", "rad"), wraps=(2,)),
        "forces": ObservationField((2, 2)),
    }
)
ACTION = ActionSpec(
    (ActionDimension("x", "m", "world", low=100.0, high=300.0), ActionDimension("y", "m", "world")), control_hz=10.0
)
LOW, HIGH = np.array([100.0, -0.02]), np.array([300.0, 0.02])


BEFORE_THE_SKIP = {"width": 16, "blocks": 1, "skip": False}
"""The ``mlp`` of formats 1 and 2."""


def make_policy(*, perturbed: bool = True, **config: Any) -> ChunkPolicy:
    """A small policy; perturbed, its network does something, otherwise its velocity is zero."""
    options: dict[str, Any] = {
        "network": "mlp",
        "network_options": {"width": 16, "blocks": 1},
        "horizon": HORIZON,
    } | config
    sampling = {name: options.pop(name) for name in SAMPLING if name in options}
    random = np.random.default_rng(0)
    scalings = {
        "state": Scaling.fit("min_max", [random.uniform([0, 0, -np.pi], [1, 2, np.pi], (500, 3))], identity=(2,)),
        "forces": Scaling.fit("gaussian", [random.normal(5, 2, (500, 2, 2))]),
        "action": Scaling.fit("min_max", [np.array([LOW, HIGH])]),
    }
    policy = ChunkPolicy(
        PolicyConfig(**options, sampling=SamplingOptions(**sampling)), OBSERVATION, ACTION, Normalizer(scalings)
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in policy.parameters():
        parameter.data += perturbed * 0.2 * torch.randn(parameter.shape, generator=generator)
    return policy.eval()


def observe(batch: int = 3, *, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "state": random.uniform([0, 0, -np.pi], [1, 2, np.pi], (batch, STEPS, 3)),
        "forces": random.normal(5, 2, (batch, STEPS, 2, 2)),
    }


def to_format_1(directory: Path) -> dict[str, Any]:
    """Rewrite a checkpoint as flowchunk 0.1.0 wrote it, with the names of then; returns its description.

    An ``mlp`` must have been made with skip=False: it had no other.
    """
    for file in directory.glob("*.safetensors"):
        tensors = {_name_then(name): values for name, values in load_file(file).items()}
        save_file(tensors, file)
    content: dict[str, Any] = json.loads((directory / "checkpoint.json").read_text())
    config = content["config"] | content["config"].pop("sampling")
    for name in ("nfe", "guidance", "prefix_method"):
        del config[name]
    for old, new in (("snr_cap", "min_snr_gamma"), ("noise_draws", "num_noise_samples")):
        config[old] = config.pop(new)
    vision = {"share_weights": "shared", "image_steps": "picture_steps", "color_jitter": "colour_jitter"}
    if "vision_options" in config:
        config["vision_options"] = {vision.get(name, name): value for name, value in config["vision_options"].items()}
    old_names = {"noise_prediction": "ddpm", "data_prediction": "x", "posterior": "kl"}
    config["objective"] = old_names.get(config["objective"], config["objective"])
    files = {file: [_name_then(name) for name in names] for file, names in content["weights"].items()}
    content |= {"format_version": 1, "config": config, "weights": files}
    config["network_options"].pop("skip", None)
    del content["plugins"]
    (directory / "checkpoint.json").write_text(json.dumps(content))
    if (state := directory / "training_state.json").exists():
        content_of_state = json.loads(state.read_text())
        content_of_state["files"] = {
            file: [_name_then(name) for name in names] for file, names in content_of_state["files"].items()
        }
        state.write_text(json.dumps(content_of_state))
    return content


def _name_then(name: str) -> str:
    return name.replace("model.network.", "network.", 1)
