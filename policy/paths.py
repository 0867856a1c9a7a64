"""Ways from noise to data, and what a network on the way is asked for.

A path has three verbs: ``sample`` a point x_t and the target there, ``loss`` of an output against it, and ``step`` along a
velocity. Every Euclidean domain walks on a ``GaussianPath``: a schedule, and a *reading* of the network's output. The
history of diffusion objectives is a handful of values of those two:

    reading    the network predicts                             first in
    flow       velocity of the pair, alpha'·x_1 + sigma'·x_0    Lipman 2210.02747, Liu 2209.03003
    noise      x_0                                              Ho 2006.11239
    x          x_1                                              (weight: min(SNR, gamma), Hang 2303.09556)
    v          alpha·x_0 - sigma·x_1                            Salimans and Ho 2202.00512
    posterior  mean of the next, cleaner step                   Sohl-Dickstein 1503.03585

All readings of one network say the same and are turned into one another by ``estimate`` and ``velocity``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flowchunk.policy.schedules import LINEAR, Schedule

READINGS = ("flow", "noise", "x", "v", "posterior")
END = 1e-3  # how near to an end a division by alpha or sigma may come
MIN_ALPHA = 0.08  # below this, a noise prediction tells nothing of the data: their estimate is its error over alpha


class Estimate(NamedTuple):
    """What the network believes to be the ends of the way that leads through x_t: data x_1 and noise x_0."""

    x_1: Tensor
    x_0: Tensor


class Path(Protocol):
    """A way from noise to data. x_0, x_1, x_t: (B, …); t: (B,), or (B, H) with a time a token."""

    def noise(self, size: tuple[int, ...], *, generator: torch.Generator | None = None) -> Tensor:
        """x_0, where the way begins."""

    def sample(self, x_0: Tensor, x_1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x_t on the way between the two, and what the network should say there."""

    def loss(self, output: Tensor, target: Tensor, t: Tensor) -> Tensor:
        """Weighted squared error, like x."""

    def velocity(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The network's output as dx/dt."""

    def step(self, x: Tensor, displacement: Tensor) -> Tensor:
        """Where a displacement leads from x."""


class Posterior(NamedTuple):
    """p(x_{t_end} | x_t, x_1) of a Gaussian path: mean ``x_t_share·x_t + x_1_share·x_1``, standard deviation ``std``."""

    x_t_share: Tensor
    x_1_share: Tensor
    std: Tensor


def broadcast_time(t: Tensor, x: Tensor) -> Tensor:
    """View t, (B,) or (B, H), with as many axes as x."""
    return t.reshape(*t.shape, *(1,) * (x.ndim - t.ndim))


@dataclass(frozen=True)
class GaussianPath:
    """``x_t = alpha·x_1 + sigma·x_0`` with standard normal x_0, and how the network's output is read there.

    snr_cap: for the reading ``x`` alone, weigh the error by min(SNR, snr_cap). grid_steps: for ``posterior`` alone, into how
    many steps of equal length the way is cut. x_1_limit: estimated data are kept within ± this, as DDPM does, because
    noise says little about data where alpha is small; None for the readings that need it not. For the same reason such
    readings are sampled from ``first_informative_time`` on, see ``uniform_times``.
    """

    schedule: Schedule = LINEAR
    reading: str = "flow"
    snr_cap: float | None = None
    grid_steps: int = 100
    x_1_limit: float | None = None

    @property
    def is_straight_flow(self) -> bool:
        """Whether the output is the velocity of a straight line, so that nothing has to be converted."""
        return self.reading == "flow" and self.schedule.is_straight

    @property
    def predicts_from_start(self) -> bool:
        """Whether the output says something of the data where the way begins: it does not where alpha divides it."""
        return self.reading not in ("noise", "posterior")

    @property
    def has_velocity_at_end(self) -> bool:
        """Whether the velocity can be read at t = 1: not where the noise's slope is infinite, or sigma divides the output."""
        return self.schedule.is_straight and self.reading not in ("x", "posterior")

    @cached_property
    def first_informative_time(self) -> float:
        """The first instant (to 1e-3) at which alpha is MIN_ALPHA: until there x_t is noise to within that share."""
        t = torch.linspace(0, 1, 1001, dtype=torch.float64)
        return float(t[self.schedule.alpha(t) >= MIN_ALPHA][0])

    def noise(self, size: tuple[int, ...], *, generator: torch.Generator | None = None) -> Tensor:
        return torch.randn(size, generator=generator)

    def sample(self, x_0: Tensor, x_1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        t = broadcast_time(t, x_1)
        x_t = self.schedule.alpha(t) * x_1 + self.schedule.sigma(t) * x_0
        return x_t, self._target(x_0, x_1, x_t, t)

    def _target(self, x_0: Tensor, x_1: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        if self.reading == "flow":
            alpha_dot, sigma_dot = self._slopes(t)
            return alpha_dot * x_1 + sigma_dot * x_0
        if self.reading == "noise":
            return x_0
        if self.reading == "x":
            return x_1
        if self.reading == "v":
            return self.schedule.alpha(t) * x_0 - self.schedule.sigma(t) * x_1
        posterior = self.next_posterior(t)
        return ((posterior.x_t_share - 1) * x_t + posterior.x_1_share * x_1) / posterior.std

    def loss(self, output: Tensor, target: Tensor, t: Tensor) -> Tensor:
        error = (output - target) ** 2
        if self.snr_cap is not None:
            return self.schedule.snr(broadcast_time(t, error).clamp(max=1 - END)).clamp(max=self.snr_cap) * error
        return error

    def estimate(self, output: Tensor, x_t: Tensor, t: Tensor) -> Estimate:
        """Both ends, read from the output at x_t; where that would divide by zero, t stays ``END`` away from the end."""
        t = broadcast_time(t, x_t)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        if self.reading == "flow":
            alpha_dot, sigma_dot = self._slopes(t)
            determinant = sigma * alpha_dot - sigma_dot * alpha
            x_1, x_0 = sigma * output - sigma_dot * x_t, alpha_dot * x_t - alpha * output
            return Estimate(x_1 / determinant, x_0 / determinant)
        if self.reading == "v":
            total = alpha**2 + sigma**2
            return Estimate((alpha * x_t - sigma * output) / total, (sigma * x_t + alpha * output) / total)
        if self.reading == "noise":
            return Estimate(self._limited((x_t - sigma * output) / self.schedule.alpha(t.clamp(min=END))), output)
        if self.reading == "x":
            x_1 = output
        else:
            posterior = self.next_posterior(t)
            x_1 = self._limited((posterior.std * output + (1 - posterior.x_t_share) * x_t) / posterior.x_1_share)
        return Estimate(x_1, (x_t - alpha * x_1) / self.schedule.sigma(t.clamp(max=1 - END)))

    def velocity(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        if self.is_straight_flow:
            return output
        x_1, x_0 = self.estimate(output, x_t, t)
        alpha_dot, sigma_dot = self._slopes(broadcast_time(t, x_t))
        return alpha_dot * x_1 + sigma_dot * x_0

    def step(self, x: Tensor, displacement: Tensor) -> Tensor:
        return x + displacement

    def posterior(self, t: Tensor, t_end: Tensor) -> Posterior:
        """Where x_{t_end}, cleaner than x_t, lies when x_t and x_1 are known."""
        alpha, sigma, alpha_end, sigma_end = *self._scales(t), *self._scales(t_end)
        kept = alpha / alpha_end
        added = sigma**2 - (kept * sigma_end) ** 2  # variance of the noise that lies between the two times
        return Posterior(
            kept * (sigma_end / sigma) ** 2,
            alpha_end * added / sigma**2,
            added.clamp(min=0).sqrt() * sigma_end / sigma,
        )

    def next_posterior(self, t: Tensor) -> Posterior:
        """The posterior one grid step further; the last step, whose SNR has no end, repeats the one before."""
        step = 1 / self.grid_steps
        t = t.clamp(max=1 - 2 * step)
        return self.posterior(t, t + step)

    def _scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.schedule.alpha(t), self.schedule.sigma(t)

    def _slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        inside = t.clamp(END, 1 - END)  # they may be infinite at an end
        return self.schedule.alpha_dot(inside), self.schedule.sigma_dot(inside)

    def _limited(self, x_1: Tensor) -> Tensor:
        return x_1 if self.x_1_limit is None else x_1.clamp(-self.x_1_limit, self.x_1_limit)


FLOW = GaussianPath()
"""Flow matching as the package means it: straight lines, and the network predicts ``x_1 - x_0``."""


def posterior_kl(path: GaussianPath, x_1: Tensor, estimated_x_1: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """KL (nats, like x) of the model's step from t to t_end against the true posterior, both with its variance.

    Equal to ½·(SNR(t_end) - SNR(t))·(x_1 - estimate)²: what Sohl-Dickstein et al. (1503.03585) sum over the steps.
    """
    posterior = path.posterior(broadcast_time(t, x_1), broadcast_time(t_end, x_1))
    return 0.5 * (posterior.x_1_share * (x_1 - estimated_x_1) / posterior.std) ** 2


class WrappedPath:
    """Shortest ways between angles (radians), from the uniform distribution on the torus (Chen and Lipman 2302.03660)."""

    def noise(self, size: tuple[int, ...], *, generator: torch.Generator | None = None) -> Tensor:
        return math.pi * (2 * torch.rand(size, generator=generator) - 1)

    def sample(self, x_0: Tensor, x_1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        velocity = wrap(x_1 - x_0)
        return wrap(x_0 + broadcast_time(t, x_1) * velocity), velocity

    def loss(self, output: Tensor, target: Tensor, t: Tensor) -> Tensor:
        return (output - target) ** 2

    def velocity(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return output

    def step(self, x: Tensor, displacement: Tensor) -> Tensor:
        return wrap(x + displacement)


def wrap(angle: Tensor) -> Tensor:
    """The same angle in [-π, π)."""
    return (angle + math.pi) % (2 * math.pi) - math.pi
