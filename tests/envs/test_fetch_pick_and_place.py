"""Fetch's pick-and-place as a task, and its expert; needs the extra gymnasium-robotics."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest

from flowchunk.cli.main import main
from flowchunk.datasets import check_dataset, open_dataset
from flowchunk.envs.checks import check_task_env
from flowchunk.envs.contract import specs_of

MAKE = partial(gymnasium.make, "flowchunk.envs:flowchunk/FetchPickAndPlace-v1")
pytestmark = pytest.mark.filterwarnings("ignore")  # of Gymnasium-Robotics


def test_without_the_extra_the_message_names_it() -> None:
    script = """
import sys
sys.modules["gymnasium_robotics"] = None
import gymnasium
from flowchunk.datasets.errors import ConfigurationError
try:
    gymnasium.make("flowchunk.envs:flowchunk/FetchPickAndPlace-v1")
except ConfigurationError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True)
    assert "task=fetch_pick_and_place needs the extra gymnasium-robotics" in done.stdout, done.stderr
    assert "pip install 'flowchunk[gymnasium-robotics]'" in done.stdout


@pytest.fixture
def env() -> Iterator[Any]:
    pytest.importorskip("gymnasium_robotics", reason="needs the extra gymnasium-robotics")
    env = MAKE()
    yield env
    env.close()


def test_it_keeps_the_contract(env: Any) -> None:
    check_task_env(MAKE)


def test_every_number_of_the_state_is_what_its_name_says(env: Any) -> None:
    names = specs_of(env)[0].fields["state"].names
    assert names is not None
    assert len(set(names)) == 28
    observation, _ = env.reset(seed=1)
    for _ in range(5):
        observation, *_ = env.step(np.array([1, 0.5, -0.2, -1], np.float32))
    state, data, model = dict(zip(names, observation["state"], strict=True)), env.unwrapped.data, env.unwrapped.model

    def vector(name: str) -> np.ndarray:
        return np.array([state[f"{name}_{axis}"] for axis in "xyz"])

    gripper, block = data.site("robot0:grip").xpos, data.site("object0").xpos
    np.testing.assert_allclose(vector("gripper"), gripper, atol=1e-6)
    np.testing.assert_allclose(vector("block"), block, atol=1e-6)
    np.testing.assert_allclose(vector("gripper_to_block"), block - gripper, atol=1e-6)
    np.testing.assert_allclose(vector("goal"), env.unwrapped.goal, atol=1e-6)
    for side in ("right", "left"):
        joint = model.joint(f"robot0:{side[0]}_gripper_finger_joint")
        assert state[f"{side}_finger"] == pytest.approx(data.qpos[joint.qposadr[0]], abs=1e-6)
        assert state[f"{side}_finger_velocity"] == pytest.approx(
            data.qvel[joint.dofadr[0]] * env.unwrapped.dt, abs=1e-6
        )
    assert vector("gripper_velocity")[0] > 0.005, "m per control step"


def test_score_and_success_follow_the_block(env: Any) -> None:
    observation, info = env.reset(seed=3)
    assert info["score"] == 0
    block, goal = observation["state"][3:6], observation["state"][25:28]
    start = env.unwrapped.data.joint("object0:joint").qpos
    assert np.linalg.norm(block - goal) > 0.05
    way, last = float(np.linalg.norm(block - goal)), 0.0
    for share in (0.3, 0.6, 0.2):
        start[:3] = block + share * (goal - block)
        _, _, terminated, _, info = env.step(np.zeros(4, np.float32))
        assert info["score"] >= last
        assert info["score"] == pytest.approx(max(last, 1 - info["distance"] / way), abs=1e-6)
        assert not terminated
        last = info["score"]
    env.unwrapped.goal = start[:3].copy()
    _, _, terminated, _, info = env.step(np.zeros(4, np.float32))
    assert (terminated, info["is_success"], info["score"]) == (True, True, 1.0)


def test_the_gripper_goes_where_the_action_says(env: Any) -> None:
    observation, _ = env.reset(seed=0)
    before = observation["state"][:3]
    for _ in range(4):
        observation, *_ = env.step(np.array([0, 1, 0, 1], np.float32))
    moved = observation["state"][:3] - before
    assert moved[1] > 0.1
    assert np.abs(moved[[0, 2]]).max() < 0.02
    assert observation["state"][9:11].min() > 0.04, "the fingers open"


def test_the_expert_collects_demonstrations(env: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "fetch.zarr"
    assert main(["collect", "task=fetch_pick_and_place", "episodes=20", "seed=1000", f"output_dir={path}"]) == 0
    assert "20 demonstrations (20 attempts)" in capsys.readouterr().out, "200 of 200 succeed on the seeds from 0"
    source = open_dataset(path)
    check_dataset(source)
    assert source.episode_lengths.max() < 40
    assert np.abs(source.read("action")).max() <= 1
