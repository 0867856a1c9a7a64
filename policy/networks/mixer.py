"""An MLP-mixer over the chunk: tokens are actions, mixed along time and channels in turn (Tolstikhin 2105.01601)."""

from __future__ import annotations

from torch import Tensor, nn

from flowchunk.policy.networks.conditioning import AdaptiveLayerNorm
from flowchunk.policy.networks.token_network import TokenNetwork


class Mixer(TokenNetwork):
    """Velocity of a chunk by an MLP-mixer; each token's adaptive norms depend on its own time."""

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
        super().__init__(
            (MixerBlock(horizon, width, expansion) for _ in range(blocks)),
            action_size=action_size,
            horizon=horizon,
            condition_size=condition_size,
            width=width,
        )


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
    return nn.Sequential(nn.Linear(size, hidden), nn.SiLU(), nn.Linear(hidden, size))  # faster than GELU
