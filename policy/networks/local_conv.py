"""A convolutional network with a deliberately small receptive field (Kamb & Ganguli 2412.20292).

A network that is local and nearly translation-equivariant cannot memorize whole images: it composes new ones of patches
of the training data. The signature is
``network(x (B, C, size, size), t (B,), condition (B, condition_size), *, t_end=None) -> like x``.
"""

from __future__ import annotations

from torch import Tensor, nn

from flowchunk.policy.networks.conditioning import AdaptiveLayerNorm, TimeAndCondition, zero_initialized
from flowchunk.policy.shapes import Condition, Data, Times


class LocalConv(nn.Module):
    """Velocity of an image, at each pixel a function of the square of ``receptive_field`` pixels around it.

    No attention, no pooling, and norms over the channels of a single pixel. The first blocks have 3 x 3 convolutions until
    the receptive field is reached, the others 1 x 1. Zero padding gives pixels near the edge their position. Images may have
    any size: ``size`` is an argument only because every network takes it. Raises ValueError unless the receptive field is
    an odd number from 1 to 2·blocks + 1.
    """

    def __init__(
        self,
        *,
        channels: int,
        size: int,
        condition_size: int,
        receptive_field: int = 5,
        width: int = 64,
        blocks: int = 4,
        expansion: int = 2,
    ) -> None:
        super().__init__()
        radius = (receptive_field - 1) // 2  # each 3 x 3 convolution adds a pixel on every side
        if receptive_field % 2 == 0 or not 0 <= radius <= blocks:
            raise ValueError(
                f"receptive_field={receptive_field} must be an odd number from 1 to {2 * blocks + 1}, "
                f"since each of blocks={blocks} adds at most two pixels"
            )
        self.embedding = TimeAndCondition(condition_size, width)
        self.input = nn.Linear(channels, width)
        self.blocks = nn.ModuleList(LocalBlock(width, expansion, 3 if i < radius else 1) for i in range(blocks))
        self.norm = AdaptiveLayerNorm(width, gates=0)
        self.output = zero_initialized(nn.Linear(width, channels))

    def forward(self, x: Data, t: Times, condition: Condition, *, t_end: Times | None = None) -> Data:
        c = self.embedding(t, condition, t_end)[:, None, None]  # (B, 1, 1, width)
        h = self.input(x.movedim(1, -1))  # (B, size, size, width): channels last for norms and linear layers
        for block in self.blocks:
            h = block(h, c)
        return self.output(self.norm(h, c)[0]).movedim(-1, 1)


class LocalBlock(nn.Module):
    """x + gate · convolutions(adaLN(x)), on (B, size, size, width); the gate starts at zero."""

    def __init__(self, width: int, expansion: int, kernel: int) -> None:
        super().__init__()
        self.norm = AdaptiveLayerNorm(width)
        self.branch = nn.Sequential(
            nn.Conv2d(width, expansion * width, kernel, padding=kernel // 2),
            nn.GELU(),
            nn.Conv2d(expansion * width, width, 1),
        )

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h, gate = self.norm(x, c)
        return x + gate * self.branch(h.movedim(-1, 1)).movedim(1, -1)
