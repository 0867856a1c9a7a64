"""A bidirectional GRU over the chunk: smooth along time, and small."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowchunk.policy.networks.conditioning import AdaptiveLayerNorm, TimeAndCondition, per_token, zero_initialised


class GRU(nn.Module):
    """Velocity of a chunk by gated residual bidirectional GRUs; every token sees its own time."""

    def __init__(
        self, *, action_size: int, horizon: int, condition_size: int, width: int = 256, blocks: int = 2
    ) -> None:
        super().__init__()
        self.embedding = TimeAndCondition(condition_size, width)
        self.input = nn.Linear(action_size, width)
        self.position = nn.Parameter(0.02 * torch.randn(horizon, width))
        self.blocks = nn.ModuleList(RecurrentBlock(width) for _ in range(blocks))
        self.norm = AdaptiveLayerNorm(width, gates=0)
        self.output = zero_initialised(nn.Linear(width, action_size))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, *, t_end: Tensor | None = None) -> Tensor:
        c = per_token(self.embedding(t, condition, t_end))  # (B, H, width), or (B, 1, width) for one time a sample
        h = self.input(x) + self.position
        for block in self.blocks:
            h = block(h, c)
        return self.output(self.norm(h, c)[0])


class RecurrentBlock(nn.Module):
    """x + gate · GRU(adaLN(x)), both directions side by side; the gate starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = AdaptiveLayerNorm(width)
        self.recurrence = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h, gate = self.norm(x, c)
        return x + gate * self.recurrence(h)[0]
