"""What a simulated robot needs to start, and what is said if it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flowchunk.datasets.errors import ConfigurationError, RobotError
from flowchunk.envs.robots.simulated import SimulatedRobot

ARM = "flowchunk/PickPlace-v1"


def test_without_a_connection_everything_is_an_error() -> None:
    robot = SimulatedRobot(ARM)
    for use in (robot.observe, robot.hold, lambda: robot.observation_spec, lambda: robot.action_spec):
        with pytest.raises(
            RobotError, match=r"simulated:flowchunk/PickPlace-v1:\w+ is not connected; call connect\(\)"
        ):
            use()
    robot.close()
    assert robot.name != SimulatedRobot(ARM).name


@pytest.mark.parametrize(
    ("env_id", "options", "message"),
    [
        ("flowchunk/Unknown-v1", {}, "cannot start: unknown environment 'flowchunk/Unknown-v1'"),
        (ARM, {"env": {"size": 3}}, r"cannot start: .*takes no env\.size"),
        (ARM, {"log": "/nowhere/log"}, "cannot start: .*No such file"),
        ("CartPole-v1", {}, r"cannot start: CartPole-v1 has the actions Discrete\(2\), but policies need a Box"),
    ],
)
def test_a_robot_that_cannot_start_says_why(env_id: str, options: dict[str, Any], message: str) -> None:
    robot = SimulatedRobot(env_id, **options)
    with pytest.raises(RobotError, match=message):
        robot.connect()


def test_an_address_without_a_robot_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(
        RobotError, match=r"no simulated robot answers at .*socket: .*simulated_server ENV_ID --address"
    ):
        SimulatedRobot(ARM, address=tmp_path / "socket").connect()


def test_options_of_a_robot_that_already_runs_are_refused(tmp_path: Path) -> None:
    for option in ({"drop": 0.1}, {"seed": 1}, {"env": {"observation": "image"}}, {"log": "log"}):
        with pytest.raises(ConfigurationError, match="the robot there already has its options"):
            SimulatedRobot(ARM, address=tmp_path / "socket", **option)
    with pytest.raises(ConfigurationError, match="command_hz: expected a rate above 0 Hz, got 0"):
        SimulatedRobot(ARM, command_hz=0)
