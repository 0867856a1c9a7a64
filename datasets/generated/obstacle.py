"""Chunks that pass an obstacle on its left or on its right: two good answers whose average is a collision.

A point in the plane goes from a start to a goal, and a round obstacle lies between them. Whoever regresses the mean of
such demonstrations drives right through the obstacle; whoever learns their distribution does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flowchunk.datasets.errors import ConfigurationError

CONDITION = ("start_x", "start_y", "goal_x", "goal_y", "obstacle_x", "obstacle_y", "radius")
MIN_HORIZON = 8  # with fewer points, the straight lines between them would cut the obstacle

RADIUS = (0.08, 0.14)  # metres
CLEARANCE = (0.03, 0.06)  # metres between the obstacle and the chunk, where it passes
WIGGLE = 0.01  # metres
HASTE = 0.25  # by how much of the mean speed the speed rises and falls on the way


@dataclass(frozen=True)
class ObstacleChunks:
    """condition: (n, 7), columns as in ``CONDITION``; chunks: (n, H, 2) positions from start to goal. Both in metres."""

    condition: np.ndarray
    chunks: np.ndarray


def draw_obstacle(n: int, rng: np.random.Generator, *, horizon: int = 16) -> ObstacleChunks:
    """n scenes, each with one chunk that passes on the left or on the right with equal probability, float32.

    Raises ConfigurationError where the horizon is shorter than ``MIN_HORIZON``.
    """
    condition = draw_scenes(n, rng)
    return ObstacleChunks(condition, draw_chunks(condition, rng.random(n) < 0.5, rng, horizon=horizon))


def draw_scenes(n: int, rng: np.random.Generator) -> np.ndarray:
    """Starts on the left of the plane, goals on its right, obstacles about half way: float32 (n, 7), in metres."""
    start = rng.uniform((-0.6, -0.2), (-0.4, 0.2), (n, 2))
    goal = rng.uniform((0.4, -0.2), (0.6, 0.2), (n, 2))
    radius = rng.uniform(*RADIUS, (n, 1))
    along, left = _axes(start, goal)
    distance = np.linalg.norm(goal - start, axis=1, keepdims=True)
    off_line = rng.uniform(-0.3, 0.3, (n, 1)) * radius  # the straight line always meets the obstacle
    obstacle = start + rng.uniform(0.4, 0.6, (n, 1)) * distance * along + off_line * left
    return np.concatenate([start, goal, obstacle, radius], axis=1).astype(np.float32)


def draw_chunks(
    condition: np.ndarray, pass_left: np.ndarray, rng: np.random.Generator, *, horizon: int = 16
) -> np.ndarray:
    """One chunk for each scene (n, 7), on the left where ``pass_left`` (n,) says so: float32 (n, H, 2), in metres.

    Chunks differ in how far they keep from the obstacle, in their speed on the way and in a slight wiggle. Raises
    ConfigurationError where the horizon is shorter than ``MIN_HORIZON``.
    """
    if horizon < MIN_HORIZON:
        raise ConfigurationError(f"chunks past an obstacle need a horizon of at least {MIN_HORIZON}, not {horizon}")
    n = len(condition)
    start, goal, obstacle, radius = _parts(condition)
    along, left = _axes(start, goal)
    distance = np.linalg.norm(goal - start, axis=1, keepdims=True)
    fraction = np.sum((obstacle - start) * along, axis=1, keepdims=True) / distance  # (n, 1): how far the obstacle is
    off_line = np.sum((obstacle - start) * left, axis=1, keepdims=True)
    side = np.where(pass_left, 1.0, -1.0)[:, None]

    time = np.linspace(0, 1, horizon)
    way = time + rng.uniform(-HASTE, HASTE, (n, 1)) * np.sin(2 * np.pi * time) / (2 * np.pi)  # (n, H), 0 to 1
    bulge = np.sin(np.pi / 2 * np.minimum(way / fraction, (1 - way) / (1 - fraction)))  # 1 beside the obstacle
    beside = off_line + side * (radius + rng.uniform(*CLEARANCE, (n, 1)))
    wiggle = rng.uniform(-WIGGLE, WIGGLE, (n, 1)) * np.sin(2 * np.pi * way)
    sideways = beside * bulge + wiggle
    chunks = start[:, None] + (way * distance)[..., None] * along[:, None] + sideways[..., None] * left[:, None]
    return chunks.astype(np.float32)


def passed_left(condition: np.ndarray, chunks: np.ndarray) -> np.ndarray:
    """Whether each chunk (n, H, 2) keeps, on average, to the left of the straight line from start to goal: bool (n,)."""
    start, goal, _, _ = _parts(condition)
    _, left = _axes(start, goal)
    return np.einsum("nhd,nd->n", chunks - start[:, None], left) > 0


def collides(condition: np.ndarray, chunks: np.ndarray) -> np.ndarray:
    """Whether each chunk (n, H, 2), or a straight line between two of its points, enters its obstacle: bool (n,)."""
    _, _, obstacle, radius = _parts(condition)
    steps = np.diff(chunks.astype(np.float64), axis=1)  # (n, H - 1, 2)
    to_obstacle = obstacle[:, None] - chunks[:, :-1]
    squared = np.maximum(np.sum(steps**2, axis=-1), np.finfo(np.float64).tiny)  # who stands still has no direction
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
