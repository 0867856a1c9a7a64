"""Samplers: each is a function ``step(field, x, t, t_end)`` and a ``Solver`` that describes it.

The first group follows the velocity, the second the network's estimate of the endpoints x_1 and x_0. All of them evaluate
the network through a ``VectorField``, so any solver can sample any objective that has what it follows. Steps are stateless,
except for what a multistep method leaves in ``field.memory``. A solver of your own is a step function and a line
``SOLVERS.register("name", Solver(step, …))``.
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
    """What solvers evaluate: a network on its path, with the condition and the known prefix (B, d, D) filled in.

    eta: the standard deviation of the noise that the ancestral sampler adds, as a fraction of the posterior's. generator: of
    that noise. num_steps: of the whole integration. is_last_step: whether this step reaches the data. memory: what a solver
    keeps from step to step of one integration; None before the first.
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
        """The velocity at x (B, …) and the scalar time t, like x."""
        x, times = self.with_prefix(x), self.token_times(x, t)
        return self.path.velocity(self.network(x, times, self.condition), x, times)

    def endpoints(self, x: Tensor, t: Tensor) -> Endpoints:
        """The network's estimate of both ends of the path through x at time t. Raises ValueError without a Gaussian path."""
        x, times = self.with_prefix(x), self.token_times(x, t)
        return self.gaussian.endpoints(self.network(x, times, self.condition), x, times)

    def mean_velocity(self, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
        """The mean velocity from t to t_end, for networks trained as flow maps."""
        x, times = self.with_prefix(x), self.token_times(x, t)
        return self.network(x, times, self.condition, t_end=self.token_times(x, t_end))

    def step(self, x: Tensor, displacement: Tensor) -> Tensor:
        """x moved by a displacement, on the path's manifold."""
        return self.path.step(x, displacement)

    @property
    def has_velocity_at_end(self) -> bool:
        """Whether the velocity is known where this step ends: on some paths it is not at t = 1."""
        return not self.is_last_step or not isinstance(self.path, GaussianPath) or self.path.has_velocity_at_end

    def with_prefix(self, x: Tensor) -> Tensor:
        """x with its first tokens replaced by the prefix."""
        return x if self.prefix is None else torch.cat([self.prefix, x[:, self.prefix.shape[1] :]], dim=1)

    def token_times(self, x: Tensor, t: Tensor) -> Tensor:
        """(B,) times t, or with a prefix (B, H), 1 for the known tokens."""
        if self.prefix is None:
            return t.expand(x.shape[0])
        known = self.prefix.shape[1]
        return torch.cat([t.new_ones(known), t.expand(x.shape[1] - known)]).expand(x.shape[0], -1)

    @property
    def gaussian(self) -> GaussianPath:
        """The path. Raises ValueError if it is not Gaussian."""
        if not isinstance(self.path, GaussianPath):
            raise ValueError("this solver needs a Gaussian path; on the torus there are euler, midpoint, heun and rk4")
        return self.path


Step = Callable[[VectorField, Tensor, Tensor, Tensor], Tensor]

# -- along the velocity -----------------------------------------------------------------------------------------------


def euler_step(field: VectorField, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """Euler's method: first order, one evaluation."""
    return field.step(x, (t_end - t) * field(x, t))


def midpoint_step(field: VectorField, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """The midpoint method: second order, two evaluations."""
    h = t_end - t
    return field.step(x, h * field(field.step(x, h / 2 * field(x, t)), t + h / 2))


def heun_step(field: VectorField, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """Heun's method: second order, two evaluations, at both ends. If the end has no velocity, the midpoint method."""
    if not field.has_velocity_at_end:
        return midpoint_step(field, x, t, t_end)
    h = t_end - t
    slope = field(x, t)
    return field.step(x, h / 2 * (slope + field(field.step(x, h * slope), t_end)))


def rk4_step(field: VectorField, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """The classical Runge-Kutta method: fourth order, four evaluations. If the end has no velocity, two midpoint steps."""
    h = t_end - t
    if not field.has_velocity_at_end:
        return midpoint_step(field, midpoint_step(field, x, t, t + h / 2), t + h / 2, t_end)
    k1 = field(x, t)
    k2 = field(field.step(x, h / 2 * k1), t + h / 2)
    k3 = field(field.step(x, h / 2 * k2), t + h / 2)
    k4 = field(field.step(x, h * k3), t_end)
    return field.step(x, h / 6 * (k1 + 2 * k2 + 2 * k3 + k4))


def flow_map_step(field: VectorField, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """One evaluation for a step of any length: the network predicts the mean velocity from t to t_end."""
    return field.step(x, (t_end - t) * field.mean_velocity(x, t, t_end))


# -- along the endpoints ----------------------------------------------------------------------------------------------


def ddim_step(field: VectorField, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """DDIM with eta 0 (Song et al. 2010.02502); on the straight path it is Euler."""
    x_1, x_0 = field.endpoints(x, t)
    schedule = field.gaussian.schedule
    return schedule.alpha(t_end) * x_1 + schedule.sigma(t_end) * x_0


def ancestral_step(field: VectorField, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """DDPM's sampler at eta 1 (Ho et al. 2006.11239), DDIM at eta 0: adds noise of eta times the posterior's std.

    Raises ValueError without a generator.
    """
    if field.generator is None:
        raise ValueError("the ancestral solver samples noise in every step: give integrate a generator")
    x_1, x_0 = field.endpoints(x, t)
    schedule, std = field.gaussian.schedule, field.eta * field.gaussian.schedule.posterior(t, t_end).std
    sigma_kept = (schedule.sigma(t_end) ** 2 - std**2).clamp(min=0).sqrt()
    noise = sample_normal(tuple(x.shape), generator=field.generator).to(x)
    return schedule.alpha(t_end) * x_1 + sigma_kept * x_0 + std * noise


def dpm_solver_step(field: VectorField, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2211.01095): second order, but first order in the first and the last step."""
    schedule = field.gaussian.schedule
    x_1 = direction = field.endpoints(x, t).x_1
    ratio, ratio_end = schedule.log_ratio(t), schedule.log_ratio(t_end)
    if field.memory is not None and ratio_end.isfinite():
        previous_ratio, previous_x_1 = field.memory
        gain = (ratio_end - ratio) / (2 * (ratio - previous_ratio))  # 0 if the previous step began at alpha = 0
        direction = (1 + gain) * x_1 - gain * previous_x_1
    field.memory = (ratio, x_1)
    noise = (x - schedule.alpha(t) * direction) / schedule.sigma(t)
    return schedule.alpha(t_end) * direction + schedule.sigma(t_end) * noise


@dataclass(frozen=True)
class Solver:
    """A step function, its network evaluations per step (``stages``), and what it follows.

    follows: "velocity" (any path, but on curved schedules it stays away from the ends, where slopes may be infinite),
    "endpoints" (Gaussian paths) or "flow_map" (networks trained as flow maps). keeps_prefix: whether known first tokens
    are returned exactly. grid: its own time grid, ``grid(nfe, path)``, in place of equal steps. diffusers_only: it takes only
    the predictions that `diffusers` has, on curved schedules.
    """

    step: Step
    stages: int = 1
    follows: Literal["velocity", "endpoints", "flow_map"] = "velocity"
    keeps_prefix: bool = True
    grid: Callable[[int, GaussianPath], Tensor] | None = None
    diffusers_only: bool = False

    def times(self, nfe: int, path: ProbabilityPath, *, name: str = "the solver") -> Tensor:
        """The grid 0 … 1 that takes ``nfe`` network evaluations. Raises ValueError if there is none.

        While alpha is about 0, a prediction of the noise (or of the posterior) carries no information about the data: its
        estimate of the data is its error divided by alpha, and a first step of 1/nfe would keep that error. Such grids start
        where alpha reaches ``MIN_ALPHA``; before it x is practically noise. On curved schedules, whose slopes may be infinite
        at an end, solvers that follow the velocity start there too, and stop 1e-3 before t = 1.
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
        """Why it cannot sample a model that was trained on this path; None if it can."""
        if self.diffusers_only:
            is_known = isinstance(path, GaussianPath) and path.prediction.diffusers_name is not None
            if not is_known or not isinstance(path, GaussianPath) or path.schedule.is_straight:
                known = [name for name, prediction in PREDICTIONS.items() if prediction.diffusers_name is not None]
                return f"needs objective={' or '.join(known)} with a curved schedule"
        if self.follows == "flow_map" and not is_flow_map:
            return "needs objective=flow_map"
        if self.follows == "endpoints" and not isinstance(path, GaussianPath):
            for_any_path = [name for name, solver in SOLVERS.items() if solver.follows == "velocity"]
            return f"needs a Gaussian path; on angles there are {', '.join(for_any_path)}"
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
