"""Images from keypoints, so that keypoints can be learned without labels (Jakab et al. 1806.07823)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowchunk.policy.encoders.spatial_softmax import axis

WIDTH = 32
SCENE = 8  # channels of what always looks the same
DEVIATION = 0.12  # of a keypoint's bump, where the image is 2 wide


class HeatmapDecoder(nn.Module):
    """Positions of keypoints (N, 2 · keypoints), x and y of each in [-1, 1], to small images (N, 3, height, width).

    All that it is told is where the keypoints are: it sees a Gaussian bump at each, and beside them learned constants for
    what never moves. So keypoints have to follow what does.
    """

    def __init__(self, keypoints: int, *, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width
        self.heights = nn.Parameter(torch.ones(1, keypoints, 1, 1))
        self.scene = nn.Parameter(0.1 * torch.randn(1, SCENE, height, width))
        self.network = nn.Sequential(
            nn.Conv2d(keypoints + SCENE, WIDTH, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(WIDTH, 3, 1),
        )
        self.mean = nn.Parameter(torch.zeros(1, 3, height, width))

    def forward(self, positions: Tensor) -> Tensor:
        x, y = positions.view(len(positions), -1, 2, 1).unbind(2)  # (N, keypoints, 1) each
        columns = _bump(axis(self.width, positions.device) - x)
        rows = _bump(axis(self.height, positions.device) - y)
        bumps = self.heights * rows[..., :, None] * columns[..., None, :]
        return self.mean + self.network(torch.cat([bumps, self.scene.expand(len(positions), -1, -1, -1)], dim=1))


def _bump(distance: Tensor) -> Tensor:
    return (-((distance / DEVIATION) ** 2) / 2).exp()
