"""A one-dimensional U-Net over the chunk with FiLM conditioning (Janner 2205.09991, Chi 2303.04137)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from flowchunk.policy.networks.conditioning import TimeAndCondition, time_per_sample, time_per_token, zero_initialized
from flowchunk.policy.shapes import Chunk, Condition, Times


class UNet1D(nn.Module):
    """Velocity of a chunk by a U-Net of convolutions along time.

    Per-token times enter as an additional input channel; FiLM depends on the time of the tokens not known yet. channels: of
    each level. Raises ValueError unless 2^(levels - 1) divides the horizon.
    """

    def __init__(
        self,
        *,
        action_size: int,
        horizon: int,
        condition_size: int,
        channels: Sequence[int] = (32, 64, 128),
        width: int = 128,
        kernel: int = 5,
        groups: int = 8,
    ) -> None:
        super().__init__()
        reduction = 2 ** (len(channels) - 1)
        if horizon % reduction:
            raise ValueError(
                f"horizon={horizon} must be a multiple of {reduction} for {len(channels)} levels; give fewer network.channels"
            )

        def block(inputs: int, outputs: int) -> FiLMBlock:
            return FiLMBlock(inputs, outputs, width, kernel=kernel, groups=groups)

        self.embedding = TimeAndCondition(condition_size, width)
        levels = list(pairwise([action_size + 1, *channels]))
        self.down = nn.ModuleList(FiLMPair(block(i, o), block(o, o)) for i, o in levels)
        self.shrink = nn.ModuleList(nn.Conv1d(c, c, 3, stride=2, padding=1) for c in channels[:-1])
        self.middle = block(channels[-1], channels[-1])
        self.grow = nn.ModuleList(nn.ConvTranspose1d(c, c, 4, stride=2, padding=1) for c in channels[:0:-1])
        self.up = nn.ModuleList(block(below + here, here) for here, below in reversed(list(pairwise(channels))))
        self.output = zero_initialized(nn.Conv1d(channels[0], action_size, 1))

    def forward(self, x: Chunk, t: Times, condition: Condition, *, t_end: Times | None = None) -> Chunk:
        c = self.embedding(time_per_sample(t), condition, time_per_sample(t_end))  # (B, width)
        h = torch.cat([x, time_per_token(t, x.shape[1])[..., None]], dim=-1).mT  # (B, D + 1, H)
        skips = []
        for level, down in enumerate(self.down):
            h = down(h, c)
            if level < len(self.shrink):
                skips.append(h)
                h = self.shrink[level](h)
        h = self.middle(h, c)
        for grow, up in zip(self.grow, self.up, strict=True):
            h = up(torch.cat([grow(h), skips.pop()], dim=1), c)
        return self.output(h).mT


class FiLMPair(nn.Module):
    """Two blocks, one after the other."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.second(self.first(x, c), c)


class FiLMBlock(nn.Module):
    """A residual block of two convolutions; between them the condition scales and shifts the channels (FiLM, 1709.07871).

    FiLM and the second convolution are initialized to zero: the block starts as its skip connection.
    """

    def __init__(self, inputs: int, outputs: int, width: int, *, kernel: int, groups: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2), nn.GroupNorm(groups, outputs)
        )
        self.film = nn.Sequential(nn.SiLU(), zero_initialized(nn.Linear(width, 2 * outputs)))
        self.second = zero_initialized(nn.Conv1d(outputs, outputs, kernel, padding=kernel // 2))
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.activation = nn.SiLU()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.film(c)[..., None].chunk(2, dim=1)  # each (B, outputs, 1)
        h = self.activation(self.first(x) * (1 + scale) + shift)
        return self.skip(x) + self.second(h)
