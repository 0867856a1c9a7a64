"""A two-dimensional U-Net over images: the ``UNet2DModel`` of diffusers, conditioned like every other network here.

The signature is ``network(x (B, C, size, size), t (B,), condition (B, condition_size), *, t_end=None) -> like x``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from flowchunk.policy.networks.conditioning import TimeAndCondition
from flowchunk.policy.shapes import Condition, Data, Times

MIN_SIZE, MAX_LEVELS = 4, 4  # pixels at the lowest level, default number of levels


class UNet2D(nn.Module):
    """Velocity of an image by a U-Net of residual convolutions, with attention only at its lowest level.

    widths: channels of each level, multiples of ``groups``; by default see ``default_widths``. blocks: per level. Raises
    ValueError if the size cannot be halved for every level.
    """

    def __init__(
        self,
        *,
        channels: int,
        size: int,
        condition_size: int,
        widths: Sequence[int] | None = None,
        blocks: int = 1,
        groups: int = 8,
    ) -> None:
        from diffusers.models.unets.unet_2d import (
            UNet2DModel,  # takes seconds to import, and only this network needs it
        )

        super().__init__()
        widths = default_widths(size) if widths is None else tuple(widths)
        check_widths(widths, size, groups)
        self.embedding = TimeAndCondition(condition_size, 4 * widths[0])
        self.unet = UNet2DModel(
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=widths,
            down_block_types=("DownBlock2D",) * len(widths),
            up_block_types=("UpBlock2D",) * len(widths),
            layers_per_block=blocks,
            norm_num_groups=groups,
            attn_norm_num_groups=groups,
            attention_head_dim=widths[-1],
            resnet_time_scale_shift="scale_shift",
            class_embed_type="identity",
        )
        nn.init.zeros_(self.unet.conv_out.weight)
        nn.init.zeros_(self.unet.conv_out.bias)

    def forward(self, x: Data, t: Times, condition: Condition, *, t_end: Times | None = None) -> Data:
        # diffusers adds "class labels" to its own embedding of the time, which it expects from 0 to 1000
        c = self.embedding(t, condition, t_end)
        return self.unet(x, 1000 * t, class_labels=c, return_dict=False)[0]


def default_widths(size: int, *, width: int = 32) -> tuple[int, ...]:
    """Widths of up to four levels, the lowest of at least 4 pixels: (32, 64) for 8 pixels, (32, 64, 64) for 28."""
    levels = 1
    while levels < MAX_LEVELS and size % 2 == 0 and size // 2 >= MIN_SIZE:
        size, levels = size // 2, levels + 1
    return (width,) + (2 * width,) * (levels - 1)


def check_widths(widths: Sequence[int], size: int, groups: int) -> None:
    """Raise ValueError unless the size can be halved for every level, and ``groups`` divides every width."""
    reduction = 2 ** (len(widths) - 1)
    if not widths or size % reduction:
        raise ValueError(
            f"size={size} must be a multiple of {reduction} for {len(widths)} U-Net levels: give fewer widths, "
            "or pad the images"
        )
    if any(width % groups for width in widths):
        raise ValueError(f"widths={tuple(widths)} must be multiples of groups={groups}")
