"""Holding still: what it is for each kind of action, and that it keeps the tasks of the package where they are."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from flowchunk.datasets.errors import RobotError, SimulationError
from flowchunk.datasets.rotations import REPRESENTATIONS, convert_rotation, representation_size
from flowchunk.datasets.specs import ActionDimension, ActionSpec
from flowchunk.envs.robots.holding import holding_action
from flowchunk.envs.tasks.pick_place_expert import PickPlaceExpert


def spec_of(*dimensions: ActionDimension) -> ActionSpec:
    return ActionSpec(dimensions, control_hz=50)


def absolute(unit: str, *, low: float | None = None, high: float | None = None) -> ActionSpec:
    return spec_of(ActionDimension("joint", unit, "joint", low=low, high=high))


@pytest.mark.parametrize("unit", ["rad", "m", "deg", "px", "1", "unknown"])
def test_a_position_is_held_where_it_is_measured(unit: str) -> None:
    held = holding_action(absolute(unit), measured=np.array([0.3]), last=np.array([0.7]))
    assert held.tolist() == [0.3]


@pytest.mark.parametrize("measured", [None, np.array([np.nan])])
def test_a_position_that_is_not_measured_stays_at_the_last_command(measured: np.ndarray | None) -> None:
    assert holding_action(absolute("rad"), measured=measured, last=np.array([0.7])).tolist() == [0.7]


@pytest.mark.parametrize("last", [None, np.array([np.inf])])
def test_an_unknown_position_is_an_error_that_names_it(last: np.ndarray | None) -> None:
    with pytest.raises(RobotError, match=r"cannot hold 'joint' \(rad\).*let the robot measure it"):
        holding_action(absolute("rad"), measured=None, last=last)


@pytest.mark.parametrize("unit", ["rad/s", "m/s", "px/s", "N", "N·m", "Nm", "N*m"])
def test_speeds_forces_and_torques_are_zero(unit: str) -> None:
    assert holding_action(absolute(unit), measured=np.array([3.0]), last=np.array([2.0])).tolist() == [0.0]
    assert holding_action(absolute(unit), measured=None, last=None).tolist() == [0.0]


@pytest.mark.parametrize("reference", ["delta", "relative"])
def test_steps_are_zero(reference: Any) -> None:
    spec = spec_of(ActionDimension("x", "m", "world", reference))
    assert holding_action(spec, measured=np.array([3.0]), last=np.array([2.0])).tolist() == [0.0]


@pytest.mark.parametrize("representation", [*REPRESENTATIONS, "euler_ZYX"])
def test_a_step_that_does_not_turn_is_the_identity(representation: str) -> None:
    """Of two arms, with their numbers in a row."""
    size = representation_size(representation)
    turns = [ActionDimension(f"turn_{index}", "1", "tool", "delta", representation) for index in range(2 * size)]
    spec = spec_of(ActionDimension("x", "m", "tool", "delta"), *turns)
    held = holding_action(spec, measured=None, last=None)
    assert held[0] == 0
    shape = (2, 3, 3) if representation == "matrix" else (2, size)
    turned = convert_rotation(held[1:].reshape(shape), representation, "axis_angle")
    np.testing.assert_allclose(turned, 0, atol=1e-12)


def test_absolute_rotations_stay_as_they_are_measured() -> None:
    rotation = np.array([0.6, 0.8, 0.0, -0.8, 0.6, 0.0])
    spec = spec_of(*(ActionDimension(f"r{index}", "1", "world", rotation="rotation_6d") for index in range(6)))
    np.testing.assert_array_equal(holding_action(spec, measured=rotation, last=np.zeros(6)), rotation)


def test_kinds_are_told_apart_within_one_action() -> None:
    units = ("rad", "rad/s", "N", "m")
    spec = spec_of(*(ActionDimension(str(index), unit, "joint") for index, unit in enumerate(units)))
    held = holding_action(spec, measured=np.array([1.0, 2, 3, np.nan]), last=np.array([5.0, 6, 7, 8]))
    assert held.tolist() == [1, 0, 0, 8]


def test_a_measurement_beyond_the_bounds_is_held_at_the_bound() -> None:
    spec = absolute("rad", low=-1, high=1)
    assert holding_action(spec, measured=np.array([1.01]), last=None).tolist() == [1]
    assert holding_action(spec, measured=np.array([-1.01]), last=None).tolist() == [-1]


@pytest.mark.parametrize("name", ["measured", "last"])
def test_a_wrong_number_of_values_is_an_error(name: str) -> None:
    given: dict[str, Any] = {"measured": np.zeros(1), "last": np.zeros(1), name: np.zeros(2)}
    with pytest.raises(RobotError, match=rf"{name}: expected 1 numbers.*'joint'.*got shape \(2,\)"):
        holding_action(absolute("rad"), **given)


# -- in the tasks ---------------------------------------------------------------------------------------------------------


def make(env_id: str, **options: Any) -> Any:
    """A task that has moved for a while, towards a random place, and is held from now on."""
    try:
        env: Any = gymnasium.make(f"flowchunk.envs:{env_id}", disable_env_checker=True, **options).unwrapped
    except SimulationError as error:
        pytest.skip(str(error))
    env.reset(seed=1)
    env.action_space.seed(3)
    held = env.hold_action()
    for _ in range(4):  # a part of the way from where it is, so that poses remain reachable
        env.step(held + 0.15 * (env.action_space.sample() - held))
    return env


def positions(env: Any) -> np.ndarray:
    """What must not move: the agent, px, or the arm, rad."""
    return np.asarray(env.joint_positions() if hasattr(env, "joint_positions") else env.hold_action())


@pytest.mark.parametrize(
    ("env_id", "options", "tolerance"),
    [
        ("flowchunk/PushT-v1", {"observation": "state"}, 1.0),
        ("flowchunk/PushT-v1", {"observation": "keypoints", "physics_step": 0.005}, 1.0),
        ("flowchunk/PushTOriginal-v1", {}, 1.0),
        ("flowchunk/PickPlace-v1", {"action": "joint_position"}, 0.01),
        ("flowchunk/PickPlace-v1", {"action": "end_effector_pose"}, 0.01),
    ],
    ids=str,
)
def test_a_task_stays_where_it_is_held(env_id: str, options: dict[str, Any], tolerance: float) -> None:
    env = make(env_id, **options)
    moving = positions(env)
    hold = env.hold_action()
    assert hold.shape == (env.action_spec.size,)
    for dimension, value in zip(env.action_spec.dimensions, hold, strict=True):
        assert dimension.low <= value <= dimension.high
    for _ in range(30):
        env.step(hold)
    stopped = positions(env)
    assert np.abs(stopped - moving).max() < 25 * tolerance, "it stops near the place where it was held"
    for _ in range(50):
        env.step(env.hold_action())  # computed anew each time, it does not creep
    np.testing.assert_allclose(positions(env), stopped, atol=tolerance)
    env.close()


def test_a_cube_stays_in_the_hand_while_the_arm_is_held() -> None:
    env: Any = gymnasium.make("flowchunk.envs:flowchunk/PickPlace-v1", disable_env_checker=True).unwrapped
    env.reset(seed=0)
    expert = PickPlaceExpert(np.random.default_rng(0))
    expert.reset(env)
    while not (env.is_grasped() and env.cube_position()[2] > 0.08):
        env.step(expert.act(env))
    hold, height = env.hold_action(), env.cube_position()[2]
    for _ in range(60):
        env.step(hold)
    assert env.is_grasped()
    assert abs(env.cube_position()[2] - height) < 0.02
    env.close()
