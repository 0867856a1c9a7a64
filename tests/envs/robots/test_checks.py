"""Each way in which a driver can break the contract is found, and the message says what to correct."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from flowchunk.datasets.errors import RobotError
from flowchunk.datasets.specs import ObservationSpec
from flowchunk.envs.robots.checks import check_robot
from flowchunk.envs.robots.robot import Reading
from flowchunk.envs.robots.simulated import SimulatedRobot
from tests.envs.robots.fake_robots import Arm, arm_actions, arm_field, image_field

pytestmark = pytest.mark.real_time

SEEN = ObservationSpec({"joints": arm_field(), "front": image_field("front")})


class Changed(Arm):
    """An arm whose readings and held actions are changed before they are returned."""

    reading: Callable[[Reading], Reading] = staticmethod(lambda reading: reading)
    held: Callable[[np.ndarray], Any] = staticmethod(lambda action: action)
    closed = 0

    def observe(self) -> Reading:
        return self.reading(super().observe())

    def hold(self) -> Any:
        return self.held(super().hold())

    def close(self) -> None:
        self.closed += 1


def changed(**attributes: Any) -> Changed:
    robot = Changed(SEEN)
    for name, value in attributes.items():
        setattr(robot, name, value)
    return robot


def with_values(**values: Any) -> Callable[[Reading], Reading]:
    return lambda reading: replace(reading, values={**reading.values, **values})


def with_times(shift: float) -> Callable[[Reading], Reading]:
    return lambda reading: replace(reading, times={key: moment + shift for key, moment in reading.times.items()})


def without(key: str) -> Callable[[Reading], Reading]:
    return lambda reading: replace(reading, values={k: v for k, v in reading.values.items() if k != key})


def slow(reading: Reading) -> Reading:
    time.sleep(0.03)
    return reading


def going_back() -> Callable[[Reading], Reading]:
    shifts = iter(np.linspace(0, -0.5, 1000).tolist())
    return lambda reading: with_times(next(shifts))(reading)


def constant_time() -> Callable[[Reading], Reading]:
    start = time.monotonic()
    return lambda reading: replace(reading, times={**reading.times, "front": start})


def test_a_good_robot_passes_and_is_closed_twice() -> None:
    robot = changed()
    check = check_robot(robot, seconds=0.1)
    assert 0 <= check.observe_seconds <= check.slowest_seconds < 0.02
    assert check.age.keys() == {"joints", "front"}
    assert all(0 <= age < 0.1 for age in check.age.values())
    assert robot.closed == 2


def test_a_simulated_robot_passes() -> None:
    check_robot(SimulatedRobot("flowchunk/PushT-v1"), seconds=0.5)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"name": 3}, "Changed.name: expected an object of str, got 3"),
        ({"action_spec": None}, "Changed.action_spec: expected an object of ActionSpec, got None"),
        ({"observation_spec": {}}, r"Changed.observation_spec: expected an object of ObservationSpec, got \{\}"),
        ({"command_hz": 0}, "arm:test: expected command_hz above 0, got 0"),
        ({"held": lambda action: None}, r"arm:test.hold\(\): expected 3 finite numbers .*got array\(None"),
        (
            {"held": lambda action: action[:2]},
            r"hold\(\): expected 3 finite numbers for \['shoulder', 'elbow', 'wrist'\]",
        ),
        ({"held": lambda action: action * np.nan}, r"hold\(\): expected 3 finite numbers"),
        (
            {"held": lambda action: action + np.array([0, 1.5, 0])},
            r"'elbow' is 1.5 rad, outside its bounds -1 to 1; correct the bounds",
        ),
        ({"held": lambda action: action - 1.5}, "'shoulder' is -1.5 rad, outside its bounds"),
        ({"reading": without("joints")}, r"expected 'joints' in values and times, got \['front'\]"),
        (
            {"reading": lambda reading: replace(reading, times={})},
            r"expected 'joints' in values and times, .* and \[\]",
        ),
        (
            {"reading": with_values(joints=np.zeros(4))},
            r"'joints': expected numbers of shape \(3,\), got float64 of shape \(4,\)",
        ),
        ({"reading": with_values(joints=np.array(["a"] * 3))}, r"'joints': expected numbers of shape"),
        ({"reading": with_values(joints=np.array([0, np.nan, 0]))}, "'joints' is not finite"),
        (
            {"reading": with_values(front=np.zeros((4, 6, 3)))},
            r"'front': expected uint8 of shape \(4, 6, 3\), got float64",
        ),
        ({"reading": with_values(front=np.zeros((6, 4, 3), np.uint8))}, r"got uint8 of shape \(6, 4, 3\)"),
        ({"reading": with_times(-5.0)}, r"'joints' is 5\.\d+ s old by its time; take times from time.monotonic\(\)"),
        ({"reading": with_times(5.0)}, r"'joints' is -(5\.000|4\.9\d+) s old by its time"),
        ({"reading": slow}, r"observe\(\) took \d\d\.\d ms and more, longer than a period of 50 commands per second"),
    ],
)
def test_what_is_wrong_is_named(attributes: dict[str, Any], message: str) -> None:
    robot = changed(**attributes)
    with pytest.raises(RobotError, match=message):
        check_robot(robot, seconds=0.2)
    assert robot.closed == 1


def test_sensors_that_bring_nothing_new_are_named() -> None:
    with pytest.raises(RobotError, match=r"nothing new from \['front'\] in 0.1 s; check these sensors"):
        check_robot(changed(reading=constant_time()), seconds=0.1)
    with pytest.raises(RobotError, match="the time of 'joints' went back"):
        check_robot(changed(reading=going_back(), command_hz=5000), seconds=0.1)


def test_missing_methods_are_named() -> None:
    class Half:
        action_spec = arm_actions()

        def connect(self) -> None: ...

        def observe(self) -> None: ...

    half: Any = Half()
    with pytest.raises(RobotError, match=r"Half has no \['command', 'hold', 'close'\]"):
        check_robot(half)
