"""What a network trained on other pictures expects of ours: its size, and its mean and deviation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PictureInput(nn.Module):
    """Pictures (N, 3, h, w) in [0, 1], resized to ``size`` where one is given, less the mean, over the deviation."""

    def __init__(
        self,
        *,
        size: Sequence[int] | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        deviation: Sequence[float] = IMAGENET_DEVIATION,
    ) -> None:
        super().__init__()
        self.size = None if size is None else list(size)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(3, 1, 1), persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        if self.size is not None and list(pictures.shape[-2:]) != self.size:
            pictures = nn.functional.interpolate(pictures, self.size, mode="bilinear", antialias=True)
        return (pictures - self.get_buffer("mean")) / self.get_buffer("deviation")


def whole_patches(picture_size: Sequence[int], patch: int, resize: int | None) -> list[int]:
    """(height, width) in whole patches: ``resize`` a side, by default the smallest that holds the picture."""
    return [-(-(resize or side) // patch) * patch for side in picture_size]
