"""Smoothness at chunk boundaries and elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest

from flowchunk.policy.execution.smoothness import smoothness


def test_a_straight_line_is_smooth_everywhere() -> None:
    found = smoothness(np.arange(10.0)[:, None], [4, 8], control_hz=10)
    assert found.velocity_jump_at_boundaries == found.velocity_jump_elsewhere == 0
    assert found.jerk_at_boundaries == found.jerk_elsewhere == 0
    assert found.num_boundaries == 2


def test_a_step_at_a_boundary_is_a_change_of_velocity_there() -> None:
    actions = np.array([0.0, 0, 0, 0, 1, 1, 1, 1])[:, None]
    found = smoothness(actions, [4], control_hz=10)
    assert found.velocity_jump_at_boundaries == pytest.approx(10)
    assert found.velocity_jump_elsewhere == pytest.approx(10 / 5)  # it stops again one step later
    assert found.jerk_at_boundaries == pytest.approx(1000)


def test_the_norm_is_taken_over_all_dimensions() -> None:
    actions = np.outer([0.0, 0, 0, 1, 2], [3.0, 4.0])
    assert smoothness(actions, [3], control_hz=1).velocity_jump_at_boundaries == pytest.approx(5)


def test_nothing_is_measured_across_the_start_of_an_episode() -> None:
    actions = np.array([0.0, 0, 0, 100, 100, 100, 100])[:, None]
    found = smoothness(actions, [], control_hz=10, starts=[0, 3])
    assert found.velocity_jump_elsewhere == 0
    assert found.jerk_elsewhere == 0
    assert math.isnan(found.velocity_jump_at_boundaries)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_too_few_actions_have_no_smoothness(steps: int) -> None:
    found = smoothness(np.zeros((steps, 2)), [], control_hz=10)
    assert math.isnan(found.velocity_jump_elsewhere)
