"""The interface of an objective: what a network is trained for, and how data are sampled with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.policy import flow
from flowchunk.policy.diffusion.paths import GaussianPath, Generators, ProbabilityPath
from flowchunk.policy.diffusion.solvers import SOLVERS
from flowchunk.policy.diffusion.time_densities import TimeDensity
from flowchunk.policy.flow import Loss
from flowchunk.policy.noise import PathNoise
from flowchunk.policy.sampling import SamplingOptions

Network = Callable[..., Tensor]


class Objective(ABC):
    """How to train a network and how to sample with it.

    An objective of your own is a subclass with ``loss`` and ``sample``, and a line ``OBJECTIVES.register("name", Mine)``.

    name: as in the option ``objective=``. path: from noise to data. time_density: of the times in training. valid_nfe: the
    numbers of network evaluations that it admits; None for any. takes_prefix: whether the first tokens of a chunk may be
    given. starts_from_noise: whether samples depend on x_0, so that its scale matters.
    """

    valid_nfe: ClassVar[tuple[int, ...] | None] = None
    takes_prefix: ClassVar[bool] = True
    starts_from_noise: ClassVar[bool] = False

    def __init__(self, name: str, path: ProbabilityPath, time_density: TimeDensity) -> None:
        self.name, self.path, self.time_density = name, path, time_density

    @classmethod
    def make(
        cls,
        name: str,
        *,
        schedule: str | None,
        time_density: TimeDensity,
        min_snr_gamma: float | None,
        clip_sample_range: float | None,
        wrapped: bool,
    ) -> Objective:
        """The objective from options. Here, for objectives without a schedule or a prediction: on the straight path.

        wrapped: the data are angles. Raises ConfigurationError for options that it does not take.
        """
        require(not wrapped, f"objective={name} needs a Gaussian path; on angles there are flow, flow_map")
        require(schedule is None, f"objective={name} has no schedule, but schedule={schedule} was given; leave it out")
        require(min_snr_gamma is None, f"min_snr_gamma={min_snr_gamma} is for objective=data_prediction, not {name}")
        return cls(name, GaussianPath(), time_density)

    def sample_noise(self, size: tuple[int, ...], generator: torch.Generator) -> PathNoise:
        """Everything random in one training step, for data of this size (B, …)."""
        x_0 = self.path.sample_noise(size, generator=generator)
        return PathNoise(x_0, self.time_density(size[:1], generator=generator))

    @abstractmethod
    def loss(
        self,
        network: Network,
        x_1: Tensor,
        *,
        noise: Any,
        condition: Any = None,
        mask: Tensor | None = None,
        prefix_length: Tensor | None = None,
    ) -> Loss:
        """The loss of the network on normalized data x_1 (B, …).

        noise: from ``sample_noise``. mask, prefix_length: see ``Loss.from_errors``.
        """

    @abstractmethod
    def sample(
        self,
        network: Network,
        x_0: Tensor,
        *,
        nfe: int,
        sampling: SamplingOptions,
        condition: Any = None,
        prefix: Tensor | None = None,
        generator: Generators | None = None,
        callback: Callable[[Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """Normalized data from noise x_0 (B, …), like x_0. prefix, generator, callback: see ``integrate``."""

    def times(self, nfe: int, *, sampling: SamplingOptions) -> Tensor:
        """The time grid that takes ``nfe`` network evaluations. Raises ConfigurationError if there is none."""
        if self.valid_nfe is not None and nfe not in self.valid_nfe:
            valid = " or ".join(str(number) for number in self.valid_nfe)
            raise ConfigurationError(f"nfe={nfe}: a model trained with objective={self.name} admits only {valid}")
        return torch.linspace(0, 1, nfe + 1)

    def solver_name(self, sampling: SamplingOptions) -> str | None:
        """The name of the solver that will be used; None if the objective needs none."""
        return None

    def check(self, sampling: SamplingOptions) -> None:
        """Raise ConfigurationError if it cannot be sampled with these options."""
        require(
            sampling.solver is None,
            f"objective={self.name} has no solver, but solver={sampling.solver} was given; leave it out",
        )
        require(
            self.starts_from_noise or sampling.noise_scale == 1,
            f"noise_scale={sampling.noise_scale}: objective={self.name} does not start from noise; leave it out",
        )


class IntegratedObjective(Objective):
    """An objective that is sampled by integrating along its path with a solver."""

    is_flow_map: ClassVar[bool] = False
    starts_from_noise: ClassVar[bool] = True

    def sample(
        self,
        network: Network,
        x_0: Tensor,
        *,
        nfe: int,
        sampling: SamplingOptions,
        condition: Any = None,
        prefix: Tensor | None = None,
        generator: Generators | None = None,
        callback: Callable[[Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        return flow.integrate(
            network,
            x_0,
            self.times(nfe, sampling=sampling),
            condition=condition,
            method=self.solver_name(sampling),
            path=self.path,
            prefix=prefix,
            eta=sampling.eta,
            generator=generator,
            callback=callback,
        )

    def times(self, nfe: int, *, sampling: SamplingOptions) -> Tensor:
        name = self.solver_name(sampling)
        try:
            return SOLVERS[name].times(nfe, self.path, name=name)
        except ValueError as error:
            raise ConfigurationError(str(error)) from error

    def solver_name(self, sampling: SamplingOptions) -> str:
        return sampling.solver or self.default_solver

    @property
    @abstractmethod
    def default_solver(self) -> str:
        """Its name in ``SOLVERS``."""

    def check(self, sampling: SamplingOptions) -> None:
        name = self.solver_name(sampling)
        if (objection := SOLVERS[name].objection(self.path, is_flow_map=self.is_flow_map)) is not None:
            raise ConfigurationError(f"solver={name} {objection}, not this {self.name}")


def require(holds: bool, message: str) -> None:
    """Raise ConfigurationError with the message unless the condition holds."""
    if not holds:
        raise ConfigurationError(message)
