"""The base of the networks over action tokens, which differ only in their blocks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from flowchunk.policy.networks.conditioning import (
    AdaptiveLayerNorm,
    TimeAndCondition,
    embedding_per_token,
    zero_initialized,
)
from flowchunk.policy.shapes import Chunk, Condition, Times


class TokenNetwork(nn.Module):
    """Velocity of a chunk, whose tokens are its actions: embedding, blocks, projection. Each token has its own time.

    blocks: modules ``block(h (B, H, width), c (B, H or 1, width)) -> like h``.
    """

    def __init__(
        self, blocks: Iterable[nn.Module], *, action_size: int, horizon: int, condition_size: int, width: int
    ) -> None:
        super().__init__()
        self.embedding = TimeAndCondition(condition_size, width)
        self.input = nn.Linear(action_size, width)
        self.position = nn.Parameter(0.02 * torch.randn(horizon, width))
        self.blocks = nn.ModuleList(blocks)
        self.norm = AdaptiveLayerNorm(width, gates=0)
        self.output = zero_initialized(nn.Linear(width, action_size))

    def forward(self, x: Chunk, t: Times, condition: Condition, *, t_end: Times | None = None) -> Chunk:
        c = embedding_per_token(
            self.embedding(t, condition, t_end)
        )  # (B, H, width), or (B, 1, width) with one time per sample
        h = self.input(x) + self.position
        for block in self.blocks:
            h = block(h, c)
        return self.output(self.norm(h, c)[0])
