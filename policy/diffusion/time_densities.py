"""Densities of the time t in training, each a function that samples from it with a generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature

import torch
from torch import Tensor

TimeDensity = Callable[..., Tensor]


def uniform_time(size: tuple[int, ...], *, generator: torch.Generator | None = None) -> Tensor:
    """Times of this size, uniform in [0, 1)."""
    return torch.rand(size, generator=generator)


def beta_time(size: tuple[int, ...], *, generator: torch.Generator | None = None) -> Tensor:
    """Times ``0.999·(1 - Beta(1.5, 1))``, biased towards noise (π0, Black et al. 2410.24164)."""
    return 0.999 * (1.0 - torch.rand(size, generator=generator) ** (2.0 / 3.0))


def logit_normal_time(
    size: tuple[int, ...], *, mean: float = 0.0, std: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Times whose logit is normal, mostly in the middle of the path (Esser et al. 2403.03206).

    Raises ValueError unless mean is finite and std above 0.
    """
    if not 0 < std < math.inf or not math.isfinite(mean):
        raise ValueError(f"logit_normal: mean={mean}, std={std}: expected a finite mean and a std above 0")
    return torch.sigmoid(mean + std * torch.randn(size, generator=generator))


def mode_time(size: tuple[int, ...], *, scale: float = 1.29, generator: torch.Generator | None = None) -> Tensor:
    """Times ``1 - r - s·(cos²(πr/2) - 1 + r)`` for r uniform (Esser et al. 2403.03206): s > 0 favors the middle.

    scale: s from -1 to 2/(π - 2) ≈ 1.75, where t falls with r. Raises ValueError beyond.
    """
    if not -1 <= scale <= 2 / (math.pi - 2):
        raise ValueError(f"mode: scale={scale} must be from -1 to 2/(π - 2) = {2 / (math.pi - 2):.3f}")
    r = torch.rand(size, generator=generator)
    return (1 - r - scale * ((math.pi / 2 * r).cos() ** 2 - 1 + r)).clamp(0, 1)


TIME_DENSITIES: dict[str, TimeDensity] = {
    "uniform": uniform_time,
    "beta": beta_time,
    "logit_normal": logit_normal_time,
    "mode": mode_time,
}


def time_density(name: str, options: Mapping[str, float] | None = None) -> TimeDensity:
    """The density of that name with its parameters set. Raises ValueError for unknown or invalid ones."""
    if name not in TIME_DENSITIES:
        raise ValueError(f"unknown time_density {name!r}; there are {', '.join(TIME_DENSITIES)}")
    density, options = TIME_DENSITIES[name], dict(options or {})
    known = [parameter for parameter in signature(density).parameters if parameter not in ("size", "generator")]
    if unknown := sorted(options.keys() - set(known)):
        takes = f"takes {', '.join(known)}" if known else "takes no parameters"
        raise ValueError(f"time_density {name} does not know {', '.join(unknown)}; it {takes}")
    if wrong := {key: value for key, value in options.items() if not isinstance(value, int | float)}:
        raise ValueError(f"time_density {name}: {', '.join(f'{key}={wrong[key]}' for key in wrong)} must be a number")
    chosen = partial(density, **options)
    chosen((1,), generator=torch.Generator())  # refuse a parameter out of range now, not in the first step
    return chosen
