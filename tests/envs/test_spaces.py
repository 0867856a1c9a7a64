"""Spaces that follow from specifications, actions checked against them, and outcomes that never get worse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box

from flowchunk.datasets.errors import ConfigurationError, SimulationError
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from flowchunk.envs.arguments import require_one_of
from flowchunk.envs.episode_outcome import EpisodeOutcome
from flowchunk.envs.spaces import action_space, checked_action, observation_space

OBSERVATIONS = ObservationSpec(
    {
        "pose": ObservationField((3,), ("x", "y", "theta"), ("m", "m", "rad"), wraps=(2,)),
        "image": ObservationField((4, 6, 3), camera="front"),
    }
)
ACTIONS = ActionSpec(
    (ActionDimension("x", "m", "world", low=-1.0, high=0.5), ActionDimension("grip", "m", "gripper")), control_hz=10.0
)


def test_the_observation_space_follows_from_the_specification() -> None:
    space = observation_space(OBSERVATIONS, low=-3.0, high=5.0)
    high = np.array([5.0, 5.0, 2 * math.pi], np.float32)
    assert space["pose"] == Box(np.array([-3.0, -3.0, 0.0], np.float32), high)
    assert space["image"] == Box(0, 255, (4, 6, 3), np.uint8)


def test_the_action_space_follows_from_the_specification() -> None:
    space = action_space(ACTIONS)
    np.testing.assert_array_equal(space.low, np.array([-1.0, -np.inf], np.float32))
    np.testing.assert_array_equal(space.high, np.array([0.5, np.inf], np.float32))


def test_a_checked_action_is_clipped_to_the_bounds() -> None:
    checked = checked_action([2, -7], ACTIONS, action_space(ACTIONS))
    np.testing.assert_array_equal(checked, [0.5, -7.0])
    assert checked.dtype == np.float64


@pytest.mark.parametrize("action", [None, "left", [1.0], [1.0, 2.0, 3.0], [[1.0, 2.0]], [1.0, np.nan], [np.inf, 0.0]])
def test_an_action_of_other_than_finite_numbers_is_refused(action: Any) -> None:
    with pytest.raises(SimulationError, match=r"action: expected 2 finite numbers \(x, grip\), got "):
        checked_action(action, ACTIONS, action_space(ACTIONS))


def test_an_unknown_choice_is_refused_with_the_valid_ones() -> None:
    require_one_of("observation", "state", ("state", "image"))
    with pytest.raises(ConfigurationError, match=r"observation: expected one of \['state', 'image'\], got 'pixels'"):
        require_one_of("observation", "pixels", ("state", "image"))


def test_an_outcome_never_gets_worse() -> None:
    outcome = EpisodeOutcome()
    assert outcome.as_info() == {"is_success": False, "score": 0.0}
    for score, is_success in ((np.float64(0.5), np.False_), (0.25, np.True_), (0.0, False)):
        outcome.update(float(score), is_success=bool(is_success))
    assert outcome.as_info() == {"is_success": True, "score": 0.5}
