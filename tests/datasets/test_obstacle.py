"""Chunks past an obstacle: the data never collide, both sides occur, and their average collides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.generated.obstacle import (
    MIN_HORIZON,
    collides,
    passed_left,
    sample_chunks,
    sample_obstacle_chunks,
    sample_scenes,
)

N = 5000
SCENE = np.array([[-0.5, 0.0, 0.5, 0.0, 0.0, 0.0, 0.1]], np.float32)  # along x, the obstacle at the origin


def sample_both_sides(horizon: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    scenes = sample_scenes(N, rng)
    left, right = (sample_chunks(scenes, np.full(N, side), rng, horizon=horizon) for side in (True, False))
    return scenes, left, right


def test_shapes_and_ends() -> None:
    data = sample_obstacle_chunks(N, np.random.default_rng(0))
    assert data.condition.shape == (N, 7)
    assert data.chunks.shape == (N, 16, 2)
    assert data.condition.dtype == data.chunks.dtype == np.float32
    np.testing.assert_allclose(data.chunks[:, 0], data.condition[:, :2], atol=1e-6)
    np.testing.assert_allclose(data.chunks[:, -1], data.condition[:, 2:4], atol=1e-6)


def test_each_side_is_as_likely() -> None:
    data = sample_obstacle_chunks(N, np.random.default_rng(0))
    assert passed_left(data.condition, data.chunks).mean() == pytest.approx(0.5, abs=0.03)


@given(st.integers(0, 2**32 - 1), st.integers(MIN_HORIZON, 40))
def test_data_never_collide_and_a_seed_repeats_them(seed: int, horizon: int) -> None:
    data = sample_obstacle_chunks(200, np.random.default_rng(seed), horizon=horizon)
    assert not collides(data.condition, data.chunks).any()
    again = sample_obstacle_chunks(200, np.random.default_rng(seed), horizon=horizon)
    np.testing.assert_array_equal(data.condition, again.condition)
    np.testing.assert_array_equal(data.chunks, again.chunks)


@pytest.mark.parametrize("horizon", [MIN_HORIZON, 16])
def test_the_average_of_left_and_right_collides(horizon: int) -> None:
    scenes, left, right = sample_both_sides(horizon)
    assert passed_left(scenes, left).all()
    assert not passed_left(scenes, right).any()
    assert not (collides(scenes, left) | collides(scenes, right)).any()
    assert collides(scenes, (left + right) / 2).all()


def test_the_straight_line_collides() -> None:
    scenes = sample_scenes(N, np.random.default_rng(0))
    line = np.linspace(scenes[:, :2], scenes[:, 2:4], 16, axis=1)
    assert collides(scenes, line).all()


def test_chunks_of_one_scene_and_side_vary_a_little() -> None:
    chunks = sample_chunks(np.repeat(SCENE, 500, axis=0), np.ones(500, bool), np.random.default_rng(0))
    spread = chunks.std(axis=0)[1:-1]
    assert (spread > 1e-3).all()
    assert (spread < 0.05).all()


def test_collisions_between_points_are_detected() -> None:
    jump = np.array([[[-0.5, 0.0], [-0.2, 0.05], [0.2, 0.05], [0.5, 0.0]]], np.float32)  # all points are outside
    assert collides(SCENE, jump).tolist() == [True]
    assert collides(SCENE, jump * (1, 3)).tolist() == [False]


def test_standing_still_inside_is_a_collision() -> None:
    assert collides(SCENE, np.zeros((1, 4, 2), np.float32)).tolist() == [True]
    assert collides(SCENE, np.full((1, 4, 2), 0.3, np.float32)).tolist() == [False]


def test_left_is_relative_to_the_direction_of_motion() -> None:
    chunk = sample_chunks(SCENE, np.array([True]), np.random.default_rng(0))
    assert (chunk[0, 1:-1, 1] > 0).all()
    back = np.concatenate([SCENE[:, 2:4], SCENE[:, :2], SCENE[:, 4:]], axis=1)
    assert passed_left(SCENE, chunk).tolist() == [True]
    assert passed_left(back, chunk[:, ::-1]).tolist() == [False]


def test_too_short_a_horizon_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=f"at least {MIN_HORIZON}, not 4"):
        sample_obstacle_chunks(3, np.random.default_rng(0), horizon=4)
