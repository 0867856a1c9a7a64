"""Which part of a picture a policy looks at, and in which light: drawn anew for each sample while it learns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601: how much each of red, green and blue adds to brightness


def cropped(pictures: Tensor, size: Sequence[int], places: Tensor | None = None) -> Tensor:
    """Parts (B, T, h, w, C) of pictures (B, T, H, W, C), the same part of all T pictures of a sample.

    places: (B, 2) in [0, 1): how far down and to the right of all the places that there are; the middle by default.
    """
    height, width = size
    free_y, free_x = pictures.shape[2] - height, pictures.shape[3] - width
    if places is None:
        top, left = free_y // 2, free_x // 2
        return pictures[:, :, top : top + height, left : left + width]
    corners = (places * places.new_tensor([free_y + 1, free_x + 1])).long()  # (B, 2)
    corners = corners.repeat_interleave(pictures.shape[1], dim=0)  # (B · T, 2)
    frame = torch.arange(len(corners), device=pictures.device)[:, None, None]
    rows = corners[:, :1, None] + torch.arange(height, device=pictures.device)[:, None]  # (B · T, h, 1)
    columns = corners[:, 1:, None] + torch.arange(width, device=pictures.device)  # (B · T, 1, w)
    return pictures.flatten(0, 1)[frame, rows, columns].reshape(*pictures.shape[:2], height, width, -1)


def jitter_colors(pictures: Tensor, factors: Tensor) -> Tensor:
    """Pictures (B, T, C, h, w) in [0, 1] with another brightness, contrast and saturation.

    factors: (B, 3), 1 leaves as it is: brightness times the first, then contrast about the mean grey, then colours about
    each pixel's grey. The result is kept in [0, 1].
    """
    brightness, contrast, saturation = factors[:, :, None, None, None, None].unbind(1)
    bright = pictures * brightness
    mean = _grey(bright).mean((2, 3, 4), keepdim=True)
    contrasted = mean + contrast * (bright - mean)
    grey = _grey(contrasted)
    return (grey + saturation * (contrasted - grey)).clamp(0, 1)


def _grey(pictures: Tensor) -> Tensor:
    return (pictures * pictures.new_tensor(LUMA).view(3, 1, 1)).sum(2, keepdim=True)
