"""A two-dimensional U-Net over pictures: diffusers' ``UNet2DModel``, conditioned as every other network here is.

The signature is ``network(x (B, C, size, size), t (B,), condition (B, condition_size), *, t_end=None) -> like x``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from flowchunk.policy.networks.conditioning import TimeAndCondition

SMALLEST, MOST_LEVELS = 4, 4


class UNet2D(nn.Module):
    """Velocity of a picture by a U-Net of residual convolutions, with attention in the middle, at its lowest level, alone.

    widths: channels of each level, a multiple of ``groups``; by default one level for each halving of ``size`` that
    leaves at least 4 pixels, the first half as wide as the others. Raises ValueError where the size cannot be halved so
    often.
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
        from diffusers.models.unets.unet_2d import UNet2DModel  # seconds to import, and only this network needs it

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

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, *, t_end: Tensor | None = None) -> Tensor:
        # diffusers adds "class labels" to its own embedding of the time, which it expects from 0 to 1000
        c = self.embedding(t, condition, t_end)
        return self.unet(x, 1000 * t, class_labels=c, return_dict=False)[0]


def default_widths(size: int, *, width: int = 32) -> tuple[int, ...]:
    """Widths of the levels that a size admits: (32, 64) for 8 pixels, (32, 64, 64) for 28, four levels for 32."""
    levels = 1
    while levels < MOST_LEVELS and size % 2 == 0 and size // 2 >= SMALLEST:
        size, levels = size // 2, levels + 1
    return (width,) + (2 * width,) * (levels - 1)


def check_widths(widths: Sequence[int], size: int, groups: int) -> None:
    """Raise ValueError unless every level halves the size evenly and its width splits into the groups of the norms."""
    reduction = 2 ** (len(widths) - 1)
    if not widths or size % reduction:
        raise ValueError(
            f"size={size} must be a multiple of {reduction} for {len(widths)} U-Net levels: give fewer widths, "
            "or pad the pictures"
        )
    if any(width % groups for width in widths):
        raise ValueError(f"widths={tuple(widths)} must be multiples of groups={groups}")
