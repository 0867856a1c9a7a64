"""Where on the way from noise to data training looks: densities of t, all drawn with a generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature

import torch
from torch import Tensor

TimeDensity = Callable[..., Tensor]


def uniform_time(size: tuple[int, ...], *, generator: torch.Generator | None = None) -> Tensor:
    """Times spread evenly over [0, 1)."""
    return torch.rand(size, generator=generator)


def beta_time(size: tuple[int, ...], *, generator: torch.Generator | None = None) -> Tensor:
    """Times ``0.999·(1 - Beta(1.5, 1))``, biased to noise (Black et al. 2410.24164): the observation settles the rest."""
    return 0.999 * (1.0 - torch.rand(size, generator=generator) ** (2.0 / 3.0))


def logit_normal_time(
    size: tuple[int, ...], *, mean: float = 0.0, std: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Times whose logit is normal: the middle of the way (Esser et al. 2403.03206). std must be above 0."""
    if not 0 < std < math.inf or not math.isfinite(mean):
        raise ValueError(f"logit_normal: mean={mean}, std={std}: expected a finite mean and a std above 0")
    return torch.sigmoid(mean + std * torch.randn(size, generator=generator))


def mode_time(size: tuple[int, ...], *, scale: float = 1.29, generator: torch.Generator | None = None) -> Tensor:
    """Times ``1 - r - s·(cos²(πr/2) - 1 + r)`` for r uniform (Esser et al. 2403.03206): s > 0 favours the middle.

    scale: s from -1 to 2/(π - 2) ≈ 1.75; beyond, t would no longer fall with r.
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
    """The density of that name with its parameters set. Raises ValueError for a name or parameter that is not there."""
    if name not in TIME_DENSITIES:
        raise ValueError(f"unknown time_density {name!r}; there are {', '.join(TIME_DENSITIES)}")
    density, options = TIME_DENSITIES[name], dict(options or {})
    known = [parameter for parameter in signature(density).parameters if parameter not in ("size", "generator")]
    if unknown := sorted(options.keys() - set(known)):
        takes = f"takes {', '.join(known)}" if known else "takes no parameters"
        raise ValueError(f"time_density {name} does not know {', '.join(unknown)}; it {takes}")
    if texts := {key: value for key, value in options.items() if not isinstance(value, int | float)}:
        raise ValueError(f"time_density {name}: {', '.join(f'{key}={texts[key]}' for key in texts)} must be a number")
    chosen = partial(density, **options)
    chosen((1,), generator=torch.Generator())  # a parameter out of range is said now, not in the first step
    return chosen
