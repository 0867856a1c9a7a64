"""A Gymnasium environment in lockstep: each command is one step of it."""

from __future__ import annotations

import time
from typing import Any

import gymnasium
import numpy as np
import pytest

from flowchunk.datasets.errors import ConfigurationError, RobotError
from flowchunk.datasets.specs import ObservationField, ObservationSpec
from flowchunk.envs.robots.checks import check_robot
from flowchunk.envs.robots.gym_robot import GymRobot
from flowchunk.envs.robots.robot import ResettableRobot
from tests.envs.custom_environments import Reach

pytestmark = pytest.mark.real_time

PUSHT = "flowchunk/PushT-v1"


def connected(make_env: Any = Reach, **options: Any) -> GymRobot:
    robot = GymRobot(make_env, **options)
    robot.connect()
    return robot


def test_each_command_is_one_step() -> None:
    robot = connected(name="reach")
    assert isinstance(robot, ResettableRobot)
    assert (robot.name, robot.command_hz, robot.action_spec.names) == ("reach", 10, ("x",))
    assert robot.observe().values["state"].tolist() == [0]
    before = time.monotonic()
    for _ in range(5):  # episodes of Reach end after two steps, which a robot does not
        robot.command(np.array([0.5]))
    reading = robot.observe()
    assert reading.values["state"].tolist() == [2.5]
    assert before <= reading.times["state"] <= time.monotonic()
    assert robot.observe().times["state"] > reading.times["state"], "what stands still is as good as measured again"
    assert robot.outcome() == {"score": 1.0, "is_success": True}
    robot.reset(3)
    assert robot.observe().values["state"].tolist() == [0]
    assert robot.outcome() == {}
    robot.connect()  # it already is
    robot.close()
    robot.close()


def test_a_reading_stays_as_it_was() -> None:
    class Reused(Reach):
        """Returns the same array from each step."""

        def step(self, action: np.ndarray) -> Any:
            self.x += action
            return {"state": self.x}, 0.0, False, False, {}

    robot = connected(Reused)
    first = robot.observe()
    robot.command(np.array([1.0]))
    assert first.values["state"].tolist() == [0]
    robot.close()


def test_holding_needs_no_step() -> None:
    robot = connected()
    robot.command(np.array([0.5]))
    assert robot.hold().tolist() == [0.5]
    assert robot.observe().values["state"].tolist() == [0.5]
    robot.close()


def test_a_position_that_is_not_observed_is_held_by_the_last_command() -> None:
    class Unobserved(Reach):
        observation_spec = ObservationSpec({"state": ObservationField((1,), ("speed",), ("m/s",))})

    robot = connected(Unobserved)
    with pytest.raises(RobotError, match="gym cannot hold: cannot hold 'x'"):
        robot.hold()
    robot.command(np.array([0.75]))
    assert robot.hold().tolist() == [0.75]
    robot.reset(0)
    with pytest.raises(RobotError, match="cannot hold 'x'"):
        robot.hold()
    robot.close()


@pytest.mark.parametrize("env_id", [PUSHT, "flowchunk/PickPlace-v1"])
def test_tasks_of_the_package_are_robots(env_id: str) -> None:
    robot = GymRobot.from_id(env_id)
    check = check_robot(robot, seconds=0.5)
    assert 0 < check.observe_seconds <= check.slowest_seconds
    robot.connect()
    for _ in range(310):  # longer than an episode
        robot.command(robot.hold())
    assert robot.outcome()["is_success"] is False
    robot.close()


def test_seeds_choose_the_episode() -> None:
    def block(robot: GymRobot) -> list[float]:
        found: list[float] = robot.observe().values["state"].tolist()
        return found

    robot = GymRobot.from_id(PUSHT, {"observation": "state"}, seed=4)
    robot.connect()
    first = block(robot)
    robot.reset(5)
    assert block(robot) != first
    robot.reset(4)
    assert block(robot) == first
    robot.close()


def test_only_the_rate_of_the_environment_is_possible() -> None:
    connected(command_hz=10).close()
    with pytest.raises(ConfigurationError, match="command_hz: expected 10 Hz, at which gym steps, got 50"):
        connected(command_hz=50)


@pytest.mark.parametrize("action", [np.zeros(2), np.array([np.nan]), np.array(0.0)])
def test_actions_that_cannot_be_used_are_refused(action: np.ndarray) -> None:
    robot = connected()
    with pytest.raises(RobotError, match=r"gym: expected finite numbers for \['x'\]"):
        robot.command(action)
    robot.close()


def test_what_an_environment_raises_is_an_error_of_the_robot() -> None:
    class Broken(Reach):
        closed = False

        def step(self, action: np.ndarray) -> Any:
            raise OSError("no such device")

        def reset(self, **options: Any) -> Any:
            if options["seed"] == 1:
                raise OSError("cannot home")
            return super().reset(**options)

        def close(self) -> None:
            Broken.closed = True

    robot = connected(Broken)
    with pytest.raises(RobotError, match="gym cannot step: OSError: no such device"):
        robot.command(np.zeros(1))
    with pytest.raises(RobotError, match="gym cannot start an episode: OSError: cannot home"):
        robot.reset(1)
    robot.close()
    Broken.closed = False
    with pytest.raises(RobotError, match="cannot home"):
        connected(Broken, seed=1)
    assert Broken.closed
    with pytest.raises(RobotError, match=r"gym cannot be connected: .* to have observation_spec"):
        connected(lambda: gymnasium.make("CartPole-v1"))


def test_without_a_connection_everything_is_an_error() -> None:
    robot = GymRobot(Reach)
    for use in (robot.observe, robot.hold, robot.outcome, lambda: robot.reset(0), lambda: robot.command_hz):
        with pytest.raises(RobotError, match=r"gym is not connected; call connect\(\) first"):
            use()
    with pytest.raises(ConfigurationError, match=r"takes no env\.size"):
        GymRobot.from_id(PUSHT, {"size": 3})
