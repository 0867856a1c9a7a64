"""Adroit's door as a task; needs the extra gymnasium-robotics."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest

from flowchunk.envs.checks import check_task_env
from flowchunk.envs.contract import specs_of

MAKE = partial(gymnasium.make, "flowchunk.envs:flowchunk/AdroitDoor-v1")


def test_without_the_extra_the_message_names_it() -> None:
    script = """
import sys
sys.modules["gymnasium_robotics"] = None
import gymnasium
from flowchunk.datasets.errors import ConfigurationError
try:
    gymnasium.make("flowchunk.envs:flowchunk/AdroitDoor-v1")
except ConfigurationError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True)
    assert "task=adroit_door needs the extra gymnasium-robotics" in done.stdout, done.stderr
    assert "pip install 'flowchunk[gymnasium-robotics]'" in done.stdout


@pytest.fixture
def env() -> Any:
    pytest.importorskip("gymnasium_robotics", reason="needs the extra gymnasium-robotics")
    env = MAKE()
    yield env
    env.close()


@pytest.mark.filterwarnings("ignore")
def test_it_keeps_the_contract(env: Any) -> None:
    check_task_env(MAKE)


@pytest.mark.filterwarnings("ignore")
def test_score_and_success_follow_the_doors_angle(env: Any) -> None:
    observation, info = env.reset(seed=0)
    spec = specs_of(env)[0].fields["state"]
    assert info["score"] == 0
    hinge = env.unwrapped.model.joint("door_hinge").qposadr[0]
    for angle, score, is_success in ((0.675, 0.5, False), (1.4, 1.0, True), (0.1, 1.0, True)):
        env.unwrapped.data.qpos[hinge] = angle
        env.unwrapped.data.qvel[:] = 0
        observation, _, terminated, _, info = env.step(np.zeros(28))
        assert info["door_angle"] == observation["state"][spec.names.index("door_hinge")]
        assert info["door_angle"] == pytest.approx(angle, abs=0.06)
        assert info["score"] == pytest.approx(score, abs=0.05)
        assert info["is_success"] is is_success
        assert terminated == (angle > 1.35)
