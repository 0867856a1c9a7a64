"""Crops and color jitter of images, both sampled for each sample in training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowchunk.policy.shapes import Images

LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in the gray value, ITU-R BT.601


def crop_images(images: Images, size: Sequence[int], positions: Tensor | None = None) -> Images:
    """Crops (B, T, h, w, C) of images (B, T, H, W, C), at the same position in all T images of a sample.

    size: (h, w) in pixels. positions: (B, 2) in [0, 1), from top to bottom and from left to right; centered by default.
    """
    height, width = size
    free_y, free_x = images.shape[2] - height, images.shape[3] - width
    if positions is None:
        top, left = free_y // 2, free_x // 2
        return images[:, :, top : top + height, left : left + width]
    y, x = positions.repeat_interleave(images.shape[1], dim=0)[:, :, None, None].unbind(1)  # (B · T, 1, 1) each
    index = torch.arange(len(y), device=images.device)[:, None, None]
    rows = (y * (free_y + 1)).long() + torch.arange(height, device=images.device)[:, None]  # (B · T, h, 1)
    columns = (x * (free_x + 1)).long() + torch.arange(width, device=images.device)  # (B · T, 1, w)
    return images.flatten(0, 1)[index, rows, columns].reshape(*images.shape[:2], height, width, -1)


def jitter_colors(images: Tensor, factors: Tensor) -> Tensor:
    """Images (B, T, 3, h, w) in [0, 1] with changed brightness, contrast and saturation, clipped to [0, 1].

    factors: (B, 3), 1 for no change: of all values, then of differences from the mean gray value, then of differences from
    the gray value of each pixel.
    """
    brightness, contrast, saturation = factors[:, :, None, None, None, None].unbind(1)
    bright = images * brightness
    mean = _gray(bright).mean((2, 3, 4), keepdim=True)
    contrasted = mean + contrast * (bright - mean)
    gray = _gray(contrasted)
    return (gray + saturation * (contrasted - gray)).clamp(0, 1)


def _gray(images: Tensor) -> Tensor:
    red, green, blue = images[:, :, 0:1], images[:, :, 1:2], images[:, :, 2:3]
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
