"""Demonstrations in hindsight: where the object ended is where it was to go (1707.01495).

People stop when it looks right, so a demonstration that ends nearly at its goal teaches to stop short of it. Taken as a
demonstration of how to get to where it did end, it is exact.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from flowchunk.policy.planar_frame import LANDMARKS, PlanarFrame

if TYPE_CHECKING:
    from flowchunk.datasets.windows import Windows  # a policy that acts reads no data


def with_hindsight(windows: Windows, frame: PlanarFrame | None) -> Windows:
    """The windows, each with the landmarks of ``frame.hindsight`` where the object is at the end of its episode."""
    if frame is None or not frame.hindsight:
        return windows
    origin, angle = frame.pose({key: windows.observations[key][windows.last][:, None] for key in frame.keys})
    ends = torch.cat([origin.flatten(1), angle[:, None]], dim=1)  # (W, 3)
    poses = frame.landmark_poses.repeat(len(windows), 1, 1)  # (W, L, 3)
    for name in frame.hindsight:
        poses[:, list(frame.landmarks).index(name)] = ends
    return replace(windows, of_windows={**windows.of_windows, LANDMARKS: poses})
