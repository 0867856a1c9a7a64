"""A diffusion transformer over the chunk with adaLN-zero conditioning (Peebles & Xie 2212.09748)."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 -- the name that every torch user reads at a glance
from torch import Tensor, nn

from flowchunk.policy.networks.conditioning import AdaptiveLayerNorm
from flowchunk.policy.networks.token_network import TokenNetwork


class DiT(TokenNetwork):
    """Velocity of a chunk by a transformer; each token's adaptive norms depend on its own time."""

    def __init__(
        self,
        *,
        action_size: int,
        horizon: int,
        condition_size: int,
        width: int = 128,
        blocks: int = 4,
        heads: int = 4,
        expansion: int = 4,
    ) -> None:
        super().__init__(
            (TransformerBlock(width, heads, expansion) for _ in range(blocks)),
            action_size=action_size,
            horizon=horizon,
            condition_size=condition_size,
            width=width,
        )


class TransformerBlock(nn.Module):
    """Self-attention and an MLP, each a residual branch whose gate starts at zero."""

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = AdaptiveLayerNorm(width), AdaptiveLayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h, gate = self.attention_norm(x, c)
        x = x + gate * self.attend(h)
        h, gate = self.mlp_norm(x, c)
        return x + gate * self.mlp(h)

    def attend(self, h: Tensor) -> Tensor:
        """Multi-head self-attention, (B, H, width) to (B, H, width)."""
        batch, horizon, width = h.shape
        qkv = self.query_key_value(h).view(batch, horizon, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, H, width / heads)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.projection(attended.transpose(1, 2).reshape(batch, horizon, width))
