"""A diffusion transformer over the patches of an image (Peebles & Xie 2212.09748): the DiT of chunks on patches.

The signature is ``network(x (B, C, size, size), t (B,), condition (B, condition_size), *, t_end=None) -> like x``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 -- the name that every torch user reads at a glance
from torch import Tensor, nn

from flowchunk.policy.networks.conditioning import geometric_frequencies, sinusoidal_embedding
from flowchunk.policy.networks.dit import DiT
from flowchunk.policy.shapes import Condition, Data, Times


class PatchDiT(nn.Module):
    """Velocity of an image by a transformer whose tokens are its patches, row by row.

    The number of tokens is ``(size / patch)²``: use a patch of 2 for 8 pixels, 4 for 28 or 32. Raises ValueError unless
    ``patch`` divides the size, and 4 (a sine and a cosine for each of two axes) and ``heads`` the width.
    """

    def __init__(
        self,
        *,
        channels: int,
        size: int,
        condition_size: int,
        patch: int = 2,
        width: int = 128,
        blocks: int = 4,
        heads: int = 4,
        expansion: int = 4,
    ) -> None:
        super().__init__()
        if size % patch:
            raise ValueError(f"patch={patch} does not divide images of size={size}: choose a patch that does")
        if width % 4 or width % heads:
            raise ValueError(f"width={width} must be a multiple of 4 and of heads={heads}")
        self.patch, self.side = patch, size // patch
        self.transformer = DiT(
            action_size=channels * patch**2,
            horizon=self.side**2,
            condition_size=condition_size,
            width=width,
            blocks=blocks,
            heads=heads,
            expansion=expansion,
        )
        with torch.no_grad():  # only the initial value: they are learned
            self.transformer.position.copy_(grid_positions(self.side, width))

    def forward(self, x: Data, t: Times, condition: Condition, *, t_end: Times | None = None) -> Data:
        patches = F.pixel_unshuffle(x, self.patch)  # (B, C · patch², side, side)
        velocity = self.transformer(patches.flatten(2).mT, t, condition, t_end=t_end)  # (B, side², C · patch²)
        return F.pixel_shuffle(velocity.mT.unflatten(2, (self.side, self.side)), self.patch)


def grid_positions(side: int, width: int) -> Tensor:
    """Sines and cosines of row and column, (side², width), with periods from 2 patches to 4 sides."""
    position = torch.arange(side) / side
    axis = sinusoidal_embedding(position, geometric_frequencies(width // 2, shortest=2 / side))  # (side, width / 2)
    rows, columns = axis[:, None].expand(-1, side, -1), axis.expand(side, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)
