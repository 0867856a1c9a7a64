"""From one instant to the next: every sampler is a function ``step(field, x, t, t_end)``, and a value ``Solver`` around it.

The first group follows the velocity, the second the endpoints of the path (x_1 and x_0) that the network believes in; all of
them ask the same field, so that any objective can be sampled by any of them. A solver of your own is a step function and
a line ``SOLVERS.register("name", Solver(step, …))``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from flowchunk.policy.diffusion.paths import GaussianPath, Generators, ProbabilityPath, sample_normal
from flowchunk.policy.diffusion.predictions import PREDICTIONS, Endpoints
from flowchunk.policy.diffusion.schedules import TIME_EPSILON
from flowchunk.policy.registry import Registry


@dataclass
class VectorField:
    """What solvers ask: a network on its path, with the condition and the known prefix (B, d, D) filled in.

    eta: how much of the noise that the ancestral sampler takes away it adds again. generator: of that noise. num_steps: of
    the whole integration. is_last_step: whether this step reaches the data. memory: what a solver keeps between its steps.
    """

    network: Callable[..., Tensor]
    path: ProbabilityPath
    condition: Any = None
    prefix: Tensor | None = None
    eta: float = 1.0
    generator: Generators | None = None
    num_steps: int = 1
    is_last_step: bool = False
    memory: Any = None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Velocity at x and the scalar time t."""
        x, times = self.with_prefix(x), self.token_times(x, t)
        return self.path.velocity(self.network(x, times, self.condition), x, times)

    def endpoints(self, x: Tensor, t: Tensor) -> Endpoints:
        """Both ends of the path through x."""
        x, times = self.with_prefix(x), self.token_times(x, t)
        return self.gaussian.endpoints(self.network(x, times, self.condition), x, times)

    def mean_velocity(self, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
        """Mean velocity from t to t_end, of networks trained as flow maps."""
        x, times = self.with_prefix(x), self.token_times(x, t)
        return self.network(x, times, self.condition, t_end=self.token_times(x, t_end))

    def step(self, x: Tensor, displacement: Tensor) -> Tensor:
        return self.path.step(x, displacement)

    @property
    def has_velocity_at_end(self) -> bool:
        """Whether the velocity can be read where this step ends: at t = 1 of some paths only errors would be."""
        return not self.is_last_step or not isinstance(self.path, GaussianPath) or self.path.has_velocity_at_end

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


Step = Callable[[VectorField, Tensor, Tensor, Tensor], Tensor]

# -- along the velocity -----------------------------------------------------------------------------------------------


def euler_step(field: VectorField, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """First order, one evaluation."""
    return field.step(x, (t_end - t) * field(x, t))


def midpoint_step(field: VectorField, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """Second order, two evaluations."""
    h = t_end - t
    return field.step(x, h * field(field.step(x, h / 2 * field(x, t)), t + h / 2))


def heun_step(field: VectorField, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """Second order, two evaluations: the mean of the slopes at both ends; where the end has none, the midpoint's."""
    if not field.has_velocity_at_end:
        return midpoint_step(field, x, t, t_end)
    h = t_end - t
    slope = field(x, t)
    return field.step(x, h / 2 * (slope + field(field.step(x, h * slope), t_end)))


def rk4_step(field: VectorField, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """Fourth order, four evaluations: the classical Runge-Kutta step; where the end has no slope, two of the midpoint."""
    h = t_end - t
    if not field.has_velocity_at_end:
        return midpoint_step(field, midpoint_step(field, x, t, t + h / 2), t + h / 2, t_end)
    k1 = field(x, t)
    k2 = field(field.step(x, h / 2 * k1), t + h / 2)
    k3 = field(field.step(x, h / 2 * k2), t + h / 2)
    k4 = field(field.step(x, h * k3), t_end)
    return field.step(x, h / 6 * (k1 + 2 * k2 + 2 * k3 + k4))


def flow_map_step(field: VectorField, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """One evaluation, of any length: the network predicts the mean velocity from t to t_end."""
    return field.step(x, (t_end - t) * field.mean_velocity(x, t, t_end))


# -- along the endpoints ----------------------------------------------------------------------------------


def ddim_step(field: VectorField, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """DDIM with eta 0 (Song et al. 2010.02502); on the straight path it is Euler."""
    x_1, x_0 = field.endpoints(x, t)
    schedule = field.gaussian.schedule
    return schedule.alpha(t_end) * x_1 + schedule.sigma(t_end) * x_0


def ancestral_step(field: VectorField, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """DDPM's sampler at eta 1 (Ho et al. 2006.11239), DDIM at eta 0: noise of the posterior's width is added again."""
    if field.generator is None:
        raise ValueError("the ancestral sampler draws noise in every step: give integrate a generator")
    x_1, x_0 = field.endpoints(x, t)
    schedule, std = field.gaussian.schedule, field.eta * field.gaussian.schedule.posterior(t, t_end).std
    kept = (schedule.sigma(t_end) ** 2 - std**2).clamp(min=0).sqrt()
    return (
        schedule.alpha(t_end) * x_1 + kept * x_0 + std * sample_normal(tuple(x.shape), generator=field.generator).to(x)
    )


def dpm_solver_step(field: VectorField, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2211.01095), second order; the first and the last step are of first order."""
    schedule = field.gaussian.schedule
    x_1 = direction = field.endpoints(x, t).x_1
    ratio, ratio_end = schedule.log_ratio(t), schedule.log_ratio(t_end)
    if field.memory is not None and ratio_end.isfinite():
        ratio_before, x_1_before = field.memory
        gain = (ratio_end - ratio) / (2 * (ratio - ratio_before))  # 0 where the step before began at alpha = 0
        direction = (1 + gain) * x_1 - gain * x_1_before
    field.memory = (ratio, x_1)
    noise = (x - schedule.alpha(t) * direction) / schedule.sigma(t)
    return schedule.alpha(t_end) * direction + schedule.sigma(t_end) * noise


@dataclass(frozen=True)
class Solver:
    """A step function, its network evaluations (``stages``), and what of the network it follows.

    follows: "velocity" (any path, but on curved schedules it stays away from the ends, where slopes may be infinite),
    "endpoints" (Gaussian paths) or "flow_map" (networks trained as flow maps). keeps_prefix: whether known first tokens
    come back exactly. grid: its own time grid, ``grid(nfe, path)``, in place of equal steps. diffusers_only: it knows only
    the predictions that `diffusers` knows, on curved schedules.
    """

    step: Step
    stages: int = 1
    follows: Literal["velocity", "endpoints", "flow_map"] = "velocity"
    keeps_prefix: bool = True
    grid: Callable[[int, GaussianPath], Tensor] | None = None
    diffusers_only: bool = False

    def times(self, nfe: int, path: ProbabilityPath, *, name: str = "the solver") -> Tensor:
        """The grid 0 … 1 that costs ``nfe`` network evaluations. Raises ValueError if there is none.

        A prediction of the noise (or of the posterior) says nothing of the data while alpha is about 0: its estimate of
        the data is its error divided by alpha, and a first step of 1/nfe would carry that along. Such grids begin where
        alpha reaches ``MIN_ALPHA``; x is noise until there. Solvers on the velocity begin there too on curved schedules,
        whose slopes may be infinite at an end, and stay 1e-3 away from t = 1.
        """
        if nfe < 1 or nfe % self.stages:
            raise ValueError(f"nfe={nfe}: {name} needs a positive multiple of {self.stages} evaluations")
        if self.grid is not None and isinstance(path, GaussianPath):
            return self.grid(nfe, path)
        start, end = 0.0, 1.0
        if isinstance(path, GaussianPath):
            needs_slopes = self.follows == "velocity" and not path.schedule.is_straight
            start = (
                path.first_informative_time if needs_slopes or not path.prediction.is_informative_at_start else start
            )
            end = 1 - TIME_EPSILON if needs_slopes else end
        return torch.linspace(start, end, nfe // self.stages + 1)

    def objection(self, path: ProbabilityPath, *, is_flow_map: bool = False) -> str | None:
        """Why it cannot sample what was trained on this path; None if it can."""
        if self.diffusers_only:
            is_known = isinstance(path, GaussianPath) and path.prediction.diffusers_name is not None
            if not is_known or not isinstance(path, GaussianPath) or path.schedule.is_straight:
                known = [name for name, prediction in PREDICTIONS.items() if prediction.diffusers_name is not None]
                return f"needs objective={' or '.join(known)} with a curved schedule"
        if self.follows == "flow_map" and not is_flow_map:
            return "needs objective=flow_map"
        if self.follows == "endpoints" and not isinstance(path, GaussianPath):
            of_any_path = [name for name, solver in SOLVERS.items() if solver.follows == "velocity"]
            return f"needs a Gaussian path; on angles there are {', '.join(of_any_path)}"
        return None


SOLVERS: Registry[Solver] = Registry(
    "solver",
    {
        "euler": Solver(euler_step),
        "midpoint": Solver(midpoint_step, 2),
        "heun": Solver(heun_step, 2),
        "rk4": Solver(rk4_step, 4),
        "flow_map": Solver(flow_map_step, follows="flow_map"),
        "ddim": Solver(ddim_step, follows="endpoints"),
        "ancestral": Solver(ancestral_step, follows="endpoints"),
        "dpm_solver": Solver(dpm_solver_step, follows="endpoints"),
        "diffusers_ddpm": "flowchunk.policy.diffusion.diffusers_solvers:DIFFUSERS_DDPM",
        "diffusers_ddim": "flowchunk.policy.diffusion.diffusers_solvers:DIFFUSERS_DDIM",
    },
)
