"""Small random shifts, rotations and scalings of images, so that a network cannot memorize them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 -- the name that every torch user reads at a glance
from torch import Tensor


def sample_augmentation(
    batch_size: int,
    generator: torch.Generator | None = None,
    *,
    shift: float = 1 / 8,
    angle: float = math.radians(15),
    scale: float = 0.1,
) -> Tensor:
    """Uniform parameters (B, 4): shift right and shift down (fractions of the side), angle (radians), scale (factor).

    shift, angle, scale: the largest deviations from (0, 0, 0, 1), which leaves an image unchanged. The default shift is one
    pixel of eight.
    """
    unit = 2 * torch.rand(batch_size, 4, generator=generator) - 1  # in [-1, 1)
    return unit * torch.tensor([shift, shift, angle, scale]) + torch.tensor([0.0, 0.0, 0.0, 1.0])


def augment(images: Tensor, parameters: Tensor) -> Tensor:
    """Images (B, C, H, W) in [-1, 1], rotated about their center, scaled and shifted by ``parameters`` (B, 4).

    Beyond the border its pixels are repeated. Cubic interpolation, because linear interpolation blurs small images.
    """
    matrix = inverse_affine_matrix(parameters.to(images), aspect=images.shape[-1] / images.shape[-2])
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return moved.clamp(-1.0, 1.0)  # cubic interpolation overshoots


def inverse_affine_matrix(parameters: Tensor, *, aspect: float) -> Tensor:
    """(B, 2, 3) matrices from output to input coordinates, both from -1 to 1: the inverse of the transform.

    parameters: (B, 4), see ``sample_augmentation``. aspect: width / height, so that a rotation is one in pixels.
    """
    right, down, angle, scale = parameters.unbind(1)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    rotation = torch.stack([cos, sin / aspect, -sin * aspect, cos], dim=1).view(-1, 2, 2)
    shift = 2 * torch.stack([right, down], dim=1)[..., None]  # a side has length 2
    return torch.cat([rotation, -rotation @ shift], dim=2)
