"""Flow maps: networks that predict the mean velocity between any two times, so that a step may have any length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from flowchunk.policy import flow
from flowchunk.policy.diffusion.objectives.objective import IntegratedObjective, Network
from flowchunk.policy.diffusion.objectives.path_objective import make_path
from flowchunk.policy.diffusion.paths import ProbabilityPath, broadcast_time
from flowchunk.policy.diffusion.predictions import VelocityPrediction
from flowchunk.policy.diffusion.time_densities import TimeDensity
from flowchunk.policy.flow import Loss, with_prefix_time
from flowchunk.policy.noise import PathNoise


@dataclass(frozen=True, repr=False)
class FlowMapNoise(PathNoise):
    """t_end: (B,) the end of the long step, at or after t. split: (B,) in [0, 1), the fraction of it after which the
    two shorter steps meet.
    """

    t_end: Tensor
    split: Tensor


class FlowMap(IntegratedObjective):
    """The flow-matching loss plus self-distillation: one long step against two shorter ones (cf. 2505.18825)."""

    is_flow_map = True

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
        path = make_path(name, VelocityPrediction, schedule, wrapped=wrapped, min_snr_gamma=min_snr_gamma)
        return cls(name, path, time_density)

    def sample_noise(self, size: tuple[int, ...], generator: torch.Generator) -> FlowMapNoise:
        noise = super().sample_noise(size, generator)
        t_end = noise.t + (1 - noise.t) * torch.rand(size[:1], generator=generator)
        split = torch.rand(size[:1], generator=generator)
        return FlowMapNoise(x_0=noise.x_0, t=noise.t, t_end=t_end, split=split)

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
        velocity = flow.flow_matching_loss(
            network,
            x_1,
            condition=condition,
            x_0=noise.x_0,
            t=noise.t,
            mask=mask,
            prefix_length=prefix_length,
            path=self.path,
        )
        errors = flow_map_errors(
            network, x_1, noise=noise, path=self.path, condition=condition, prefix_length=prefix_length
        )
        consistency = Loss.from_errors(errors, mask=mask, prefix_length=prefix_length)
        return Loss(velocity.errors + consistency.errors, velocity.weight)

    @property
    def default_solver(self) -> str:
        return "flow_map"


def flow_map_errors(
    network: Network,
    x_1: Tensor,
    *,
    noise: FlowMapNoise,
    path: ProbabilityPath,
    condition: Any = None,
    prefix_length: Tensor | None = None,
) -> Tensor:
    """Squared errors (B, …) of one long step, t to t_end, against two shorter ones that meet at t + split·(t_end - t).

    The two shorter ones are the teacher; no gradient flows through them.
    """
    t, t_end, split = noise.t, noise.t_end, noise.split
    if prefix_length is not None:
        t, t_end = (with_prefix_time(time, prefix_length, x_1.shape[1]) for time in (t, t_end))
        split = split[:, None]
    x_t, _ = path.sample(x_0=noise.x_0, x_1=x_1, t=t)
    middle = t + split * (t_end - t)
    with torch.no_grad():
        first = network(x_t, t, condition, t_end=middle)
        x_middle = path.step(x_t, broadcast_time(middle - t, x_t) * first)
        second = network(x_middle, middle, condition, t_end=t_end)
        fraction = broadcast_time(split, x_t)
        target = fraction * first + (1 - fraction) * second
    return (network(x_t, t, condition, t_end=t_end) - target) ** 2
