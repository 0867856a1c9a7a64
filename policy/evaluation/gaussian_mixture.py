"""A distribution whose flow is known in closed form, to test solvers and claims against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowchunk.policy.flow import Velocity


def mixture_velocity(centers: Tensor, std: float) -> Velocity:
    """The exact velocity E[x_1 - x_0 | x_t] on straight paths to K equally likely Gaussians.

    centers: (K, d). std: of each Gaussian in every direction. The velocity takes x_t (B, d) and t (B,).
    """

    def velocity(x_t: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        t = t[:, None]
        variance = (t * std) ** 2 + (1 - t) ** 2  # (B, 1)
        offset = x_t[:, None] - t[..., None] * centers  # (B, K, d)
        weight = (-(offset**2).sum(-1) / (2 * variance)).softmax(-1)[..., None]  # posterior of the components given x_t
        slope = ((t * std**2 - (1 - t)) / variance)[..., None]
        return (weight * (centers + slope * offset)).sum(1)

    return velocity


def sample_mixture(n: int, centers: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """(n, d) samples of the mixture of ``mixture_velocity``."""
    component = torch.randint(len(centers), (n,), generator=generator)
    return centers[component] + std * torch.randn(n, centers.shape[1], generator=generator)
