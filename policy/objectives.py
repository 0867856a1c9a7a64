"""What to train a network for, by name: the history of diffusion objectives, and the rivals that are none.

An objective on a path is a value: a reading of the output, a schedule, a density of times. The other three (regression,
the minimal iterative policy, flow maps) are a function each. All of them draw, err and generate through the same object,
so that chunk policies, pictures and toys can be trained with any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.policy.diffusers_sampling import DIFFUSERS_SOLVERS, GRID_STEPS, diffusers_generate
from flowchunk.policy.flow import flow_matching_errors, integrate, uniform_times, with_prefix_time
from flowchunk.policy.paths import GaussianPath, Path, WrappedPath, broadcast_time
from flowchunk.policy.schedules import SCHEDULES
from flowchunk.policy.solvers import SOLVERS
from flowchunk.policy.time_densities import TimeDensity, time_density

READING_OF = {"flow": "flow", "ddpm": "noise", "x": "x", "v": "v", "kl": "posterior"}
DEFAULT_SCHEDULE = {
    "flow": "linear",
    "flow_map": "linear",
    "ddpm": "cosine",
    "x": "cosine",
    "v": "cosine",
    "kl": "linear_beta",
}
OBJECTIVES = ("flow", "ddpm", "x", "v", "kl", "regression", "mip", "flow_map")
VALID_NFE = {"regression": (1,), "mip": (2,)}
MIP_TIME = 0.9

Network = Callable[..., Tensor]
Draws = Mapping[str, Tensor]


@dataclass(frozen=True)
class Objective:
    """One way to train and to generate; make it with ``make_objective``.

    density: of the times that training looks at. eta: of the ancestral sampler. valid_nfe: numbers of network evaluations
    that it admits, None for any.
    """

    name: str
    path: Path
    density: TimeDensity
    solver: str
    eta: float = 1.0

    @property
    def valid_nfe(self) -> tuple[int, ...] | None:
        return VALID_NFE.get(self.name)

    def draw(self, size: tuple[int, ...], generator: torch.Generator) -> dict[str, Tensor]:
        """Everything random in one training step, a row a sample: x_0 (B, …), t (B,), and t_end, share (B,) of flow maps."""
        draws = {"x_0": self.path.noise(size, generator=generator), "t": self.density(size[:1], generator=generator)}
        if self.name == "kl":
            assert isinstance(self.path, GaussianPath)
            steps = self.path.grid_steps  # the last interval is left out: its SNR has no end
            draws["t"] = (draws["t"] * (steps - 1)).floor().clamp(max=steps - 2) / steps
        if self.name == "flow_map":
            t = draws["t"]
            draws["t_end"] = t + (1 - t) * torch.rand(size[:1], generator=generator)
            draws["share"] = torch.rand(size[:1], generator=generator)
        return draws

    def errors(
        self, network: Network, x_1: Tensor, *, draws: Draws, condition: Any = None, prefix_length: Tensor | None = None
    ) -> Tensor:
        """Squared errors of the network, like x_1 (B, …), for what ``draw`` gave."""
        if self.name == "regression":
            return regression_errors(network, x_1, condition=condition)
        if self.name == "mip":
            return minimal_iterative_errors(network, x_1, x_0=draws["x_0"], condition=condition)
        errors = flow_matching_errors(
            network,
            x_1,
            condition=condition,
            x_0=draws["x_0"],
            t=draws["t"],
            prefix_length=prefix_length,
            path=self.path,
        )
        if self.name == "flow_map":
            errors = errors + flow_map_errors(
                network, x_1, draws=draws, path=self.path, condition=condition, prefix_length=prefix_length
            )
        return errors

    def times(self, nfe: int | None) -> Tensor:
        """The time grid of so many evaluations (default: 4, or the only valid number). Raises ValueError."""
        nfe = nfe if nfe is not None else (self.valid_nfe or (4,))[0]
        if self.valid_nfe is not None and nfe not in self.valid_nfe:
            valid = " or ".join(str(number) for number in self.valid_nfe)
            raise ValueError(f"nfe={nfe}: a model trained with objective={self.name} admits {valid} alone")
        if self.solver not in DIFFUSERS_SOLVERS:
            return uniform_times(nfe, method=self.solver, path=self.path)
        _require(1 <= nfe <= GRID_STEPS, f"nfe={nfe}: {self.solver} takes from 1 to {GRID_STEPS} steps")
        return torch.linspace(0, 1, nfe + 1)

    def generate(
        self, network: Network, x_0: Tensor, times: Tensor, *, condition: Any = None, **options: Any
    ) -> Tensor:
        """Data like x_0 from noise. times: from ``times``. options: prefix, generator, callback of ``integrate``."""
        if self.solver in DIFFUSERS_SOLVERS:
            assert isinstance(self.path, GaussianPath)
            return diffusers_generate(
                network, x_0, len(times) - 1, condition=condition, path=self.path, solver=self.solver, **options
            )
        if self.name == "regression":
            return network(torch.zeros_like(x_0), x_0.new_zeros(len(x_0)), condition)
        if self.name == "mip":
            return minimal_iterative_act(network, x_0, condition=condition)
        return integrate(
            network, x_0, times, condition=condition, method=self.solver, path=self.path, eta=self.eta, **options
        )


def make_objective(
    name: str,
    *,
    schedule: str | None = None,
    density: str = "uniform",
    density_options: Mapping[str, float] | None = None,
    solver: str | None = None,
    snr_cap: float | None = None,
    eta: float = 1.0,
    x_1_limit: float | None = None,
    wrapped: bool = False,
) -> Objective:
    """The objective of that name; what is None takes the objective's own default.

    x_1_limit: the range of real data, normalised, for the readings that need it (see ``GaussianPath``). wrapped: the data
    are angles (radians). Raises ValueError for what is unknown, or what cannot go together.
    """
    _require(name in OBJECTIVES, f"unknown objective {name!r}; there are {', '.join(OBJECTIVES)}")
    if wrapped:
        _require(
            name in ("flow", "flow_map"), f"objective={name} needs a Gaussian path; on angles there are flow, flow_map"
        )
    path = WrappedPath() if wrapped else _gaussian_path(name, schedule, snr_cap, x_1_limit)
    _require(not (wrapped and schedule), f"schedule={schedule}: the path between angles has none; leave it out")
    _require(snr_cap is None or name == "x", f"snr_cap={snr_cap} is for objective=x, not {name}")
    _require(snr_cap is None or snr_cap > 0, f"snr_cap={snr_cap} must be above 0")
    _require(
        solver is None or name not in VALID_NFE,
        f"objective={name} has no solver, but solver={solver} was given; leave it out",
    )
    _require(0 <= eta <= 1, f"eta={eta} must be from 0 to 1")
    method = solver or _default_solver(name, path)
    _check_solver(method, name, path)
    return Objective(name, path, time_density(density, density_options), method, eta)


class NamesObjective(Protocol):
    """A configuration that says by name what ``make_objective`` takes."""

    @property
    def objective(self) -> str: ...
    @property
    def schedule(self) -> str | None: ...
    @property
    def time_density(self) -> str: ...
    @property
    def time_density_options(self) -> Mapping[str, float]: ...
    @property
    def solver(self) -> str | None: ...
    @property
    def snr_cap(self) -> float | None: ...
    @property
    def eta(self) -> float: ...


def objective_of(config: NamesObjective, *, x_1_limit: float | None = None, wrapped: bool = False) -> Objective:
    """The objective that a configuration names; see ``make_objective``. Raises ConfigurationError."""
    try:
        return make_objective(
            config.objective,
            schedule=config.schedule,
            density=config.time_density,
            density_options=config.time_density_options,
            solver=config.solver,
            snr_cap=config.snr_cap,
            eta=config.eta,
            x_1_limit=x_1_limit,
            wrapped=wrapped,
        )
    except (TypeError, ValueError) as error:
        raise ConfigurationError(str(error)) from error


def _gaussian_path(name: str, schedule: str | None, snr_cap: float | None, x_1_limit: float | None) -> GaussianPath:
    if name in VALID_NFE:
        _require(schedule is None, f"objective={name} has no schedule, but schedule={schedule} was given; leave it out")
        return GaussianPath()
    schedule = schedule or DEFAULT_SCHEDULE[name]
    _require(schedule in SCHEDULES, f"unknown schedule {schedule!r}; there are {', '.join(SCHEDULES)}")
    if name in ("flow", "flow_map"):
        _require(
            schedule == "linear",
            f"objective={name} with schedule={schedule}: its velocity is infinite at an end; use schedule=linear, or "
            "objective=v, the velocity that Salimans and Ho made for such schedules",
        )
        return GaussianPath()
    limit = x_1_limit if name in ("ddpm", "kl") else None
    return GaussianPath(SCHEDULES[schedule], READING_OF[name], snr_cap=snr_cap, x_1_limit=limit)


def _default_solver(name: str, path: Path) -> str:
    if name == "flow_map":
        return "flow_map"
    return "ddim" if isinstance(path, GaussianPath) and not path.is_straight_flow else "euler"


def _check_solver(solver: str, name: str, path: Path) -> None:
    if solver in DIFFUSERS_SOLVERS:
        fits = isinstance(path, GaussianPath) and path.reading in ("noise", "x", "v") and not path.schedule.is_straight
        _require(fits, f"solver={solver} knows objective=ddpm, x and v with a curved schedule, not this {name}")
        return
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}; there are {', '.join((*SOLVERS, *DIFFUSERS_SOLVERS))}")
    _require(solver != "flow_map" or name == "flow_map", f"solver=flow_map needs objective=flow_map, not {name}")
    _require(
        isinstance(path, GaussianPath) or solver not in ("ddim", "ancestral", "dpm_solver"),
        f"solver={solver} needs a Gaussian path; on angles there are euler, midpoint, heun, rk4",
    )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


# -- the objectives that are no reading of a path -----------------------------------------------------------------------


def regression_errors(network: Network, x_1: Tensor, *, condition: Any = None) -> Tensor:
    """Plain regression: the network sees nothing but the condition. It learns the mean, which may be no datum at all."""
    return (network(torch.zeros_like(x_1), x_1.new_zeros(len(x_1)), condition) - x_1) ** 2


def minimal_iterative_errors(network: Network, x_1: Tensor, *, x_0: Tensor, condition: Any = None) -> Tensor:
    """The minimal iterative policy (2512.01809): predict x_1 from nothing, and from x_1 with a tenth of noise."""
    t = x_1.new_full((len(x_1),), MIP_TIME)
    again = network(MIP_TIME * x_1 + (1 - MIP_TIME) * x_0, t, condition)
    return regression_errors(network, x_1, condition=condition) + (again - x_1) ** 2


def minimal_iterative_act(network: Network, x_0: Tensor, *, condition: Any = None) -> Tensor:
    """Two evaluations: a first guess, and a second look at it. x_0 gives the shape alone."""
    zero = x_0.new_zeros(len(x_0))
    guess = network(torch.zeros_like(x_0), zero, condition)
    return network(MIP_TIME * guess, zero + MIP_TIME, condition)


def flow_map_errors(
    network: Network,
    x_1: Tensor,
    *,
    draws: Draws,
    path: Path,
    condition: Any = None,
    prefix_length: Tensor | None = None,
) -> Tensor:
    """One long step against two shorter ones that lead to the same place: self-distillation (cf. 2505.18825).

    draws: x_0 (B, …), t < t_end (B,), and share (B,); the shorter steps meet at t + share·(t_end - t). They teach and are
    not taught (no gradient).
    """
    x_0, t, t_end, share = (draws[name] for name in ("x_0", "t", "t_end", "share"))
    if prefix_length is not None:
        t, t_end = (with_prefix_time(time, prefix_length, x_1.shape[1]) for time in (t, t_end))
        share = share[:, None]
    x_t, _ = path.sample(x_0, x_1, t)
    middle = t + share * (t_end - t)
    with torch.no_grad():
        first = network(x_t, t, condition, t_end=middle)
        x_middle = path.step(x_t, broadcast_time(middle - t, x_t) * first)
        second = network(x_middle, middle, condition, t_end=t_end)
        part = broadcast_time(share, x_t)
        target = part * first + (1 - part) * second
    return (network(x_t, t, condition, t_end=t_end) - target) ** 2
