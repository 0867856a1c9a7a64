"""Meta-World: every task keeps the contract, and its expert succeeds. In an environment that has metaworld and its MuJoCo."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from flowchunk.cli.main import main
from flowchunk.cli.options import read_options
from flowchunk.envs.tasks.metaworld import STATE, TASKS
from tests.own_environments import python_with

ROOT = Path(__file__).parents[2]
TRY = """
import json, sys, warnings
warnings.simplefilter("ignore")  # Meta-World's own
from functools import partial
import gymnasium
import numpy as np
import flowchunk.envs
from flowchunk.envs import check_task_env
from flowchunk.envs.checks import check_isolation
from flowchunk.envs.tasks.metaworld import TASKS, MetaWorldExpert

results = {}
for name in sys.argv[1:] or TASKS:
    make = partial(gymnasium.make, "flowchunk/MetaWorld-v1", name=name, one_hot=True)
    check_task_env(make)
    check_isolation(make, before=2, steps=60)
    env, expert = make(), MetaWorldExpert(np.random.default_rng(0))
    outcomes, starts = [], []
    for seed in range(2):
        observation, info = env.reset(seed=seed)
        starts.append(observation["state"].tolist())
        assert int(observation["task"].argmax()) == TASKS.index(name) and observation["task"].sum() == 1
        expert.reset(env.unwrapped)
        is_over = False
        while not is_over:
            observation, _, terminated, truncated, info = env.step(expert.act(env.unwrapped))
            is_over = terminated or truncated
        outcomes.append(info["is_success"])
    assert starts[0] != starts[1], name
    results[name] = sum(outcomes)
    env.close()
images = partial(gymnasium.make, "flowchunk/MetaWorld-v1", name="reach", observation="image")
check_task_env(images)
env = images(render_mode="rgb_array")
observation, _ = env.reset(seed=0)
assert observation["corner_image"].std() > 20 and observation["hand_image"].std() > 20
np.testing.assert_array_equal(observation["proprioception"], gymnasium.make(
    "flowchunk/MetaWorld-v1", name="reach").reset(seed=0)[0]["state"][:4])
video = env.render()
assert video.shape == (480, 480, 3) and video.dtype == np.uint8
rough = video.reshape(96, 5, 96, 5, 3).mean(axis=(1, 3))
assert np.abs(rough - observation["corner_image"]).mean() < 8, "the same view, in more detail"
env.close()
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python that has metaworld: the one that FLOWCHUNK_METAWORLD names, or that of a new environment."""
    return python_with(
        "metaworld", f"{ROOT}[metaworld]", tmp_path_factory.mktemp("metaworld")
    )  # FLOWCHUNK_ENVIRONMENTS


def test_all_tasks_keep_the_contract_and_their_experts_succeed(python: str) -> None:
    done = subprocess.run([python, "-P", "-c", TRY], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert list(results) == list(TASKS)
    assert sum(results.values()) >= 94, results  # of 100; 246 of 250 were measured
    assert sum(rate == 0 for rate in results.values()) <= 1, results


def test_there_are_fifty_tasks_and_every_number_has_a_name() -> None:
    assert len(set(TASKS)) == 50
    assert len(set(STATE.names)) == len(STATE.units) == 39


def test_a_task_is_chosen_by_its_name() -> None:
    options = read_options("collect", ["task=metaworld/door-open", "output_dir=x"])
    assert options["task"]["env_id"] == "flowchunk/MetaWorld-v1"
    assert options["env"] == {"name": "door-open"}
    assert read_options("collect", ["task=metaworld", "env.name=reach", "output_dir=x"])["env"] == {"name": "reach"}


def test_without_metaworld_the_message_names_the_environment_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["collect", "task=metaworld/reach", f"output_dir={tmp_path / 'x'}"]) == 1
    error = capsys.readouterr().err
    assert "needs the package metaworld" in error
    assert "an environment of its own, pip install 'flowchunk[metaworld]'" in error


def test_unknown_tasks_are_refused_with_those_that_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["collect", "task=metaworld/fly", f"output_dir={tmp_path / 'x'}"]) == 1
    error = capsys.readouterr().err
    assert "got 'fly'" in error
    assert "'pick-place'" in error
