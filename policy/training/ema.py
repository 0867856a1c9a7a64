"""The exponential moving average (EMA) of the weights, which is what acts after training."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class WeightAverage:
    """A copy of a model with averaged weights, ``module``; after k steps the decay is ``min(1 - (1 + k)^-0.75, max_decay)``.

    every: in steps, how often it is updated: a pass over all weights takes noticeable time, and with the decay of ``every``
    steps at once the average is the same, except that it skips the weights in between. num_updates: how many there were.
    (``torch.optim.swa_utils.AveragedModel`` copies its counter to the GPU at every update and waits for it.)
    """

    def __init__(self, model: nn.Module, *, max_decay: float = 0.9999, every: int = 1) -> None:
        self.module: Any = copy.deepcopy(model)
        self.max_decay, self.every = max_decay, every
        self.num_updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Average with the weights of ``model``; the first time, and always for buffers, copy them."""
        decay = min(1.0 - (1.0 + self.num_updates * self.every) ** -0.75, self.max_decay) ** self.every
        torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), 1.0 - decay)
        for average, value in zip(self.module.buffers(), model.buffers(), strict=True):
            average.copy_(value)
        self.num_updates += 1
