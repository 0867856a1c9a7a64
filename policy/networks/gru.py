"""A bidirectional GRU over the chunk: smooth along time, and few weights."""

from __future__ import annotations

from torch import Tensor, nn

from flowchunk.policy.networks.conditioning import AdaptiveLayerNorm
from flowchunk.policy.networks.token_network import TokenNetwork


class GRU(TokenNetwork):
    """Velocity of a chunk by gated residual bidirectional GRUs; each token has its own time."""

    def __init__(
        self, *, action_size: int, horizon: int, condition_size: int, width: int = 256, blocks: int = 2
    ) -> None:
        super().__init__(
            (RecurrentBlock(width) for _ in range(blocks)),
            action_size=action_size,
            horizon=horizon,
            condition_size=condition_size,
            width=width,
        )


class RecurrentBlock(nn.Module):
    """x + gate · GRU(adaLN(x)), both directions side by side; the gate starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = AdaptiveLayerNorm(width)
        self.recurrence = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h, gate = self.norm(x, c)
        return x + gate * self.recurrence(h)[0]
