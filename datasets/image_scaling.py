"""Images scaled to another size."""

from __future__ import annotations

import numpy as np
from PIL import Image


def scale_images(images: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Images uint8 (n, H, W, 3) scaled to (height, width), each pixel a weighted mean; proportions are not kept."""
    height, width = size
    scaled = np.empty((len(images), height, width, 3), np.uint8)
    for index, image in enumerate(images):
        scaled[index] = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    return scaled
