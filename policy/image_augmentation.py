"""Pictures a little shifted, turned and scaled, so that a network cannot learn each of them by heart."""

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
    """Draws (B, 4), evenly spread: shift right, shift down (fractions of the side), angle (radians), scale (factor).

    The default shift is one pixel of eight. A picture with the draws (0, 0, 0, 1) stays as it is.
    """
    unit = 2 * torch.rand(batch_size, 4, generator=generator) - 1  # in [-1, 1)
    return unit * torch.tensor([shift, shift, angle, scale]) + torch.tensor([0.0, 0.0, 0.0, 1.0])


def augment(images: Tensor, draws: Tensor) -> Tensor:
    """Pictures (B, C, H, W) in [-1, 1], turned about their centre, scaled and shifted by ``draws`` (B, 4).

    What comes in from outside repeats the border. Cubic interpolation, because linear blurs small pictures.
    """
    grid = F.affine_grid(sampling_map(draws.to(images), images.shape[-1] / images.shape[-2]), list(images.shape), False)
    moved = F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return moved.clamp(-1.0, 1.0)  # cubics overshoot


def sampling_map(draws: Tensor, aspect: float) -> Tensor:
    """(B, 2, 3) where each output pixel is taken from: the inverse of the motion, in coordinates from -1 to 1.

    aspect: width over height, so that a turn is a turn in pixels.
    """
    right, down, angle, scale = draws.unbind(1)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    turn = torch.stack([cos, sin / aspect, -sin * aspect, cos], dim=1).view(-1, 2, 2)
    shift = 2 * torch.stack([right, down], dim=1)[..., None]  # a side is two long
    return torch.cat([turn, -turn @ shift], dim=2)
