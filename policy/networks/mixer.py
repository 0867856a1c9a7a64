"""An MLP-mixer over the chunk: tokens are actions, mixed along time and along channels in turn (Tolstikhin 2105.01601)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowchunk.policy.networks.conditioning import AdaptiveLayerNorm, TimeAndCondition, per_token, zero_initialised


class Mixer(nn.Module):
    """Velocity of a chunk by an MLP-mixer; every token's adaptive norm sees that token's own time."""

    def __init__(
        self,
        *,
        action_size: int,
        horizon: int,
        condition_size: int,
        width: int = 128,
        blocks: int = 4,
        expansion: int = 2,
    ) -> None:
        super().__init__()
        self.embedding = TimeAndCondition(condition_size, width)
        self.input = nn.Linear(action_size, width)
        self.position = nn.Parameter(0.02 * torch.randn(horizon, width))
        self.blocks = nn.ModuleList(MixerBlock(horizon, width, expansion) for _ in range(blocks))
        self.norm = AdaptiveLayerNorm(width, gates=0)
        self.output = zero_initialised(nn.Linear(width, action_size))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, *, t_end: Tensor | None = None) -> Tensor:
        c = per_token(self.embedding(t, condition, t_end))  # (B, H, width), or (B, 1, width) for one time a sample
        h = self.input(x) + self.position
        for block in self.blocks:
            h = block(h, c)
        return self.output(self.norm(h, c)[0])


class MixerBlock(nn.Module):
    """Two gated residual branches: an MLP along the horizon, an MLP along the channels."""

    def __init__(self, horizon: int, width: int, expansion: int) -> None:
        super().__init__()
        self.time_norm, self.channel_norm = AdaptiveLayerNorm(width), AdaptiveLayerNorm(width)
        self.along_time = _mlp(horizon, expansion * horizon)
        self.along_channels = _mlp(width, expansion * width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h, gate = self.time_norm(x, c)
        x = x + gate * self.along_time(h.mT).mT
        h, gate = self.channel_norm(x, c)
        return x + gate * self.along_channels(h)


def _mlp(size: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, hidden), nn.SiLU(), nn.Linear(hidden, size))  # GELU costs more
