"""A residual MLP with adaptive layer norm over the chunk as one vector; the fastest network on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowchunk.policy.networks.conditioning import (
    AdaptiveLayerNorm,
    TimeAndCondition,
    time_per_sample,
    time_per_token,
    zero_initialized,
)
from flowchunk.policy.shapes import Chunk, Condition, Times


class MLP(nn.Module):
    """Velocity of a chunk by a residual MLP.

    Per-token times enter as an additional channel; the adaptive norms depend on the time of the tokens not known yet.

    skip: add x, scaled per value by the embedding of time and condition, to the output. A velocity holds all of the noise,
    which would otherwise have to pass through ``width`` numbers: chunks of more values could not be learned.
    """

    def __init__(
        self,
        *,
        action_size: int,
        horizon: int,
        condition_size: int,
        width: int = 512,
        blocks: int = 4,
        expansion: int = 1,
        skip: bool = True,
    ) -> None:
        super().__init__()
        self.embedding = TimeAndCondition(condition_size, width)
        self.input = nn.Linear(horizon * (action_size + 1) + condition_size, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, expansion) for _ in range(blocks))
        self.norm = AdaptiveLayerNorm(width, gates=0)
        self.output = zero_initialized(nn.Linear(width, horizon * action_size))
        self.skip = (
            nn.Sequential(nn.SiLU(), zero_initialized(nn.Linear(width, horizon * action_size))) if skip else None
        )

    def forward(self, x: Chunk, t: Times, condition: Condition, *, t_end: Times | None = None) -> Chunk:
        tokens = torch.cat([x, time_per_token(t, x.shape[1])[..., None]], dim=-1)  # (B, H, D + 1)
        c = self.embedding(time_per_sample(t), condition, time_per_sample(t_end))
        h = self.input(torch.cat([tokens.flatten(1), condition], dim=-1))
        for block in self.blocks:
            h = block(h, c)
        output = self.output(self.norm(h, c)[0]).view_as(x)
        return output if self.skip is None else output + self.skip(c).view_as(x) * x


class ResidualBlock(nn.Module):
    """x + gate · MLP(adaLN(x)); the gate starts at zero, so the block starts as the identity."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.norm = AdaptiveLayerNorm(width)
        self.branch = nn.Sequential(nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h, gate = self.norm(x, c)
        return x + gate * self.branch(h)
