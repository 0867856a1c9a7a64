"""How data and noise are mixed along the way: ``x_t = alpha(t)·x_1 + sigma(t)·x_0``, noise at t = 0 and data at t = 1.

The papers' schedules run over the noise level u = 1 - t; here they are read on our clock, with their derivatives in t.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TimeFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Schedule:
    """alpha, sigma and their derivatives with respect to t, each a function of t in [0, 1].

    is_straight: alpha = t and sigma = 1 - t; on the others the derivatives are infinite at an end.
    """

    alpha: TimeFunction
    sigma: TimeFunction
    alpha_dot: TimeFunction
    sigma_dot: TimeFunction
    is_straight: bool = False

    def snr(self, t: Tensor) -> Tensor:
        """Signal to noise, (alpha/sigma)²; infinite at t = 1."""
        return (self.alpha(t) / self.sigma(t)) ** 2

    def log_ratio(self, t: Tensor) -> Tensor:
        """log(alpha/sigma), the clock of DPM-Solver: half the log-SNR."""
        return self.alpha(t).log() - self.sigma(t).log()


def variance_preserving(alpha_squared: TimeFunction, sigma_squared: TimeFunction, slope: TimeFunction) -> Schedule:
    """The schedule with alpha² + sigma² = 1, from both squares (exact where they are small) and d(alpha²)/dt."""
    return Schedule(
        alpha=lambda t: alpha_squared(t).sqrt(),
        sigma=lambda t: sigma_squared(t).sqrt(),
        alpha_dot=lambda t: slope(t) / (2 * alpha_squared(t).sqrt()),
        sigma_dot=lambda t: -slope(t) / (2 * sigma_squared(t).sqrt()),
    )


def _linear_beta() -> Schedule:
    """DDPM's beta from 0.1 to 20 (Ho et al. 2006.11239, in Song's continuous time): alpha² = exp(-(0.1·u + 9.95·u²))."""

    def exponent(t: Tensor) -> Tensor:
        return -(0.1 * (1 - t) + 9.95 * (1 - t) ** 2)

    return variance_preserving(
        lambda t: exponent(t).exp(),
        lambda t: -torch.expm1(exponent(t)),
        lambda t: exponent(t).exp() * (0.1 + 19.9 * (1 - t)),
    )


def _cosine(offset: float = 0.008) -> Schedule:
    """Nichol and Dhariwal 2102.09672: alpha² = cos²(½π(u + s)/(1 + s)) / cos²(½π·s/(1 + s))."""
    start = math.pi / 2 * offset / (1 + offset)
    largest = math.cos(start) ** 2

    def angle(t: Tensor) -> Tensor:
        return math.pi / 2 * (1 - t + offset) / (1 + offset)

    return variance_preserving(
        lambda t: angle(t).cos() ** 2 / largest,
        lambda t: (math.pi / 2 * (1 - t) / (1 + offset)).sin() * (angle(t) + start).sin() / largest,
        lambda t: math.pi / (2 * (1 + offset)) * (2 * angle(t)).sin() / largest,
    )


def _sigmoid(reach: float = 3.0) -> Schedule:
    """Jabri et al. 2212.11972, start -3, end 3, temperature 1: alpha² falls with the sigmoid of the noise level.

    sigma² = (sg(6u - 3) - sg(-3))/(sg(3) - sg(-3)), written without differences so that small values stay exact.
    """
    scale = 2 * math.sinh(reach / 2)

    def share(u: Tensor) -> Tensor:
        return (reach * u).sinh() / (scale * (reach * (u - 0.5)).cosh())

    return variance_preserving(
        lambda t: share(t),
        lambda t: share(1 - t),
        lambda t: reach * math.cosh(reach / 2) / (scale * (reach * (t - 0.5)).cosh() ** 2),
    )


LINEAR = Schedule(
    alpha=lambda t: t, sigma=lambda t: 1 - t, alpha_dot=torch.ones_like, sigma_dot=lambda t: -torch.ones_like(t),
    is_straight=True,
)  # fmt: skip
"""The straight path of flow matching."""

SCHEDULES = {"linear": LINEAR, "linear_beta": _linear_beta(), "cosine": _cosine(), "sigmoid": _sigmoid()}


def discrete_betas(schedule: Schedule, steps: int) -> Tensor:
    """(steps,) betas whose running products of (1 - beta) are alpha² at u = 1/steps … 1: what `diffusers` calls for.

    The last is capped at 0.999, as there, where alpha² ends at zero. For schedules with alpha² + sigma² = 1.
    """
    t = 1 - torch.arange(0, steps + 1, dtype=torch.float64) / steps
    alpha_bar = schedule.alpha(t) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
