"""The planar arm: forward and inverse kinematics are inverse to each other, and each pose has two solutions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.generated.arm_kinematics import (
    LINKS,
    elbow_is_up,
    forward_kinematics,
    heading_error,
    inverse_kinematics,
    position_error,
    sample_arm_poses,
    wrap,
)

N = 20_000


def test_known_poses() -> None:
    upper, fore, hand = LINKS
    angles = np.array([[0, 0, 0], [np.pi / 2, 0, 0], [0, np.pi / 2, 0], [np.pi, 0, np.pi / 2]])
    expected = [
        [upper + fore + hand, 0, 0],
        [0, upper + fore + hand, np.pi / 2],
        [upper, fore + hand, np.pi / 2],
        [-upper - fore, -hand, -np.pi / 2],
    ]
    np.testing.assert_allclose(forward_kinematics(angles), expected, atol=1e-6)


def test_sampled_poses_are_reached_with_either_elbow() -> None:
    data = sample_arm_poses(N, np.random.default_rng(0))
    assert data.condition.shape == (N, 4)
    assert data.angles.shape == (N, 3)
    assert data.condition.dtype == data.angles.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(data.condition[:, 2:], axis=1), 1, atol=1e-6)
    solutions = [inverse_kinematics(data.condition, np.full(N, up)) for up in (True, False)]
    for angles in (data.angles, *solutions):
        assert position_error(angles, data.condition).max() < 1e-5
        assert heading_error(angles, data.condition).max() < 1e-5
        assert angles.astype(np.float64).min() > -np.pi
        assert angles.astype(np.float64).max() <= np.pi
    up, down = solutions
    assert elbow_is_up(up).all()
    assert not elbow_is_up(down).any()
    assert np.abs(wrap(up - down)).max(axis=1).min() > 0.5  # two distinct solutions
    np.testing.assert_array_equal(data.angles, np.where(elbow_is_up(data.angles)[:, None], up, down))


def test_both_elbows_are_as_likely() -> None:
    data = sample_arm_poses(N, np.random.default_rng(0))
    assert elbow_is_up(data.angles).mean() == pytest.approx(0.5, abs=0.02)


@given(st.integers(0, 2**32 - 1))
def test_inverse_kinematics_gives_the_angles_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    angles = rng.uniform(-np.pi, np.pi, (100, 3))
    angles[:, 1] = rng.choice([-1, 1], 100) * rng.uniform(0.1, 3.0, 100)
    pose = forward_kinematics(angles)
    target = np.stack([pose[:, 0], pose[:, 1], np.cos(pose[:, 2]), np.sin(pose[:, 2])], axis=1)
    np.testing.assert_allclose(wrap(inverse_kinematics(target, elbow_is_up(angles)) - angles), 0, atol=1e-4)


def test_elbow_up_is_above_the_line_to_the_wrist() -> None:
    angles = inverse_kinematics(np.array([[0.6, 0.0, 1.0, 0.0]]), np.array([True]))
    assert LINKS[0] * np.sin(angles[0, 0]) > 0.1  # the wrist lies on the x axis, the elbow above it


def test_angles_near_the_wrap_are_common_and_close_poses_have_distant_angles_there() -> None:
    data = sample_arm_poses(N, np.random.default_rng(0))
    assert (np.abs(data.angles) > np.pi - 0.3).any(axis=1).mean() > 0.15
    up = np.full(N, True)
    turned = data.condition.copy()  # the whole pose, rotated by a degree about the base
    cosine, sine = np.cos(np.pi / 180), np.sin(np.pi / 180)
    turn = np.array([[cosine, sine], [-sine, cosine]], np.float32)
    turned[:, :2], turned[:, 2:] = data.condition[:, :2] @ turn, data.condition[:, 2:] @ turn
    step = inverse_kinematics(turned, up) - inverse_kinematics(data.condition, up)
    assert np.abs(wrap(step)).max() < 0.02
    assert (np.abs(step) > 6).any()


def test_whole_turns_change_nothing() -> None:
    data = sample_arm_poses(100, np.random.default_rng(0))
    turned = data.angles + 2 * np.pi * np.array([1, -2, 3])
    np.testing.assert_allclose(position_error(turned, data.condition), 0, atol=1e-5)
    np.testing.assert_allclose(heading_error(turned, data.condition), 0, atol=1e-5)
    np.testing.assert_array_equal(elbow_is_up(turned), elbow_is_up(data.angles))


def test_errors_are_measured() -> None:
    angles = np.zeros((1, 3))
    opposite = np.array([[sum(LINKS) - 0.3, 0.4, -1.0, 0.0]], np.float32)
    assert position_error(angles, opposite) == pytest.approx([0.5], abs=1e-6)
    assert heading_error(angles, opposite) == pytest.approx([np.pi], abs=1e-6)


@pytest.mark.parametrize(
    ("angle", "expected"), [(0, 0), (np.pi, np.pi), (-np.pi, np.pi), (7, 7 - 2 * np.pi), (-4, 2 * np.pi - 4)]
)
def test_wrapping(angle: float, expected: float) -> None:
    assert float(wrap(np.array(angle))) == pytest.approx(expected, abs=1e-6)


def test_a_seed_repeats() -> None:
    first, again, other = (sample_arm_poses(50, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.angles, again.angles)
    np.testing.assert_array_equal(first.condition, again.condition)
    assert not np.allclose(first.condition, other.condition)


def test_targets_out_of_reach_are_refused() -> None:
    targets = np.array([[0.5, 0.0, 1.0, 0.0], [2.0, 0.0, 1.0, 0.0], [0.15, 0.0, 1.0, 0.0]])
    with pytest.raises(
        ConfigurationError, match=r"2 of 3 targets .* at index 1: its wrist is 1\.850 m .* 0\.100 to 0\.700"
    ):
        inverse_kinematics(targets, np.full(3, True))
