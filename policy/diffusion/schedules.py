"""How data and noise are mixed along the path: ``x_t = alpha(t)·x_1 + sigma(t)·x_0``, noise at t = 0, data at t = 1.

The papers' schedules are functions of the noise level u = 1 - t; here they are functions of t, with derivatives in t.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

TimeFunction = Callable[[Tensor], Tensor]
TIME_EPSILON = 1e-3  # the smallest distance from an end of the path at which alpha or sigma is divided by


class Posterior(NamedTuple):
    """p(x_{t_end} | x_t, x_1) of a Gaussian path: mean ``x_t_weight·x_t + x_1_weight·x_1``, standard deviation ``std``."""

    x_t_weight: Tensor
    x_1_weight: Tensor
    std: Tensor


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
        """The signal-to-noise ratio (alpha/sigma)²; infinite at t = 1."""
        return (self.alpha(t) / self.sigma(t)) ** 2

    def log_ratio(self, t: Tensor) -> Tensor:
        """log(alpha/sigma), half the log-SNR: the time variable of DPM-Solver."""
        return self.alpha(t).log() - self.sigma(t).log()

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_dot and sigma_dot at t, kept ``TIME_EPSILON`` away from the ends, where they may be infinite."""
        inside = t.clamp(TIME_EPSILON, 1 - TIME_EPSILON)
        return self.alpha_dot(inside), self.sigma_dot(inside)

    def posterior(self, t: Tensor, t_end: Tensor) -> Posterior:
        """The distribution of x_{t_end} given x_t and x_1, for t <= t_end."""
        alpha, sigma, alpha_end, sigma_end = self.alpha(t), self.sigma(t), self.alpha(t_end), self.sigma(t_end)
        ratio = alpha / alpha_end
        variance = sigma**2 - (ratio * sigma_end) ** 2  # of the noise between the two times
        return Posterior(
            x_t_weight=ratio * (sigma_end / sigma) ** 2,
            x_1_weight=alpha_end * variance / sigma**2,
            std=variance.clamp(min=0).sqrt() * sigma_end / sigma,
        )

    def next_posterior(self, t: Tensor, *, num_grid_steps: int) -> Posterior:
        """The posterior of the next grid step; the last step, at whose end the SNR is infinite, repeats the one before."""
        step = 1 / num_grid_steps
        t = t.clamp(max=1 - 2 * step)
        return self.posterior(t, t + step)


def variance_preserving(alpha_squared: TimeFunction, sigma_squared: TimeFunction, slope: TimeFunction) -> Schedule:
    """The schedule with alpha² + sigma² = 1, from both squares (each accurate where it is small) and d(alpha²)/dt."""
    return Schedule(
        alpha=lambda t: alpha_squared(t).sqrt(),
        sigma=lambda t: sigma_squared(t).sqrt(),
        alpha_dot=lambda t: slope(t) / (2 * alpha_squared(t).sqrt()),
        sigma_dot=lambda t: -slope(t) / (2 * sigma_squared(t).sqrt()),
    )


def _linear_beta() -> Schedule:
    """DDPM's beta from 0.1 to 20 in continuous time (Ho 2006.11239, Song 2011.13456): alpha² = exp(-(0.1·u + 9.95·u²))."""

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


def _sigmoid(end: float = 3.0) -> Schedule:
    """Jabri et al. 2212.11972, from -end to end at temperature 1: alpha² falls with the sigmoid of the noise level.

    sigma² = (sg(6u - 3) - sg(-3))/(sg(3) - sg(-3)) for end = 3, without differences, for accurate small values.
    """
    scale = 2 * math.sinh(end / 2)

    def squared(u: Tensor) -> Tensor:
        return (end * u).sinh() / (scale * (end * (u - 0.5)).cosh())

    return variance_preserving(
        lambda t: squared(t),
        lambda t: squared(1 - t),
        lambda t: end * math.cosh(end / 2) / (scale * (end * (t - 0.5)).cosh() ** 2),
    )


LINEAR = Schedule(
    alpha=lambda t: t, sigma=lambda t: 1 - t, alpha_dot=torch.ones_like, sigma_dot=lambda t: -torch.ones_like(t),
    is_straight=True,
)  # fmt: skip
"""The straight path of flow matching."""

SCHEDULES = {"linear": LINEAR, "linear_beta": _linear_beta(), "cosine": _cosine(), "sigmoid": _sigmoid()}


def discrete_betas(schedule: Schedule, steps: int) -> Tensor:
    """(steps,) betas, whose cumulative products of (1 - beta) are alpha² at u = 1/steps … 1: the input of `diffusers`.

    If alpha² ends at zero the last is capped at 0.999, as there. For schedules with alpha² + sigma² = 1.
    """
    t = 1 - torch.arange(0, steps + 1, dtype=torch.float64) / steps
    alpha_bar = schedule.alpha(t) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
