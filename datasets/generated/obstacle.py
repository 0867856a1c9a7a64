"""Chunks that pass an obstacle on its left or on its right: two valid modes whose average is a collision.

A point in the plane moves from a start to a goal, and a round obstacle lies between them. A model that regresses the mean of
such demonstrations drives straight into the obstacle; a model of their distribution does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.shape_repr import shape_repr

CONDITION = ("start_x", "start_y", "goal_x", "goal_y", "obstacle_x", "obstacle_y", "radius")
MIN_HORIZON = 8  # with fewer points, the straight lines between them would cut the obstacle

RADIUS = (0.08, 0.14)  # meters
CLEARANCE = (0.03, 0.06)  # meters between the obstacle and the chunk where it passes
WIGGLE = 0.01  # meters
SPEED_VARIATION = 0.25  # relative to the mean speed


@dataclass(frozen=True)
class ObstacleChunks:
    """condition: (n, 7), columns as in ``CONDITION``; chunks: (n, H, 2) positions from start to goal. Both in meters."""

    condition: np.ndarray
    chunks: np.ndarray

    __repr__ = shape_repr


def sample_obstacle_chunks(n: int, rng: np.random.Generator, *, horizon: int = 16) -> ObstacleChunks:
    """n scenes, each with one chunk that passes on the left or on the right with equal probability, float32.

    Raises ConfigurationError if the horizon is shorter than ``MIN_HORIZON``.
    """
    condition = sample_scenes(n, rng)
    return ObstacleChunks(condition, sample_chunks(condition, rng.random(n) < 0.5, rng, horizon=horizon))


def sample_scenes(n: int, rng: np.random.Generator) -> np.ndarray:
    """Starts in the left of the plane, goals in its right, obstacles about halfway: float32 (n, 7), in meters."""
    start = rng.uniform((-0.6, -0.2), (-0.4, 0.2), (n, 2))
    goal = rng.uniform((0.4, -0.2), (0.6, 0.2), (n, 2))
    radius = rng.uniform(*RADIUS, (n, 1))
    along, left = _axes(start, goal)
    distance = np.linalg.norm(goal - start, axis=1, keepdims=True)
    off_line = rng.uniform(-0.3, 0.3, (n, 1)) * radius  # the straight line always intersects the obstacle
    obstacle = start + rng.uniform(0.4, 0.6, (n, 1)) * distance * along + off_line * left
    return np.concatenate([start, goal, obstacle, radius], axis=1).astype(np.float32)


def sample_chunks(
    condition: np.ndarray, pass_left: np.ndarray, rng: np.random.Generator, *, horizon: int = 16
) -> np.ndarray:
    """One chunk for each scene (n, 7), on the left if ``pass_left`` (n,): float32 (n, H, 2), in meters.

    Chunks differ in their clearance from the obstacle, in their speed profile and in a slight wiggle. Raises
    ConfigurationError if the horizon is shorter than ``MIN_HORIZON``.
    """
    if horizon < MIN_HORIZON:
        raise ConfigurationError(f"chunks past an obstacle need a horizon of at least {MIN_HORIZON}, not {horizon}")
    n = len(condition)
    start, goal, obstacle, radius = _parts(condition)
    along, left = _axes(start, goal)
    distance = np.linalg.norm(goal - start, axis=1, keepdims=True)
    fraction = np.sum((obstacle - start) * along, axis=1, keepdims=True) / distance  # (n, 1): the obstacle's position
    off_line = np.sum((obstacle - start) * left, axis=1, keepdims=True)
    side = np.where(pass_left, 1.0, -1.0)[:, None]

    time = np.linspace(0, 1, horizon)
    variation = rng.uniform(-SPEED_VARIATION, SPEED_VARIATION, (n, 1))
    progress = time + variation * np.sin(2 * np.pi * time) / (2 * np.pi)  # (n, H), 0 to 1
    nearness = np.minimum(progress / fraction, (1 - progress) / (1 - fraction))  # 1 beside the obstacle
    bulge = np.sin(np.pi / 2 * nearness)
    beside = off_line + side * (radius + rng.uniform(*CLEARANCE, (n, 1)))
    wiggle = rng.uniform(-WIGGLE, WIGGLE, (n, 1)) * np.sin(2 * np.pi * progress)
    sideways = beside * bulge + wiggle
    chunks = start[:, None] + (progress * distance)[..., None] * along[:, None] + sideways[..., None] * left[:, None]
    return chunks.astype(np.float32)


def passed_left(condition: np.ndarray, chunks: np.ndarray) -> np.ndarray:
    """Whether each chunk (n, H, 2) is, on average, to the left of the straight line from start to goal: bool (n,)."""
    start, goal, _, _ = _parts(condition)
    _, left = _axes(start, goal)
    return np.einsum("nhd,nd->n", chunks - start[:, None], left) > 0


def collides(condition: np.ndarray, chunks: np.ndarray) -> np.ndarray:
    """Whether each chunk (n, H, 2), with its points connected by straight lines, enters its obstacle: bool (n,)."""
    _, _, obstacle, radius = _parts(condition)
    steps = np.diff(chunks.astype(np.float64), axis=1)  # (n, H - 1, 2)
    to_obstacle = obstacle[:, None] - chunks[:, :-1]
    squared = np.maximum(np.sum(steps**2, axis=-1), np.finfo(np.float64).tiny)  # not 0 if the point rests
    nearest = np.clip(np.sum(to_obstacle * steps, axis=-1) / squared, 0, 1)  # along each step
    distance = np.linalg.norm(to_obstacle - nearest[..., None] * steps, axis=-1)
    return (distance < radius).any(axis=1)


def _parts(condition: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Start (n, 2), goal (n, 2), obstacle (n, 2) and radius (n, 1)."""
    start, goal, obstacle, radius = np.split(condition.astype(np.float64), [2, 4, 6], axis=1)
    return start, goal, obstacle, radius


def _axes(start: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors from start to goal and to the left of it, (n, 2) each."""
    along = (goal - start) / np.linalg.norm(goal - start, axis=1, keepdims=True)
    return along, np.stack([-along[:, 1], along[:, 0]], axis=1)
