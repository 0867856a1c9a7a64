"""Networks for images, all with one signature: ``network(x, t, condition, *, t_end=None) -> like x``.

x: noisy images (B, C, size, size). t: times (B,). condition: (B, condition_size), such as the embedding of a class.
t_end: the second time of flow maps, (B,), by default equal to t. Constructors take ``channels``, ``size`` and
``condition_size`` by keyword; every network starts as the zero velocity.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from flowchunk.policy.networks.local_conv import LocalConv
from flowchunk.policy.networks.patch_dit import PatchDiT
from flowchunk.policy.networks.unet2d import UNet2D
from flowchunk.policy.registry import Registry

IMAGE_NETWORKS: Registry[Callable[..., nn.Module]] = Registry(
    "image_network",
    {
        "unet2d": UNet2D,
        "patch_dit": PatchDiT,
        "local_conv": LocalConv,
    },
)

__all__ = ["IMAGE_NETWORKS", "LocalConv", "PatchDiT", "UNet2D"]
