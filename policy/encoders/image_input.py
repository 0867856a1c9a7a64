"""The input of pretrained vision networks: image size, mean and standard deviation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageInput(nn.Module):
    """Images (N, 3, h, w) in [0, 1], resized to ``size`` (height, width) if given, minus ``mean``, divided by ``std``."""

    def __init__(
        self,
        *,
        size: Sequence[int] | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.size = None if size is None else list(size)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.size is not None and list(images.shape[-2:]) != self.size:
            images = nn.functional.interpolate(images, self.size, mode="bilinear", antialias=True)
        return (images - self.get_buffer("mean")) / self.get_buffer("std")


def whole_patches(image_size: Sequence[int], patch: int, resize: int | None) -> list[int]:
    """(height, width) in pixels, rounded up to whole patches: of ``resize`` on each side, by default of the image."""
    return [-(-(resize or side) // patch) * patch for side in image_size]
