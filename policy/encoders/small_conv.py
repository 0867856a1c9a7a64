"""A convolutional network small enough to be trained on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.policy.encoders.spatial_softmax import SpatialSoftmax

GROUPS = 8


class SmallConv(nn.Module):
    """Images (N, 3, h, w) in [0, 1] to (N, features): convolutions, then a spatial softmax.

    widths: channels of each convolution, two or more multiples of 8. The first two halve the image; the others keep its
    size, and are residual if the width stays the same. Raises ConfigurationError for other widths.
    """

    def __init__(self, *, widths: Sequence[int] = (32, 64, 64, 64), keypoints: int = 32) -> None:
        super().__init__()
        if len(widths) < 2 or any(width < GROUPS or width % GROUPS for width in widths):
            raise ConfigurationError(f"vision.widths={list(widths)}: expected two or more multiples of {GROUPS}")
        self.stem = nn.Sequential(_block(3, widths[0], kernel_size=5, stride=2), _block(widths[0], widths[1], stride=2))
        self.blocks = nn.ModuleList(_block(inputs, outputs) for inputs, outputs in pairwise(widths[1:]))
        self.keypoints = SpatialSoftmax(widths[-1], keypoints=keypoints)
        self.features = self.keypoints.features

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(2 * images - 1)
        for block in self.blocks:
            y = block(x)
            x = x + y if x.shape == y.shape else y
        return self.keypoints(x)

    def load_weights(self, weights: str) -> None:
        """Raises ConfigurationError: there are no pretrained weights."""
        raise ConfigurationError(
            f"vision.weights={weights}: there are no weights for vision=small_conv; leave it out, or choose vision=resnet18"
        )


def _block(inputs: int, outputs: int, *, kernel_size: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel_size, stride=stride, padding=kernel_size // 2, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(outputs // GROUPS, outputs), nn.SiLU())
