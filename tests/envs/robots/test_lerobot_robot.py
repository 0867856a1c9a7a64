"""Robots of LeRobot's own base class, driven in an environment that has lerobot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flowchunk.datasets.derived_specs import derive_specs
from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.formats import open_dataset
from flowchunk.datasets.specs import ActionSpec, ObservationSpec
from flowchunk.envs.robots.lerobot_robot import LeRobotRobot
from tests.own_environments import python_with

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python that has lerobot: the one that FLOWCHUNK_LEROBOT names, or that of a new environment."""
    return python_with("lerobot", "lerobot==0.4.4", tmp_path_factory.mktemp("lerobot"))  # FLOWCHUNK_ENVIRONMENTS


def test_a_device_of_lerobots_is_driven_with_the_names_of_its_data(python: str, tmp_path: Path) -> None:
    data, specs = tmp_path / "data", tmp_path / "specs.json"
    env = {
        **os.environ,
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": str(REPOSITORY / ".typing"),
    }
    script = str(Path(__file__).with_name("drive_lerobot.py"))
    done = subprocess.run([python, script, data, specs], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    recorded = derive_specs(open_dataset(data))
    observations, actions = json.loads(specs.read_text())
    assert ObservationSpec.from_json(observations).fields == recorded.observation_spec.fields
    assert ActionSpec.from_json(actions).dimensions == recorded.action_spec.dimensions


class Device:
    """As much of a LeRobot robot as is needed before it is connected."""

    name, id = "device", None

    def __init__(self, **features: object) -> None:
        self.observation_features = features
        self.action_features = {"x.pos": float}


def test_features_without_a_counterpart_are_refused() -> None:
    message = r"expected features that are float or \(height, width, 3\), got \{'strange'"
    for strange in (str, (4, 4, 1), (4, 4)):
        with pytest.raises(ConfigurationError, match=message):
            LeRobotRobot(Device(strange=strange))
    without_actions = Device(x=float)
    without_actions.action_features = {}
    with pytest.raises(
        ConfigurationError, match=r"lerobot:device:None: expected action_features that are float, got \{\}"
    ):
        LeRobotRobot(without_actions)


def test_without_lerobot_the_extra_is_named() -> None:
    if "lerobot" in sys.modules:
        pytest.skip("lerobot is installed here")
    with pytest.raises(ConfigurationError, match=r"lerobot is not installed .*pip install 'flowchunk\[lerobot\]'"):
        LeRobotRobot.from_type("so101_follower")
