"""Flow matching and the other predictions on a path: regression of the prediction's target at random times."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from flowchunk.policy import flow
from flowchunk.policy.diffusion.objectives.objective import IntegratedObjective, Network, require
from flowchunk.policy.diffusion.paths import GaussianPath, ProbabilityPath, WrappedPath
from flowchunk.policy.diffusion.predictions import PREDICTIONS, Prediction, VelocityPrediction
from flowchunk.policy.diffusion.schedules import SCHEDULES
from flowchunk.policy.diffusion.time_densities import TimeDensity
from flowchunk.policy.flow import Loss
from flowchunk.policy.noise import PathNoise


class PathObjective(IntegratedObjective):
    """A prediction on a Gaussian path, or the velocity between angles; it has the name of the prediction."""

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
    ) -> Self:
        options = {"min_snr_gamma": min_snr_gamma, "clip_sample_range": clip_sample_range}
        return cls(name, make_path(name, PREDICTIONS[name], schedule, wrapped=wrapped, **options), time_density)

    def sample_noise(self, size: tuple[int, ...], generator: torch.Generator) -> PathNoise:
        noise = super().sample_noise(size, generator)
        if not isinstance(self.path, GaussianPath):
            return noise
        return replace(noise, t=self.path.prediction.training_times(noise.t))

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
        return flow.flow_matching_loss(
            network,
            x_1,
            condition=condition,
            x_0=noise.x_0,
            t=noise.t,
            mask=mask,
            prefix_length=prefix_length,
            path=self.path,
        )

    @property
    def default_solver(self) -> str:
        """Euler for velocities on straight paths, otherwise DDIM (which is the same there)."""
        path = self.path
        is_curved = isinstance(path, GaussianPath) and (
            not path.schedule.is_straight or not isinstance(path.prediction, VelocityPrediction)
        )
        return "ddim" if is_curved else "euler"


def make_path(
    name: str, prediction: type[Prediction], schedule: str | None, *, wrapped: bool = False, **options: float | None
) -> ProbabilityPath:
    """The path for a prediction. options: of the prediction, as far as it has fields of these names.

    Raises ConfigurationError for options that do not fit together.
    """
    known = {field.name for field in fields(prediction)}  # type: ignore[arg-type]  # each is a dataclass
    gamma = options["min_snr_gamma"]
    require(
        gamma is None or "min_snr_gamma" in known,
        f"min_snr_gamma={gamma} is for objective=data_prediction, not {name}",
    )
    if wrapped:
        require(
            issubclass(prediction, VelocityPrediction),
            f"objective={name} needs a Gaussian path; on angles there are flow, flow_map",
        )
        require(schedule is None, f"schedule={schedule}: the path between angles has none; leave it out")
        return WrappedPath()
    schedule = schedule or prediction.default_schedule
    require(schedule in SCHEDULES, f"unknown schedule {schedule!r}; there are {', '.join(SCHEDULES)}")
    require(
        SCHEDULES[schedule].is_straight or not prediction.needs_straight_path,
        f"objective={name} with schedule={schedule}: its velocity is infinite at an end; use schedule=linear, or "
        "objective=v, the velocity that Salimans and Ho defined for such schedules",
    )
    return GaussianPath(SCHEDULES[schedule], prediction(**{key: options[key] for key in options if key in known}))
