"""Toy distributions: where their points lie, and that a seed repeats them."""

from __future__ import annotations

import numpy as np
import pytest

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.generated.toys import TOYS, sample_toy

N = 20_000
each_toy = pytest.mark.parametrize("name", sorted(TOYS))


def points(name: str, seed: int = 0) -> np.ndarray:
    return sample_toy(name, N, np.random.default_rng(seed))


@each_toy
def test_shape_type_and_scale(name: str) -> None:
    samples = points(name)
    assert samples.shape == (N, 2)
    assert samples.dtype == np.float32
    assert np.isfinite(samples).all()
    assert 0.4 < samples.std() < 1.6
    assert sample_toy(name, 1, np.random.default_rng(0)).shape == (1, 2)


@each_toy
def test_a_seed_repeats_and_another_differs(name: str) -> None:
    np.testing.assert_array_equal(points(name), points(name))
    assert not np.allclose(points(name), points(name, seed=1))


@pytest.mark.parametrize("name", sorted(set(TOYS) - {"spiral"}))
def test_they_are_centered(name: str) -> None:
    np.testing.assert_allclose(points(name).mean(axis=0), 0, atol=0.05)


def test_eight_gaussians_on_a_ring() -> None:
    samples = points("8gaussians")
    angle = np.arange(8) * np.pi / 4
    centers = 2 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    apart = samples[:, None] - centers
    nearest = np.linalg.norm(apart, axis=2).argmin(axis=1)
    assert apart[np.arange(N), nearest].std() == pytest.approx(0.15, rel=0.02)
    np.testing.assert_allclose(np.bincount(nearest) / N, 1 / 8, atol=0.01)


def test_moons_are_half_circles_that_do_not_touch() -> None:
    samples = points("two_moons")
    off_upper = np.abs(np.linalg.norm(samples - (-0.5, -0.25), axis=1) - 1) + 9.0 * (samples[:, 1] < -0.25 - 0.25)
    off_lower = np.abs(np.linalg.norm(samples - (0.5, 0.25), axis=1) - 1) + 9.0 * (samples[:, 1] > 0.25 + 0.25)
    assert np.minimum(off_upper, off_lower).max() < 0.25
    assert (off_upper < off_lower).mean() == pytest.approx(0.5, abs=0.02)


def test_checkerboard_fills_every_second_square_evenly() -> None:
    samples = points("checkerboard")
    assert samples.min() >= -2
    assert samples.max() <= 2
    column, row = np.floor(samples).astype(int).T
    assert ((column + row) % 2 == 0).all()
    counts = np.unique(np.stack([column, row]), axis=1, return_counts=True)[1]
    np.testing.assert_allclose(counts / N, 1 / 8, atol=0.01)


def test_the_spiral_winds_outward() -> None:
    samples = points("spiral")
    radius = np.linalg.norm(samples, axis=1)
    angle = np.arctan2(samples[:, 1], samples[:, 0])
    turns = (radius * 3 * np.pi / 2 - angle) / (2 * np.pi)
    far = radius > 0.3  # near the center, noise changes the angle a lot
    assert np.abs(turns - np.rint(turns))[far].max() < 0.3
    assert radius.max() < 2.3


def test_an_unknown_toy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"unknown toy distribution 'moons'; choose one of 8gaussians, checkerboard, spiral, two_",
    ):
        sample_toy("moons", 3, np.random.default_rng(0))
