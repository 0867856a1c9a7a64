"""Toy distributions in the plane, on which generative models are commonly illustrated."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flowchunk.datasets.errors import ConfigurationError

Toy = Callable[[int, np.random.Generator], np.ndarray]


def eight_gaussians(n: int, rng: np.random.Generator) -> np.ndarray:
    """Eight round Gaussians of standard deviation 0.15 on a ring of radius 2, (n, 2)."""
    angle = rng.integers(8, size=n) * (np.pi / 4)
    return _points(2 * np.cos(angle), 2 * np.sin(angle), rng, noise=0.15)


def two_moons(n: int, rng: np.random.Generator) -> np.ndarray:
    """Two interleaved half circles of radius 1, centered on the origin, (n, 2)."""
    angle = rng.uniform(0, np.pi, n)
    side = rng.choice([-1.0, 1.0], n)  # the lower moon is the upper one, rotated by π about the origin
    return _points(side * (np.cos(angle) - 0.5), side * (np.sin(angle) - 0.25), rng, noise=0.05)


def checkerboard(n: int, rng: np.random.Generator) -> np.ndarray:
    """The dark squares, where the column and the row are both even or both odd, of a 4x4 board on [-2, 2]², (n, 2)."""
    column = rng.integers(4, size=n)
    row = 2 * rng.integers(2, size=n) + column % 2
    within = rng.random((n, 2), dtype=np.float32)
    return np.stack([column, row], axis=1).astype(np.float32) - 2 + within


def spiral(n: int, rng: np.random.Generator) -> np.ndarray:
    """One arm of a spiral, one and a half turns up to radius 2, with roughly uniform density along the arm, (n, 2)."""
    angle = 3 * np.pi * np.sqrt(rng.random(n))  # an outer turn is longer
    radius = 2 * angle / (3 * np.pi)
    return _points(radius * np.cos(angle), radius * np.sin(angle), rng, noise=0.05)


TOYS: dict[str, Toy] = {
    "8gaussians": eight_gaussians,
    "two_moons": two_moons,
    "checkerboard": checkerboard,
    "spiral": spiral,
}


def sample_toy(name: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """n points of the named toy distribution, float32 (n, 2). Raises ConfigurationError for a name not in ``TOYS``."""
    if name not in TOYS:
        raise ConfigurationError(f"unknown toy distribution {name!r}; choose one of {', '.join(sorted(TOYS))}")
    return TOYS[name](n, rng)


def _points(x: np.ndarray, y: np.ndarray, rng: np.random.Generator, *, noise: float) -> np.ndarray:
    centers = np.stack([x, y], axis=1)
    return (centers + noise * rng.standard_normal(centers.shape)).astype(np.float32)
