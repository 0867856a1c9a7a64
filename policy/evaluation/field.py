"""The vector field of a trained model: the curvature of its trajectories, and the loss as a function of time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from flowchunk.policy.data_model import DataModel


def straightness(trajectory: Tensor) -> float:
    """Curvature of trajectories: 0 for straight lines at constant speed, for which one Euler step is exact (Liu 2209.03003).

    trajectory: (T, n, d), n points at T equally spaced times from 0 to 1. Mean of |velocity - mean velocity|² over mean of
    |mean velocity|²; no unit.
    """
    velocity = (trajectory[1:] - trajectory[:-1]) * (len(trajectory) - 1)
    mean_velocity = trajectory[-1] - trajectory[0]
    curvature = (velocity - mean_velocity).square().sum(-1).mean()
    return float(curvature / mean_velocity.square().sum(-1).mean())


@torch.inference_mode()
def loss_over_time(
    model: DataModel, batch: Mapping[str, Tensor], times: Tensor, *, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over samples of the training loss at each of the times (T,): both (T,).

    batch: as for training. Samples and noise are the same at every time. Only for objectives whose loss depends on t.
    """
    size = len(next(iter(batch.values())))
    losses = []
    for t in times:
        noise = model.sample_noise(size, torch.Generator().manual_seed(seed))
        noise = noise if model.pair_noise is None else model.pair_noise(batch, noise)
        losses.append(model.loss(batch, replace(noise, path=replace(noise.path, t=t.expand(size)))).errors)
    stacked = torch.stack(losses)  # (T, B)
    return stacked.mean(1), stacked.std(1)
