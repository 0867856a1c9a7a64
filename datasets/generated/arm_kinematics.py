"""Inverse kinematics of a planar arm: every reachable pose has two solutions, elbow up and elbow down, on a torus.

Three joints bring the end effector to a position and a heading. Joint angles live on circles, where -π and π are the same
direction; a model that treats them as plain numbers separates solutions that are close together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.shape_repr import shape_repr

LINKS = (0.4, 0.3, 0.15)  # meters: upper arm, forearm, hand
ELBOW_BEND = (0.35, np.pi - 0.35)  # rad, range of sampled elbow angles: keeps the two solutions apart
LARGEST_ANGLE = np.nextafter(np.float32(np.pi), np.float32(0))  # float32(π) is above π


@dataclass(frozen=True)
class ArmPoses:
    """condition: (n, 4) x, y in meters, cos φ, sin φ of the end effector; angles: (n, 3) in (-π, π]. Both float32."""

    condition: np.ndarray
    angles: np.ndarray

    __repr__ = shape_repr


def sample_arm_poses(n: int, rng: np.random.Generator) -> ArmPoses:
    """n reachable poses around the base, each with its solution elbow up or elbow down with equal probability."""
    upper, fore, hand = LINKS
    bend, direction, phi = rng.uniform(*ELBOW_BEND, n), rng.uniform(-np.pi, np.pi, n), rng.uniform(-np.pi, np.pi, n)
    radius = np.sqrt(upper**2 + fore**2 + 2 * upper * fore * np.cos(bend))  # distance of the wrist from the base
    x = radius * np.cos(direction) + hand * np.cos(phi)
    y = radius * np.sin(direction) + hand * np.sin(phi)
    condition = np.stack([x, y, np.cos(phi), np.sin(phi)], axis=1).astype(np.float32)
    return ArmPoses(condition, inverse_kinematics(condition, rng.random(n) < 0.5))


def forward_kinematics(angles: np.ndarray) -> np.ndarray:
    """The end effector's pose for joint angles (n, 3), each relative to the previous link.

    Returns float32 (n, 3): x and y in meters, the heading φ in (-π, π].
    """
    headings = np.cumsum(angles, axis=1, dtype=np.float64)  # of each link, in the world frame
    x, y = np.cos(headings) @ LINKS, np.sin(headings) @ LINKS
    return np.stack([x, y, wrap(headings[:, 2])], axis=1).astype(np.float32)


def inverse_kinematics(target: np.ndarray, elbow_up: np.ndarray) -> np.ndarray:
    """The joint angles, float32 (n, 3) in (-π, π], that reach targets (n, 4), given like ``ArmPoses.condition``.

    elbow_up: bool (n,), which of the two solutions. Raises ConfigurationError if a target is out of reach.
    """
    upper, fore, hand = LINKS
    x, y, cosine, sine = target.astype(np.float64).T
    phi = np.arctan2(sine, cosine)
    wrist_x, wrist_y = x - hand * np.cos(phi), y - hand * np.sin(phi)
    cos_elbow = (wrist_x**2 + wrist_y**2 - upper**2 - fore**2) / (2 * upper * fore)
    if (beyond := np.abs(cos_elbow) > 1 + 1e-6).any():
        first = int(np.argmax(beyond))
        raise ConfigurationError(
            f"{beyond.sum()} of {len(target)} targets are out of reach, the first at index {first}: its wrist is "
            f"{np.hypot(wrist_x, wrist_y)[first]:.3f} m from the base, expected {upper - fore:.3f} to {upper + fore:.3f}"
        )
    bend = np.arccos(np.clip(cos_elbow, -1, 1))
    elbow = np.where(elbow_up, -bend, bend)
    shoulder = np.arctan2(wrist_y, wrist_x) - np.arctan2(fore * np.sin(elbow), upper + fore * np.cos(elbow))
    return wrap(np.stack([shoulder, elbow, phi - shoulder - elbow], axis=1))


def elbow_is_up(angles: np.ndarray) -> np.ndarray:
    """Whether the elbow lies to the left of the line from base to wrist (above it if it points along x): bool (n,)."""
    return np.sin(angles[:, 1]) < 0


def position_error(angles: np.ndarray, condition: np.ndarray) -> np.ndarray:
    """Distance of the end effector from its target position in meters, (n,)."""
    return np.linalg.norm(forward_kinematics(angles)[:, :2] - condition[:, :2], axis=1)


def heading_error(angles: np.ndarray, condition: np.ndarray) -> np.ndarray:
    """Angle between the end effector's heading and its target heading, in [0, π], (n,)."""
    target = np.arctan2(condition[:, 3], condition[:, 2])
    return np.abs(wrap(forward_kinematics(angles)[:, 2] - target))


def wrap(angles: np.ndarray) -> np.ndarray:
    """The same angles wrapped to (-π, π], float32, of any shape."""
    wrapped = np.pi - np.mod(np.pi - np.asarray(angles, np.float64), 2 * np.pi)
    return np.clip(wrapped, -LARGEST_ANGLE, LARGEST_ANGLE).astype(np.float32)
