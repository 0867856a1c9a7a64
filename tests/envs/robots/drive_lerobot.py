"""Run by a Python that has lerobot: a device of LeRobot's own base class, driven through ``LeRobotRobot``.

Arguments: the folder of a data set to record with it, by LeRobot's own code, and a file for the specifications.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.cameras import CameraConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.utils import build_dataset_frame, hw_to_dataset_features
from lerobot.robots import Robot, RobotConfig

from flowchunk.datasets.errors import ConfigurationError, RobotError
from flowchunk.envs.robots.checks import check_robot
from flowchunk.envs.robots.lerobot_robot import LeRobotRobot
from flowchunk.envs.robots.robot import Robot as FlowchunkRobot


@RobotConfig.register_subclass("stand_in")
@dataclass
class StandInConfig(RobotConfig):  # type: ignore[misc] # lerobot has no types here
    size: int = 8
    wheel: bool = False
    cameras: dict[str, CameraConfig] = field(default_factory=dict)


class StandIn(Robot):  # type: ignore[misc]
    """Joints that are at once where they are commanded, and a camera; the wheel turns as fast as it is commanded."""

    config_class = StandInConfig
    name = "stand_in"

    def __init__(self, config: StandInConfig) -> None:
        super().__init__(config)
        joints = ["shoulder_pan.pos", "gripper.pos", *(["wheel.vel"] if config.wheel else [])]
        self.state = {name: 10.0 * index + 1 for index, name in enumerate(joints)}
        self.size, self._connected, self.calibrated, self.fails = config.size, False, True, False
        self.sent: list[dict[str, Any]] = []
        self.disconnects = 0

    @property
    def observation_features(self) -> dict[str, Any]:
        return {**dict.fromkeys(self.state, float), "front": (self.size, 2 * self.size, 3)}

    @property
    def action_features(self) -> dict[str, Any]:
        return dict.fromkeys(reversed(self.state), float)

    @property
    def is_connected(self) -> bool:
        return self._connected

    def connect(self, calibrate: bool = True) -> None:
        assert not calibrate, "it would wait for somebody at the keyboard"
        self._connected = True

    @property
    def is_calibrated(self) -> bool:
        return self.calibrated

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...

    def get_observation(self) -> dict[str, Any]:
        if self.fails:
            raise ConnectionError("There is no status packet!")
        return {**self.state, "front": np.full((self.size, 2 * self.size, 3), 7, np.uint8)}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        self.sent.append(action)
        self.state.update(action)
        return action

    def disconnect(self) -> None:
        self._connected = False
        self.disconnects += 1


def fails_with(kind: type[Exception], text: str, use: Callable[[], Any]) -> None:
    found = "no error"
    try:
        use()
    except kind as error:
        found = str(error)
    assert text in found, found


def main(data: str, specs: str) -> None:
    device = StandIn(StandInConfig(id="left"))
    robot = LeRobotRobot(device, command_hz=100)
    assert isinstance(robot, FlowchunkRobot)
    assert robot.name == "lerobot:stand_in:left"

    # A policy that was trained on data recorded by LeRobot finds its keys and names.
    features = {
        **hw_to_dataset_features(device.action_features, "action"),
        **hw_to_dataset_features(device.observation_features, "observation", use_video=False),
    }
    recorded = LeRobotDataset.create(
        "local", fps=30, features=features, root=data, robot_type="stand_in", use_videos=False
    )
    for _ in range(4):
        frame = build_dataset_frame(features, device.get_observation(), "observation")
        recorded.add_frame({**frame, **build_dataset_frame(features, dict(device.state), "action"), "task": "stand"})
    recorded.save_episode()
    recorded.finalize()
    Path(specs).write_text(json.dumps([robot.observation_spec.to_json(), robot.action_spec.to_json()]))

    # It is driven by name.
    assert robot.action_spec.names == ("gripper.pos", "shoulder_pan.pos")
    robot.connect()
    assert device.sent == [{"shoulder_pan.pos": 1.0, "gripper.pos": 11.0}], "connecting holds"
    before = time.monotonic()
    reading = robot.observe()
    assert reading.values["state"].tolist() == [1, 11]
    assert reading.values["front"].shape == (8, 16, 3)
    assert all(before <= moment <= time.monotonic() for moment in reading.times.values())
    robot.command(np.array([5.0, -3.0]))
    assert device.state == {"shoulder_pan.pos": -3.0, "gripper.pos": 5.0}
    assert robot.hold().tolist() == [5, -3]
    for wrong in (np.zeros(3), np.array([np.nan, 0])):
        fails_with(
            RobotError, "expected finite numbers for ['gripper.pos', 'shoulder_pan.pos']", partial(robot.command, wrong)
        )
    check_robot(robot)
    device.fails = True
    fails_with(RobotError, "cannot be read: ConnectionError: There is no status packet!", robot.observe)
    robot.close()
    robot.close()
    assert device.disconnects >= 1
    assert not device.is_connected

    device.fails, device.calibrated = False, False
    fails_with(RobotError, "is not calibrated; run lerobot-calibrate", robot.connect)
    assert not device.is_connected

    # A wheel stops where joints stay.
    moving = LeRobotRobot(StandIn(StandInConfig(id="base", wheel=True)))
    moving.connect()
    assert dict(zip(moving.action_spec.names, moving.hold(), strict=True)) == {
        "wheel.vel": 0.0,
        "gripper.pos": 11.0,
        "shoulder_pan.pos": 1.0,
    }
    moving.close()

    # Units as in dataset.units, and LeRobot's own way of making a robot.
    given = LeRobotRobot.from_type(
        "stand_in", {"id": "right", "size": 4}, units={"state": "deg", "action": ["%", "deg"]}
    )
    assert given.observation_spec.fields["state"].units == ("deg", "deg")
    assert [one.unit for one in given.action_spec.dimensions] == ["%", "deg"]
    assert given.observation_spec.fields["front"].shape == (4, 8, 3)
    fails_with(ConfigurationError, "expected 2 for 'state'", lambda: LeRobotRobot(device, units={"state": ["deg"]}))
    fails_with(
        ConfigurationError,
        "expected the keys 'state' and 'action', got ['front']",
        lambda: LeRobotRobot(device, units={"front": "m"}),
    )
    fails_with(ConfigurationError, "knows no robot of the type 'nothing'", lambda: LeRobotRobot.from_type("nothing"))
    fails_with(
        ConfigurationError,
        "stand_in takes no ['color']; it takes",
        lambda: LeRobotRobot.from_type("stand_in", {"color": 1}),
    )
    fails_with(ConfigurationError, "cannot be made of", lambda: LeRobotRobot.from_type("stand_in", {"size": "large"}))
    cameras = {"top": {"type": "opencv", "index_or_path": 0, "width": 64, "height": 48, "fps": 30}}
    make = partial(LeRobotRobot.from_type, "so101_follower", {"port": "/dev/null", "cameras": cameras})
    if find_spec("scservo_sdk") is None:
        fails_with(
            ConfigurationError, "No module named 'scservo_sdk'; check these, and install the part of lerobot", make
        )
    else:
        so101 = make()
        assert so101.observation_spec.fields["top"].shape == (48, 64, 3)
        assert so101.action_spec.names[-1] == "gripper.pos"
        fails_with(RobotError, "cannot connect", so101.connect)


main(*sys.argv[1:])
