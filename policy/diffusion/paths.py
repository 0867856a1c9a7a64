"""Paths from noise to data: the point x_t at time t, the training target there, and the network's output as a velocity.

Euclidean data use a ``GaussianPath``: a schedule, which mixes noise and data, and a prediction, which is what the network
is asked for (see predictions.py). Angles use a ``WrappedPath``, the geodesics of the torus.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.policy.diffusion.predictions import Endpoints, Prediction, VelocityPrediction
from flowchunk.policy.diffusion.schedules import LINEAR, Schedule
from flowchunk.policy.shapes import Data, Times

MIN_ALPHA = (
    0.08  # below it a noise prediction carries no information about the data: their estimate is its error / alpha
)

Generators = torch.Generator | Sequence[torch.Generator]
"""One generator for a whole batch, or one for each row, so that a row does not depend on its neighbors."""


def row_generators(batch: int, seed: int | Sequence[int] | None) -> Generators:
    """One generator for the batch, or for a sequence of seeds one per row; without a seed, torch's global generator.

    Raises ConfigurationError unless there are as many seeds as rows.
    """
    if seed is None:
        return torch.default_generator
    if isinstance(seed, int | np.integer):
        return torch.Generator().manual_seed(int(seed))
    if len(seed) != batch:
        raise ConfigurationError(
            f"{len(seed)} seeds were given for a batch of {batch}; give one per row, or a single one"
        )
    return [torch.Generator().manual_seed(int(s)) for s in seed]


class PathSample(NamedTuple):
    """A point x_t (B, …) of the path, and the target of the network there, like x_t."""

    x_t: Tensor
    target: Tensor


@runtime_checkable
class ProbabilityPath(Protocol):
    """From noise to data: what training (``sample_noise``, ``sample``, ``errors``) and sampling (the others) need.

    x_0, x_1, x_t: (B, …); t: (B,), or (B, H) with a time per token.
    """

    def sample_noise(self, size: tuple[int, ...], *, generator: Generators | None = None) -> Tensor:
        """Noise x_0 of this size (B, …), the start of the path."""

    def sample(self, *, x_0: Data, x_1: Data, t: Times) -> PathSample:
        """x_t between the two, and the target of the network there."""

    def errors(self, output: Data, target: Data, t: Times) -> Data:
        """Weighted squared errors, like x."""

    def velocity(self, output: Data, x_t: Data, t: Times) -> Data:
        """The network's output at x_t as dx/dt."""

    def step(self, x: Data, displacement: Data) -> Data:
        """x moved by a displacement, velocity times duration."""


def broadcast_time(t: Tensor, x: Tensor) -> Tensor:
    """t, (B,) or (B, H), viewed with as many axes as x."""
    return t.reshape(*t.shape, *(1,) * (x.ndim - t.ndim))


def sample_normal(size: tuple[int, ...], *, generator: Generators | None = None) -> Tensor:
    """Standard normal samples of this size (B, …)."""
    return sample_rows(torch.randn, size, generator=generator)


def sample_rows(sample: Callable[..., Tensor], size: tuple[int, ...], *, generator: Generators | None) -> Tensor:
    """``sample(size, generator=…)`` with one generator, or row by row with one generator per row."""
    if generator is None or isinstance(generator, torch.Generator):
        return sample(size, generator=generator)
    return torch.stack([sample(size[1:], generator=row) for row in generator])


@dataclass(frozen=True)
class GaussianPath:
    """``x_t = alpha·x_1 + sigma·x_0`` with standard normal x_0, and the prediction that the network is asked for."""

    schedule: Schedule = LINEAR
    prediction: Prediction = VelocityPrediction()  # noqa: RUF009 -- frozen, without fields

    @cached_property
    def first_informative_time(self) -> float:
        """The first time, on a grid of 1e-3, at which alpha reaches ``MIN_ALPHA``: before it x_t is practically noise."""
        t = torch.linspace(0, 1, 1001, dtype=torch.float64)
        return float(t[self.schedule.alpha(t) >= MIN_ALPHA][0])

    @property
    def has_velocity_at_end(self) -> bool:
        """Whether the velocity is known at t = 1: not if sigma's slope is infinite there, or the output divided by sigma."""
        return self.schedule.is_straight and self.prediction.has_velocity_at_end

    def sample_noise(self, size: tuple[int, ...], *, generator: Generators | None = None) -> Tensor:
        return sample_normal(size, generator=generator)

    def sample(self, *, x_0: Data, x_1: Data, t: Times) -> PathSample:
        t = broadcast_time(t, x_1)
        x_t = self.schedule.alpha(t) * x_1 + self.schedule.sigma(t) * x_0
        return PathSample(x_t, self.prediction.target(self.schedule, x_0=x_0, x_1=x_1, x_t=x_t, t=t))

    def errors(self, output: Data, target: Data, t: Times) -> Data:
        errors = (output - target) ** 2
        weight = self.prediction.weight(self.schedule, broadcast_time(t, errors))
        return errors if weight is None else weight * errors

    def endpoints(self, output: Data, x_t: Data, t: Times) -> Endpoints:
        """Both ends of the path, as the network's output at x_t implies them."""
        return self.prediction.to_endpoints(self.schedule, output, x_t=x_t, t=broadcast_time(t, x_t))

    def velocity(self, output: Data, x_t: Data, t: Times) -> Data:
        return self.prediction.to_velocity(self.schedule, output, x_t=x_t, t=broadcast_time(t, x_t))

    def step(self, x: Data, displacement: Data) -> Data:
        return x + displacement


FLOW = GaussianPath()
"""Flow matching as this package defines it: straight paths, and the network predicts ``x_1 - x_0``."""


def posterior_kl(schedule: Schedule, *, x_1: Tensor, estimated_x_1: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """KL divergence (nats, like x) between the posterior and the model's step from t to t_end, both with its variance.

    It equals ½·(SNR(t_end) - SNR(t))·(x_1 - estimated_x_1)², which Sohl-Dickstein et al. (1503.03585) sum over the steps.
    """
    posterior = schedule.posterior(broadcast_time(t, x_1), broadcast_time(t_end, x_1))
    return 0.5 * (posterior.x_1_weight * (x_1 - estimated_x_1) / posterior.std) ** 2


@dataclass(frozen=True)
class WrappedPath:
    """Geodesics between angles (radians), from the uniform distribution on the torus (Chen and Lipman 2302.03660)."""

    def sample_noise(self, size: tuple[int, ...], *, generator: Generators | None = None) -> Tensor:
        return math.pi * (2 * sample_rows(torch.rand, size, generator=generator) - 1)

    def sample(self, *, x_0: Data, x_1: Data, t: Times) -> PathSample:
        velocity = wrap(x_1 - x_0)
        return PathSample(wrap(x_0 + broadcast_time(t, x_1) * velocity), velocity)

    def errors(self, output: Data, target: Data, t: Times) -> Data:
        return (output - target) ** 2

    def velocity(self, output: Data, x_t: Data, t: Times) -> Data:
        return output

    def step(self, x: Data, displacement: Data) -> Data:
        return wrap(x + displacement)


def wrap(angle: Tensor) -> Tensor:
    """The same angle in [-π, π)."""
    return (angle + math.pi) % (2 * math.pi) - math.pi
