"""Specs match by name, in any order; whatever differs in meaning is refused with both sides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowchunk.datasets.errors import RobotError, SpecMismatchError
from flowchunk.datasets.specs import ActionSpec, ObservationField, ObservationSpec
from flowchunk.envs.robots.matching import SpecMatch
from flowchunk.envs.robots.robot import Reading, Robot
from tests.envs.robots.fake_robots import JOINTS, Arm, arm_actions, arm_field, image_field

POLICY = ObservationSpec({"joints": arm_field()})


def observed(**fields: ObservationField) -> ObservationSpec:
    return ObservationSpec(fields)


def match(policy: ObservationSpec = POLICY, actions: ActionSpec | None = None, **robot: Any) -> SpecMatch:
    return SpecMatch.of(policy, actions or arm_actions(), Arm(**robot))


def reading(**values: Any) -> Reading:
    return Reading({key: np.asarray(value) for key, value in values.items()}, dict.fromkeys(values, 0.0))


def test_the_test_robot_is_a_robot() -> None:
    assert isinstance(Arm(), Robot)


# -- the same motion, whatever the order -------------------------------------------------------------------------------------


@given(
    st.permutations(range(5)),
    st.permutations(range(5)),
    st.lists(st.booleans(), min_size=5, max_size=5),
    st.lists(st.floats(-1, 1, width=32), min_size=5, max_size=5),
)
def test_any_order_of_joints_gives_the_same_motion(
    measured_order: list[int], commanded_order: list[int], in_first: list[bool], positions: list[float]
) -> None:
    """A policy that commands what it observes moves no joint, however the robot orders them and splits its sensors."""
    names = tuple(f"joint_{index}" for index in range(5))
    position_of = dict(zip(names, positions, strict=True))
    fields, values = {}, {}
    for key, wanted in (("a", True), ("b", False)):
        held = tuple(names[index] for index in measured_order if in_first[index] is wanted)
        fields[key], values[key] = arm_field(held), np.array([position_of[name] for name in held])
    robot = Arm(observed(**fields), arm_actions(tuple(names[index] for index in commanded_order)))
    found = SpecMatch.of(observed(state=arm_field(names)), arm_actions(names), robot)
    observation = found.observation(Reading(values, {"a": 0.0, "b": 0.0}))["state"]
    np.testing.assert_array_equal(observation, np.array(positions, np.float32))
    command = found.action(observation)
    assert dict(zip(robot.action_spec.names, command, strict=True)) == position_of
    np.testing.assert_array_equal(found.policy_action(command), observation)


def test_the_inverse_is_one_where_an_order_is_not_its_own() -> None:
    found = match(action_spec=arm_actions(("wrist", "shoulder", "elbow")))
    assert found.action(np.array([1.0, 2.0, 3.0])).tolist() == [3, 1, 2]
    assert found.policy_action(np.array([3.0, 1.0, 2.0])).tolist() == [1, 2, 3]
    chunk = np.arange(12.0).reshape(4, 3)
    np.testing.assert_array_equal(found.policy_action(found.action(chunk)), chunk)


def test_the_key_with_the_same_names_comes_first() -> None:
    """Where another sensor measures the same joints, it is not ambiguous."""
    robot = observed(joints=arm_field(JOINTS[::-1]), other=arm_field())
    found = match(observation_spec=robot)
    assert found.observation(reading(joints=[3, 2, 1], other=[7, 8, 9]))["joints"].tolist() == [1, 2, 3]


def test_observations_come_in_the_policys_order_and_types() -> None:
    policy = observed(a=image_field("front"), points=ObservationField((2, 2), ("p", "q", "r", "s")), b=arm_field())
    robot = observed(
        b=arm_field(),
        unused=arm_field(("other",)),
        v=ObservationField((4,), ("s", "r", "q", "p")),
        a=image_field("front"),
    )
    image = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    found = match(policy, observation_spec=robot).observation(reading(v=[4, 3, 2, 1], a=image, b=[0.5, 1, 2]))
    assert list(found) == ["a", "points", "b"]
    np.testing.assert_array_equal(found["a"], image)
    np.testing.assert_array_equal(found["points"], [[1, 2], [3, 4]])
    assert [values.dtype for values in found.values()] == [np.uint8, np.float32, np.float32]


def test_values_without_names_match_by_key_and_shape() -> None:
    grid = observed(grid=ObservationField((2, 3)))
    found = match(grid, observation_spec=grid)
    np.testing.assert_array_equal(
        found.observation(reading(grid=np.arange(6).reshape(2, 3)))["grid"], [[0, 1, 2], [3, 4, 5]]
    )
    for other in (observed(grid=ObservationField((3, 2))), observed(other=ObservationField((2, 3)))):
        with pytest.raises(SpecMismatchError, match=r"'grid' of shape \(2, 3\), whose numbers have no names.*arm:test"):
            match(grid, observation_spec=other)
    with pytest.raises(SpecMismatchError, match=r"number 0: the policy expects the unit None, but 'grid' .* has 'm'"):
        match(grid, observation_spec=observed(grid=ObservationField((2, 3), units=("m",) * 6)))


# -- what differs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("robot", "message"),
    [
        (
            observed(joints=arm_field(("shoulder", "elbow"))),
            r"'joints': the policy expects \['wrist'\].*arm:test.*'elbow'",
        ),
        (
            observed(joints=arm_field(unit="deg")),
            r"'joints', shoulder: .*unit 'rad', but 'joints' .*arm:test has 'deg'",
        ),
        (observed(joints=ObservationField((3,), JOINTS)), r"unit 'rad', but 'joints' .* has None"),
        (observed(joints=replace(arm_field(), wraps=(1,))), r"elbow: only the robot arm:test has it in wraps"),
        (observed(a=arm_field(), b=arm_field()), r"several places: \{'shoulder': \['a', 'b'\]"),
        (observed(joints=image_field("front")), r"the policy expects \['shoulder', 'elbow', 'wrist'\]"),
    ],
)
def test_observations_of_another_meaning_are_refused(robot: ObservationSpec, message: str) -> None:
    with pytest.raises(SpecMismatchError, match=message):
        match(observation_spec=robot)


def test_wraps_must_be_on_both_sides() -> None:
    wrapped = observed(joints=replace(arm_field(), wraps=(2,)))
    with pytest.raises(SpecMismatchError, match="wrist: only the policy has it in wraps"):
        match(wrapped)
    reordered = observed(joints=replace(arm_field(JOINTS[::-1]), wraps=(0,)))
    assert match(wrapped, observation_spec=reordered).observation(reading(joints=[3, 2, 1]))["joints"].tolist() == [
        1,
        2,
        3,
    ]


def test_equal_names_of_the_policy_are_refused() -> None:
    twice = observed(joints=arm_field(("a", "a", "b")))
    with pytest.raises(SpecMismatchError, match=r"of the policy has the names .* some are equal"):
        match(twice, observation_spec=twice)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit": "deg"}, "'elbow': the policy has unit='rad', but the robot arm:test has unit='deg'"),
        ({"coordinate_frame": "world"}, "coordinate_frame='joint', but .* coordinate_frame='world'"),
        ({"reference": "delta"}, "reference='absolute', but .* reference='delta'"),
        ({"rotation": "euler_xyz"}, "rotation=None, but .* rotation='euler_xyz'"),
        (
            {"low": 2.0, "high": 3.0},
            r"bounds are -1.0 to 1.0, but those of the robot arm:test 2.0 to 3.0, without overlap",
        ),
        ({"name": "knee"}, r"the policy commands \['elbow'\], but the robot arm:test only has"),
        ({"name": "wrist"}, r"the actions of the robot arm:test have the names .* some are equal"),
    ],
)
def test_actions_of_another_meaning_are_refused(changes: dict[str, Any], message: str) -> None:
    first, second, third = arm_actions().dimensions
    with pytest.raises(SpecMismatchError, match=message):
        match(action_spec=ActionSpec((first, replace(second, **changes), third), 50))


def test_a_robot_with_more_joints_than_the_policy_commands_is_refused() -> None:
    with pytest.raises(SpecMismatchError, match=r"arm:test needs commands for \['gripper'\].*only gives \['shoulder'"):
        match(action_spec=arm_actions((*JOINTS, "gripper")))
    with pytest.raises(SpecMismatchError, match="the actions of the policy have the names"):
        match(actions=arm_actions(("a", "a")))


def test_bounds_are_the_narrower_of_both_and_the_rate_is_free() -> None:
    a, b, c = (arm_actions((name,)).dimensions[0] for name in JOINTS)
    policy = ActionSpec((replace(a, low=-0.5, high=3.0), replace(b, low=None, high=None), c), 10)
    robot = ActionSpec((replace(c, low=None, high=0.25), replace(b, low=None, high=None), a), 500)
    found = match(actions=policy, action_spec=robot)
    assert found.low.tolist() == [-1, -np.inf, -0.5]
    assert found.high.tolist() == [0.25, np.inf, 1]


@pytest.mark.parametrize("shape", [(), (2,), (4, 2)])
def test_actions_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(SpecMismatchError, match=r"an action of the policy: expected 3 numbers, got shape"):
        match().action(np.zeros(shape))
    with pytest.raises(SpecMismatchError, match=r"an action of the robot: expected 3 numbers, got shape"):
        match().policy_action(np.zeros(shape))


# -- images -----------------------------------------------------------------------------------------------------------------


def test_an_image_is_found_by_key_and_then_by_camera() -> None:
    policy = observed(front=image_field("front"))
    same_key = observed(front=image_field("other"), second=image_field("front"))
    assert match(policy, observation_spec=same_key).sources["front"].image == "front"
    same_camera = observed(a=image_field("front"), b=image_field("wrist"))
    assert match(policy, observation_spec=same_camera).sources["front"].image == "a"
    for robot in (observed(a=image_field("front"), b=image_field("front")), observed(a=image_field("wrist"))):
        with pytest.raises(
            SpecMismatchError, match=r"image 'front' of the camera 'front', but the robot arm:test has .*'a'"
        ):
            match(policy, observation_spec=robot)


def test_observations_stay_what_they_were_when_a_driver_reuses_its_arrays() -> None:
    policy = observed(front=image_field("front"), b=arm_field())
    frame, joints = np.zeros((4, 6, 3), np.uint8), np.zeros(3)
    found = match(policy, observation_spec=policy).observation(reading(front=frame, b=joints))
    frame[:], joints[:] = 9, 9
    assert not found["front"].any()
    assert not found["b"].any()


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(SpecMismatchError, match=r"\(4, 6, 3\), but 'front' of the robot arm:test has \(6, 4, 3\)"):
        match(observed(front=image_field("front")), observation_spec=observed(front=image_field("front", (6, 4, 3))))


def test_bgr_cameras_are_refused_if_the_policy_uses_them() -> None:
    robot = observed(front=image_field("front"), wrist=image_field("wrist"))
    channels = {"front": "rgb", "wrist": "bgr"}
    match(observed(front=image_field("front")), observation_spec=robot, image_channels=channels)
    with pytest.raises(SpecMismatchError, match=r"'wrist'.*expects rgb.*declared as 'bgr'.*\[\.\.\., ::-1\]"):
        match(observed(wrist=image_field("wrist")), observation_spec=robot, image_channels=channels)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((6, 4, 3), np.uint8), r"'front': expected the shape \(4, 6, 3\).*got \(6, 4, 3\).*resolution"),
        (np.zeros((4, 6), np.uint8), r"'front': expected the shape \(4, 6, 3\).*got \(4, 6\)"),
        (np.zeros((4, 6, 3), np.float32), r"'front': expected an image of uint8 from 0 to 255, got float32"),
        (np.zeros((4, 6, 3), np.int64), r"'front': expected an image of uint8 from 0 to 255, got int64"),
    ],
)
def test_images_that_are_not_what_the_robot_declares_are_refused(image: np.ndarray, message: str) -> None:
    spec = observed(front=image_field("front"))
    with pytest.raises(RobotError, match=message):
        match(spec, observation_spec=spec).observation(reading(front=image))


# -- readings ---------------------------------------------------------------------------------------------------------------


def test_wrong_values_are_named_and_unused_ones_ignored() -> None:
    robot = observed(joints=arm_field(), unused=arm_field(("other",)))
    found = match(observation_spec=robot)
    with pytest.raises(RobotError, match=r"no 'joints', only \['unused'\]"):
        found.observation(reading(unused=[0]))
    with pytest.raises(RobotError, match=r"'joints': expected the shape \(3,\).*got \(4,\).*correct the driver"):
        found.observation(reading(joints=[1, 2, 3, 4]))
    with pytest.raises(RobotError, match="'joints': expected numbers, got <U1"):
        found.observation(reading(joints=["a", "b", "c"]))
    assert np.isnan(found.observation(reading(joints=[1, np.nan, 3], unused=["?"]))["joints"][1])


def test_old_measurements_are_found_by_the_policys_keys() -> None:
    policy = observed(state=arm_field(("a", "b")), front=image_field("front"), own=arm_field(("c",)))
    robot = observed(x=arm_field(("a",)), y=arm_field(("b",)), camera=image_field("front"), own=arm_field(("c",)))
    found = match(policy, observation_spec=robot)
    times = {"x": 9.5, "y": 9.0, "camera": 9.75, "own": 5.0}
    assert found.stale_keys(Reading({}, times), now=10.0, max_age=0.5) == {"state": 1.0, "own": 5.0}
    assert found.stale_keys(Reading({}, times), now=10.0, max_age=5.0) == {}
    assert found.stale_keys(Reading({}, {**times, "own": np.nan}), now=10.0, max_age=5.0).keys() == {"own"}
    del times["camera"]
    assert found.stale_keys(Reading({}, times), now=10.0, max_age=5.0) == {"front": np.inf}
