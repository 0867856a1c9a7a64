"""A network on the torus: angles enter as points on circles, and velocities are tangent to the circles."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from flowchunk.policy.shapes import Chunk, Condition, Times


class AngleNetwork(nn.Module):
    """Velocity of angles (B, H, D), in radians per unit of t, continuous where an angle wraps.

    A network on the 2·D coordinates of the points, whose output is projected on the tangents. make: ``make(action_size) ->
    network``.
    """

    def __init__(self, make: Callable[[int], nn.Module], *, angles: int) -> None:
        super().__init__()
        self.network = make(2 * angles)

    def forward(self, x: Chunk, t: Times, condition: Condition, *, t_end: Times | None = None) -> Chunk:
        cos, sin = x.cos(), x.sin()
        along_x, along_y = self.network(torch.cat([cos, sin], dim=-1), t, condition, t_end=t_end).chunk(2, dim=-1)
        return cos * along_y - sin * along_x
