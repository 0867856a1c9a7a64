"""Robots by name: the package's kinds, and drivers of users' own modules."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from flowchunk.datasets.errors import ConfigurationError, RobotError
from flowchunk.envs.robots.gym_robot import GymRobot
from flowchunk.envs.robots.making import KINDS, make_robot, maker_of
from flowchunk.envs.robots.simulated import SimulatedRobot

DRIVER = """
class Driver:
    def __init__(self, port, *, baud=9600): self.port, self.baud = port, baud
    def connect(self): pass
    observe = command = hold = close = connect

class Unplugged(Driver):
    def __init__(self): super().__init__(open("/dev/no-such-arm"))

class Half:
    def connect(self): pass

def anything(**options): return Driver(options)

NUMBER = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_driver.py").write_text(DRIVER)
    monkeypatch.syspath_prepend(tmp_path)
    return "my_driver"


def test_the_kinds_of_the_package_are_made_by_name() -> None:
    options = {"env_id": "flowchunk/PushT-v1", "env": {"observation": "state"}, "command_hz": 20, "drop": 0.1}
    simulated = make_robot(*pickle.loads(pickle.dumps(("simulated", options))))
    assert isinstance(simulated, SimulatedRobot)
    assert simulated.command_hz == 20
    assert isinstance(make_robot("gym", {"env_id": "flowchunk/PushT-v1"}), GymRobot)
    for kind in KINDS:
        assert callable(maker_of(kind))


def test_a_driver_of_a_users_own_is_made_by_module_and_class(module: str) -> None:
    robot: Any = make_robot(f"{module}:Driver", {"port": "/dev/ttyACM0", "baud": 115200})
    assert (robot.port, robot.baud) == ("/dev/ttyACM0", 115200)
    anything: Any = make_robot(f"{module}:anything", {"color": "red"})
    assert anything.port == {"color": "red"}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unknown", {}, "unknown robot 'unknown'; expected one of simulated, gym, lerobot, or MODULE:CLASS"),
        ("nowhere:Driver", {}, "robot 'nowhere:Driver': No module named 'nowhere'; the module has to be installed"),
        (":Driver", {}, "robot ':Driver': Empty module name"),
        ("my_driver:Missing", {}, "robot 'my_driver:Missing': module 'my_driver' has no attribute 'Missing'"),
        ("my_driver:NUMBER", {}, "expected a class or function that makes a robot, got 3"),
        ("my_driver:Half", {}, r"makes a Half without \['observe', 'command', 'hold', 'close'\]"),
        ("my_driver:Half", {"a": 1}, r"takes no option \['a'\]; it takes none"),
        ("my_driver:Driver", {"port": 1, "speed": 2}, r"takes no option \['speed'\]; it takes \['port', 'baud'\]"),
        ("my_driver:Driver", {"baud": 2}, r"needs the options \['port'\], got \['baud'\]"),
        ("simulated", {}, r"robot 'simulated' needs the options \['env_id'\]"),
        (
            "simulated",
            {"env_id": "x", "lag": 1},
            r"takes no option \['lag'\]; it takes \['env_id', 'env', 'command_hz'",
        ),
        ("lerobot", {"port": "/dev/ttyACM0"}, r"takes no option \['port'\]; it takes \['robot_type', 'options'"),
    ],
)
def test_what_cannot_be_made_says_why(module: str, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_robot(name, options)


def test_an_exception_of_a_driver_names_it(module: str) -> None:
    with pytest.raises(RobotError, match=r"my_driver:Unplugged could not be made: FileNotFoundError: .*no-such-arm"):
        make_robot(f"{module}:Unplugged")
