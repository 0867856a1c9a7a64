"""Inverse kinematics of a planar arm: every reachable pose has two answers, elbow up and elbow down, on a torus.

Three joints bring the end effector to a position and a heading. Joint angles live on circles: -π and π are one
direction, so whoever treats them as plain numbers tears neighbouring answers apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flowchunk.datasets.errors import ConfigurationError

LINKS = (0.4, 0.3, 0.15)  # metres: upper arm, forearm, hand
BEND = (0.35, np.pi - 0.35)  # radians by which a drawn elbow is bent: its two answers stay clear of each other
LARGEST_ANGLE = np.nextafter(np.float32(np.pi), np.float32(0))  # float32(π) itself lies beyond π


@dataclass(frozen=True)
class ArmPoses:
    """condition: (n, 4) x, y in metres, cos φ, sin φ of the end effector; angles: (n, 3) in (-π, π]. Both float32."""

    condition: np.ndarray
    angles: np.ndarray


def draw_arm(n: int, rng: np.random.Generator) -> ArmPoses:
    """n reachable poses all round the base, each answered elbow up or elbow down with equal probability."""
    upper, fore, hand = LINKS
    bend, direction, phi = rng.uniform(*BEND, n), rng.uniform(-np.pi, np.pi, n), rng.uniform(-np.pi, np.pi, n)
    reach = np.sqrt(upper**2 + fore**2 + 2 * upper * fore * np.cos(bend))  # from the base to the wrist
    x = reach * np.cos(direction) + hand * np.cos(phi)
    y = reach * np.sin(direction) + hand * np.sin(phi)
    condition = np.stack([x, y, np.cos(phi), np.sin(phi)], axis=1).astype(np.float32)
    return ArmPoses(condition, inverse_kinematics(condition, rng.random(n) < 0.5))


def forward_kinematics(angles: np.ndarray) -> np.ndarray:
    """Where joint angles (n, 3), each measured from the link before, bring the end effector.

    Returns float32 (n, 3): x and y in metres, the heading φ in (-π, π].
    """
    headings = np.cumsum(angles, axis=1, dtype=np.float64)  # of each link, in the world
    x, y = np.cos(headings) @ LINKS, np.sin(headings) @ LINKS
    return np.stack([x, y, wrap(headings[:, 2])], axis=1).astype(np.float32)


def inverse_kinematics(target: np.ndarray, elbow_up: np.ndarray) -> np.ndarray:
    """The joint angles, float32 (n, 3) in (-π, π], that reach targets (n, 4), laid out as a condition.

    elbow_up: bool (n,); which of the two answers. Raises ConfigurationError where a target is out of reach.
    """
    upper, fore, hand = LINKS
    x, y, cosine, sine = target.astype(np.float64).T
    phi = np.arctan2(sine, cosine)
    wrist_x, wrist_y = x - hand * np.cos(phi), y - hand * np.sin(phi)
    cos_elbow = (wrist_x**2 + wrist_y**2 - upper**2 - fore**2) / (2 * upper * fore)
    if (beyond := np.abs(cos_elbow) > 1 + 1e-6).any():
        first = int(np.argmax(beyond))
        raise ConfigurationError(
            f"{beyond.sum()} of {len(target)} targets are out of reach, the first is number {first}: its wrist is "
            f"{np.hypot(wrist_x, wrist_y)[first]:.3f} m from the base, expected {upper - fore:.3f} to {upper + fore:.3f}"
        )
    bend = np.arccos(np.clip(cos_elbow, -1, 1))
    elbow = np.where(elbow_up, -bend, bend)
    shoulder = np.arctan2(wrist_y, wrist_x) - np.arctan2(fore * np.sin(elbow), upper + fore * np.cos(elbow))
    return wrap(np.stack([shoulder, elbow, phi - shoulder - elbow], axis=1))


def elbow_is_up(angles: np.ndarray) -> np.ndarray:
    """Whether the elbow lies left of the line from base to wrist, thus above it where that points along x: bool (n,)."""
    return np.sin(angles[:, 1]) < 0


def reach_error(angles: np.ndarray, condition: np.ndarray) -> np.ndarray:
    """Distance of the end effector from the position asked for, in metres, (n,)."""
    return np.linalg.norm(forward_kinematics(angles)[:, :2] - condition[:, :2], axis=1)


def heading_error(angles: np.ndarray, condition: np.ndarray) -> np.ndarray:
    """Angle between the end effector's heading and the one asked for, in [0, π], (n,)."""
    asked = np.arctan2(condition[:, 3], condition[:, 2])
    return np.abs(wrap(forward_kinematics(angles)[:, 2] - asked))


def wrap(angles: np.ndarray) -> np.ndarray:
    """The same angles as float32 in (-π, π], whatever their shape."""
    turned = np.pi - np.mod(np.pi - np.asarray(angles, np.float64), 2 * np.pi)
    return np.clip(turned, -LARGEST_ANGLE, LARGEST_ANGLE).astype(np.float32)
