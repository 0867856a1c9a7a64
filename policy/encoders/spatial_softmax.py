"""Spatial softmax: the positions of learned keypoints in an image (Levine et al. 1504.00702)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SpatialSoftmax(nn.Module):
    """Features (N, channels, h, w) to positions of keypoints (N, 2 · keypoints): x and y of each, in [-1, 1].

    Each keypoint has a heat map, a linear function of the channels; its position is the mean under the map's softmax.
    """

    def __init__(self, channels: int, *, keypoints: int = 32) -> None:
        super().__init__()
        self.maps = nn.Conv2d(channels, keypoints, kernel_size=1)
        self.sharpness = nn.Parameter(torch.ones(()))
        self.features = 2 * keypoints

    def forward(self, features: Tensor) -> Tensor:
        maps = self.maps(features).float()  # positions need more than the 8 bits of bfloat16
        weights = (maps.flatten(2) * self.sharpness).softmax(-1).view_as(maps)  # (N, keypoints, h, w)
        height, width = maps.shape[-2:]
        x = (weights.sum(2) * axis(width, maps.device)).sum(-1)
        y = (weights.sum(3) * axis(height, maps.device)).sum(-1)
        return torch.stack([x, y], dim=-1).flatten(1)


def axis(size: int, device: torch.device) -> Tensor:
    """(size,) centers of equal cells of [-1, 1]."""
    return (torch.arange(size, device=device) + 0.5) * (2 / size) - 1
