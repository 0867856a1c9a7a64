"""Small policies, and observations for them, that several tests share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from flowchunk.policy.chunk_policy import ChunkPolicy, PolicyConfig
from flowchunk.policy.normalizer import Normalizer, Scaling

HORIZON, STEPS = 8, 2
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


def make_policy(*, perturbed: bool = True, **config: Any) -> ChunkPolicy:
    """A small policy; perturbed, its network does something, otherwise its velocity is zero."""
    options: dict[str, Any] = {
        "network": "mlp",
        "network_options": {"width": 16, "blocks": 1},
        "horizon": HORIZON,
    } | config
    random = np.random.default_rng(0)
    scalings = {
        "state": Scaling.fit("min_max", [random.uniform([0, 0, -np.pi], [1, 2, np.pi], (500, 3))], identity=(2,)),
        "forces": Scaling.fit("gaussian", [random.normal(5, 2, (500, 2, 2))]),
        "action": Scaling.fit("min_max", [np.array([LOW, HIGH])]),
    }
    policy = ChunkPolicy(PolicyConfig(**options), OBSERVATION, ACTION, Normalizer(scalings))
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
