"""What a trained model's field looks like: how bent its ways are, and where in time its loss comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from flowchunk.policy.data_model import DataModel


def straightness(way: Tensor) -> float:
    """0 where every way is a straight line walked at constant speed; what one Euler step gets wrong (Liu 2209.03003).

    way: (instants, n, d) at equal times. Mean of |velocity - mean velocity|², over mean |mean velocity|².
    """
    velocity = (way[1:] - way[:-1]) * (len(way) - 1)
    mean = way[-1] - way[0]
    bent = (velocity - mean).square().sum(-1).mean()
    return float(bent / mean.square().sum(-1).mean())


@torch.inference_mode()
def loss_over_time(
    model: DataModel, batch: Mapping[str, Tensor], times: Tensor, *, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over samples of the training loss at each of the times (T,): both (T,).

    batch: as for training, the same samples and noise at every time. For objectives that look at a random time.
    """
    size = len(next(iter(batch.values())))
    losses = []
    for t in times:
        noise = model.sample_noise(size, torch.Generator().manual_seed(seed))
        noise = noise if model.pair_noise is None else model.pair_noise(batch, noise)
        losses.append(model.loss(batch, replace(noise, path=replace(noise.path, t=t.expand(size)))).errors)
    each = torch.stack(losses)  # (T, B)
    return each.mean(1), each.std(1)
