"""A network on the torus: it sees angles as points on circles, and answers along the circles."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class AngleNetwork(nn.Module):
    """Velocity of angles (B, H, D) in rad/s by a network of 2·D coordinates: what it says is projected on the tangents.

    make: ``make(action_size) -> network``; so that nothing jumps where an angle wraps.
    """

    def __init__(self, make: Callable[[int], nn.Module], *, angles: int) -> None:
        super().__init__()
        self.network = make(2 * angles)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, *, t_end: Tensor | None = None) -> Tensor:
        cos, sin = x.cos(), x.sin()
        along_x, along_y = self.network(torch.cat([cos, sin], dim=-1), t, condition, t_end=t_end).chunk(2, dim=-1)
        return cos * along_y - sin * along_x
