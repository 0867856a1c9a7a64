"""From one instant to the next: every sampler is a function ``step(field, x, t, t_end)``, and keeps nothing.

The first group follows the velocity, the second the estimate of both ends of the way (x_1 and x_0); all of them ask the
same field, so that any objective can be sampled by any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowchunk.policy.paths import Estimate, GaussianPath, Path

Generators = torch.Generator | Sequence[torch.Generator]
"""One generator for a whole batch, or one for each row, so that a row does not depend on its neighbours."""


def draw_normal(size: tuple[int, ...], generator: Generators) -> Tensor:
    """Standard normal numbers of this size (B, …)."""
    if isinstance(generator, torch.Generator):
        return torch.randn(size, generator=generator)
    return torch.stack([torch.randn(size[1:], generator=one) for one in generator])


@dataclass
class Field:
    """What solvers ask: a network on its path, with the condition and the known prefix (B, d, D) filled in.

    eta: how much of the noise that the ancestral sampler takes away it adds again. generator: of that noise.
    is_last: whether this step is the one that reaches the data. before: the multistep solver's memory, log(alpha/sigma) and
    the estimate of x_1 at the instant before.
    """

    network: Callable[..., Tensor]
    path: Path
    condition: Any = None
    prefix: Tensor | None = None
    eta: float = 1.0
    generator: Generators | None = None
    is_last: bool = False
    before: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Velocity at x and the scalar time t."""
        x, times = self.with_prefix(x), self.token_times(x, t)
        return self.path.velocity(self.network(x, times, self.condition), x, times)

    def estimate(self, x: Tensor, t: Tensor) -> Estimate:
        """Both ends of the way that leads through x."""
        x, times = self.with_prefix(x), self.token_times(x, t)
        return self.gaussian.estimate(self.network(x, times, self.condition), x, times)

    def mean_velocity(self, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
        """Mean velocity from t to t_end, of networks trained as flow maps."""
        x, times = self.with_prefix(x), self.token_times(x, t)
        return self.network(x, times, self.condition, t_end=self.token_times(x, t_end))

    def step(self, x: Tensor, displacement: Tensor) -> Tensor:
        return self.path.step(x, displacement)

    @property
    def has_velocity_at_end(self) -> bool:
        """Whether the velocity can be read where this step ends: at t = 1 of some paths only errors would be."""
        return not self.is_last or not isinstance(self.path, GaussianPath) or self.path.has_velocity_at_end

    def with_prefix(self, x: Tensor) -> Tensor:
        """x with its known first tokens set."""
        return x if self.prefix is None else torch.cat([self.prefix, x[:, self.prefix.shape[1] :]], dim=1)

    def token_times(self, x: Tensor, t: Tensor) -> Tensor:
        """(B,) t for every sample, or (B, H) with time 1 on the known tokens."""
        if self.prefix is None:
            return t.expand(x.shape[0])
        known = self.prefix.shape[1]
        return torch.cat([t.new_ones(known), t.expand(x.shape[1] - known)]).expand(x.shape[0], -1)

    @property
    def gaussian(self) -> GaussianPath:
        if not isinstance(self.path, GaussianPath):
            raise ValueError("this solver needs a Gaussian path; on the torus there are euler, midpoint, heun and rk4")
        return self.path


Step = Callable[[Field, Tensor, Tensor, Tensor], Tensor]

# -- along the velocity -----------------------------------------------------------------------------------------------


def euler_step(field: Field, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """First order, one evaluation."""
    return field.step(x, (t_end - t) * field(x, t))


def midpoint_step(field: Field, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """Second order, two evaluations."""
    h = t_end - t
    return field.step(x, h * field(field.step(x, h / 2 * field(x, t)), t + h / 2))


def heun_step(field: Field, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """Second order, two evaluations: the mean of the slopes at both ends; where the end has none, the midpoint's."""
    if not field.has_velocity_at_end:
        return midpoint_step(field, x, t, t_end)
    h = t_end - t
    slope = field(x, t)
    return field.step(x, h / 2 * (slope + field(field.step(x, h * slope), t_end)))


def rk4_step(field: Field, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """Fourth order, four evaluations: the classical Runge-Kutta step; where the end has no slope, two of the midpoint."""
    h = t_end - t
    if not field.has_velocity_at_end:
        return midpoint_step(field, midpoint_step(field, x, t, t + h / 2), t + h / 2, t_end)
    k1 = field(x, t)
    k2 = field(field.step(x, h / 2 * k1), t + h / 2)
    k3 = field(field.step(x, h / 2 * k2), t + h / 2)
    k4 = field(field.step(x, h * k3), t_end)
    return field.step(x, h / 6 * (k1 + 2 * k2 + 2 * k3 + k4))


def flow_map_step(field: Field, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """One evaluation, of any length: the network predicts the mean velocity from t to t_end."""
    return field.step(x, (t_end - t) * field.mean_velocity(x, t, t_end))


# -- along the estimate of both ends ----------------------------------------------------------------------------------


def ddim_step(field: Field, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """DDIM with eta 0 (Song et al. 2010.02502); on the straight path it is Euler."""
    x_1, x_0 = field.estimate(x, t)
    schedule = field.gaussian.schedule
    return schedule.alpha(t_end) * x_1 + schedule.sigma(t_end) * x_0


def ancestral_step(field: Field, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """DDPM's sampler at eta 1 (Ho et al. 2006.11239), DDIM at eta 0: noise of the posterior's width is added again."""
    if field.generator is None:
        raise ValueError("the ancestral sampler draws noise in every step: give integrate a generator")
    x_1, x_0 = field.estimate(x, t)
    schedule, std = field.gaussian.schedule, field.eta * field.gaussian.posterior(t, t_end).std
    kept = (schedule.sigma(t_end) ** 2 - std**2).clamp(min=0).sqrt()
    return schedule.alpha(t_end) * x_1 + kept * x_0 + std * draw_normal(tuple(x.shape), field.generator).to(x)


def dpm_solver_step(field: Field, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2211.01095), second order; the first and the last step are of first order."""
    schedule = field.gaussian.schedule
    x_1 = direction = field.estimate(x, t).x_1
    ratio, ratio_end = schedule.log_ratio(t), schedule.log_ratio(t_end)
    if field.before is not None and ratio_end.isfinite():
        ratio_before, x_1_before = field.before
        gain = (ratio_end - ratio) / (2 * (ratio - ratio_before))  # 0 where the step before began at alpha = 0
        direction = (1 + gain) * x_1 - gain * x_1_before
    field.before = (ratio, x_1)
    noise = (x - schedule.alpha(t) * direction) / schedule.sigma(t)
    return schedule.alpha(t_end) * direction + schedule.sigma(t_end) * noise


SOLVERS: dict[str, tuple[Step, int]] = {
    "euler": (euler_step, 1),
    "midpoint": (midpoint_step, 2),
    "heun": (heun_step, 2),
    "rk4": (rk4_step, 4),
    "flow_map": (flow_map_step, 1),
    "ddim": (ddim_step, 1),
    "ancestral": (ancestral_step, 1),
    "dpm_solver": (dpm_solver_step, 1),
}
"""Name → (step, evaluations a step)."""

OPEN_ENDED = ("flow_map", "ddim", "ancestral", "dpm_solver")
"""These reach both ends of every schedule; the others need its derivatives, which may be infinite there."""


def solver(name: str) -> tuple[Step, int]:
    """The step of that name and its evaluations. Raises ValueError."""
    if name not in SOLVERS:
        raise ValueError(f"unknown solver {name!r}; there are {', '.join(SOLVERS)}")
    return SOLVERS[name]
