"""What a network on a Gaussian path predicts at x_t, and how both ends of the path follow from its output.

The history of diffusion objectives is a handful of these, each with any schedule:

    objective          the network predicts                             first in
    flow               velocity of the pair, alpha'·x_1 + sigma'·x_0    Lipman 2210.02747, Liu 2209.03003
    noise_prediction   x_0                                              Ho 2006.11239 (DDPM)
    data_prediction    x_1                                              (weight: min(SNR, gamma), Hang 2303.09556)
    v                  alpha·x_0 - sigma·x_1                            Salimans and Ho 2202.00512
    posterior          mean of the next, cleaner step                   Sohl-Dickstein 1503.03585

For the exact network all of them are equivalent: ``to_endpoints`` and ``to_velocity`` convert between them. A prediction of
your own is a subclass with a ``target`` and its inverse, and a line ``PREDICTIONS.register("name", MyPrediction)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.policy.diffusion.schedules import TIME_EPSILON, Schedule
from flowchunk.policy.registry import Registry


class Endpoints(NamedTuple):
    """The network's estimate of the data x_1 and the noise x_0 whose path leads through x_t; both like x_t."""

    x_1: Tensor
    x_0: Tensor


class Prediction(ABC):
    """What the network predicts. x_0, x_1, x_t and outputs: (B, …); times t with as many axes as x.

    default_schedule: name in ``SCHEDULES``, if none is chosen. needs_straight_path: the target is unbounded on curved
    schedules. is_informative_at_start: False if the data estimate divides by alpha, and so is worthless while alpha is about
    0. has_velocity_at_end: False if the noise estimate divides by sigma, so that there is no velocity at t = 1.
    diffusers_name: the ``prediction_type`` of `diffusers`, None if it has none. Fields of a subclass called ``min_snr_gamma``
    and ``clip_sample_range`` are filled from the options of those names.
    """

    default_schedule: ClassVar[str] = "cosine"
    needs_straight_path: ClassVar[bool] = False
    is_informative_at_start: ClassVar[bool] = True
    has_velocity_at_end: ClassVar[bool] = True
    diffusers_name: ClassVar[str | None] = None

    @abstractmethod
    def target(self, schedule: Schedule, *, x_0: Tensor, x_1: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The training target at x_t, like x_t."""

    @abstractmethod
    def to_endpoints(self, schedule: Schedule, output: Tensor, *, x_t: Tensor, t: Tensor) -> Endpoints:
        """Estimates of x_1 and x_0 from the output; finite at both ends of the path."""

    def to_velocity(self, schedule: Schedule, output: Tensor, *, x_t: Tensor, t: Tensor) -> Tensor:
        """The output as dx/dt."""
        x_1, x_0 = self.to_endpoints(schedule, output, x_t=x_t, t=t)
        alpha_dot, sigma_dot = schedule.slopes(t)
        return alpha_dot * x_1 + sigma_dot * x_0

    def weight(self, schedule: Schedule, t: Tensor) -> Tensor | None:
        """The weight of the squared error at t; None for 1."""
        return None

    def training_times(self, t: Tensor) -> Tensor:
        """The times (B,) of training, from times t (B,) that the time density sampled."""
        return t


@dataclass(frozen=True)
class VelocityPrediction(Prediction):
    """The velocity of the pair, ``alpha'·x_1 + sigma'·x_0``; on a straight path ``x_1 - x_0``, data minus noise."""

    default_schedule = "linear"
    needs_straight_path = True

    def target(self, schedule: Schedule, *, x_0: Tensor, x_1: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        alpha_dot, sigma_dot = schedule.slopes(t)
        return alpha_dot * x_1 + sigma_dot * x_0

    def to_endpoints(self, schedule: Schedule, output: Tensor, *, x_t: Tensor, t: Tensor) -> Endpoints:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        alpha_dot, sigma_dot = schedule.slopes(t)
        determinant = sigma * alpha_dot - sigma_dot * alpha
        x_1, x_0 = sigma * output - sigma_dot * x_t, alpha_dot * x_t - alpha * output
        return Endpoints(x_1=x_1 / determinant, x_0=x_0 / determinant)

    def to_velocity(self, schedule: Schedule, output: Tensor, *, x_t: Tensor, t: Tensor) -> Tensor:
        return output


@dataclass(frozen=True)
class NoisePrediction(Prediction):
    """The noise x_0, as in DDPM (Ho et al. 2006.11239).

    clip_sample_range: the data estimate is clipped to ± this, as in DDPM, because it is unreliable while alpha is small;
    None for no limit.
    """

    is_informative_at_start = False
    diffusers_name = "epsilon"
    clip_sample_range: float | None = None

    def target(self, schedule: Schedule, *, x_0: Tensor, x_1: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return x_0

    def to_endpoints(self, schedule: Schedule, output: Tensor, *, x_t: Tensor, t: Tensor) -> Endpoints:
        x_1 = (x_t - schedule.sigma(t) * output) / schedule.alpha(t.clamp(min=TIME_EPSILON))
        return Endpoints(x_1=clip(x_1, self.clip_sample_range), x_0=output)


@dataclass(frozen=True)
class DataPrediction(Prediction):
    """The data x_1. min_snr_gamma: the error is weighted by min(SNR, min_snr_gamma) (Hang et al. 2303.09556); None for 1.

    Raises ConfigurationError unless min_snr_gamma is above 0.
    """

    has_velocity_at_end = False
    diffusers_name = "sample"
    min_snr_gamma: float | None = None

    def __post_init__(self) -> None:
        if self.min_snr_gamma is not None and not self.min_snr_gamma > 0:
            raise ConfigurationError(f"min_snr_gamma={self.min_snr_gamma} must be above 0")

    def target(self, schedule: Schedule, *, x_0: Tensor, x_1: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return x_1

    def to_endpoints(self, schedule: Schedule, output: Tensor, *, x_t: Tensor, t: Tensor) -> Endpoints:
        return Endpoints(x_1=output, x_0=noise_given_data(schedule, output, x_t=x_t, t=t))

    def weight(self, schedule: Schedule, t: Tensor) -> Tensor | None:
        if self.min_snr_gamma is None:
            return None
        return schedule.snr(t.clamp(max=1 - TIME_EPSILON)).clamp(max=self.min_snr_gamma)


@dataclass(frozen=True)
class VPrediction(Prediction):
    """``alpha·x_0 - sigma·x_1`` (Salimans and Ho 2202.00512); its scale is the same at every time."""

    diffusers_name = "v_prediction"

    def target(self, schedule: Schedule, *, x_0: Tensor, x_1: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return schedule.alpha(t) * x_0 - schedule.sigma(t) * x_1

    def to_endpoints(self, schedule: Schedule, output: Tensor, *, x_t: Tensor, t: Tensor) -> Endpoints:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        total = alpha**2 + sigma**2
        return Endpoints(x_1=(alpha * x_t - sigma * output) / total, x_0=(sigma * x_t + alpha * output) / total)


@dataclass(frozen=True)
class PosteriorPrediction(Prediction):
    """The mean of p(x_{t + 1/N} | x_t, x_1), as its offset from x_t in standard deviations (Sohl-Dickstein 1503.03585).

    num_grid_steps: N, the number of equal steps of the path. clip_sample_range: see ``NoisePrediction``.
    """

    default_schedule = "linear_beta"
    is_informative_at_start = False
    has_velocity_at_end = False
    num_grid_steps: int = 100
    clip_sample_range: float | None = None

    def target(self, schedule: Schedule, *, x_0: Tensor, x_1: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        posterior = schedule.next_posterior(t, num_grid_steps=self.num_grid_steps)
        return ((posterior.x_t_weight - 1) * x_t + posterior.x_1_weight * x_1) / posterior.std

    def to_endpoints(self, schedule: Schedule, output: Tensor, *, x_t: Tensor, t: Tensor) -> Endpoints:
        posterior = schedule.next_posterior(t, num_grid_steps=self.num_grid_steps)
        x_1 = (posterior.std * output + (1 - posterior.x_t_weight) * x_t) / posterior.x_1_weight
        x_1 = clip(x_1, self.clip_sample_range)
        return Endpoints(x_1=x_1, x_0=noise_given_data(schedule, x_1, x_t=x_t, t=t))

    def training_times(self, t: Tensor) -> Tensor:
        """Times of the grid, without its last interval, at whose end the SNR is infinite."""
        steps = self.num_grid_steps
        return (t * (steps - 1)).floor().clamp(max=steps - 2) / steps


def noise_given_data(schedule: Schedule, x_1: Tensor, *, x_t: Tensor, t: Tensor) -> Tensor:
    """The noise x_0 of the path through x_t and x_1."""
    return (x_t - schedule.alpha(t) * x_1) / schedule.sigma(t.clamp(max=1 - TIME_EPSILON))


def clip(x_1: Tensor, limit: float | None) -> Tensor:
    """x_1 clipped to ± limit; unchanged without a limit."""
    return x_1 if limit is None else x_1.clamp(-limit, limit)


PREDICTIONS: Registry[type[Prediction]] = Registry(
    "prediction",
    {
        "flow": VelocityPrediction,
        "noise_prediction": NoisePrediction,
        "data_prediction": DataPrediction,
        "v": VPrediction,
        "posterior": PosteriorPrediction,
    },
)
