"""Environments of users: found by MODULE:ID, with the arguments of training, and clear errors."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from flowchunk.cli.main import main
from flowchunk.envs.simulation import accepted_options, environment_maker

OWN = """
import gymnasium
from flowchunk.envs.tasks.pusht import PushT


class Plain(PushT):
    def __init__(self, *, render_mode=None):
        super().__init__(render_mode=render_mode)


class Anything(PushT):
    def __init__(self, **options):
        super().__init__(**options)


for name, entry_point, options in (
    ("Same", PushT, {}), ("Plain", Plain, {}), ("Anything", Anything, {}), ("Moved", PushT, {"goal_pose": [99, 99, 0]})
):
    gymnasium.register(f"own/{name}-v0", entry_point=entry_point, max_episode_steps=12, kwargs=options)
gymnasium.register("own/Broken-v0", entry_point="own_tasks_that_are:Missing")
"""
GOAL = [200, 300, 0.5]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module that registers environments, which nobody has imported; workers find it too."""
    name = "flowchunk_tests_own_tasks"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    yield name
    sys.modules.pop(name, None)
    for env_id in [known for known in gymnasium.registry if known.startswith("own/")]:
        del gymnasium.registry[env_id]


@pytest.fixture
def moved_run(trained_run: Path, tmp_path: Path) -> Path:
    """The run, as if it had been trained with another goal."""
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    for checkpoint in (run / "checkpoints").iterdir():
        described = json.loads((checkpoint / "checkpoint.json").read_text())
        described["training"]["env"]["goal_pose"] = GOAL
        (checkpoint / "checkpoint.json").write_text(json.dumps(described))
    return run


def evaluated(run: Path, folder: Path, *options: str) -> dict[str, Any]:
    assert main(["eval", str(run), f"output_dir={folder}", "video=0", "episodes=1", *options]) == 0
    report: dict[str, Any] = json.loads((folder / "eval.json").read_text())
    return report


def test_a_module_before_the_colon_is_imported(module: str, trained_run: Path, tmp_path: Path) -> None:
    report = evaluated(trained_run, tmp_path / "eval", f"env_id={module}:own/Same-v0")
    assert report["env_id"] == f"{module}:own/Same-v0"
    assert report["episodes"][0]["steps"] == 12


def test_other_processes_import_it_too(module: str, trained_run: Path, tmp_path: Path) -> None:
    options = (f"env_id={module}:own/Same-v0", "episodes=2")
    serial = evaluated(trained_run, tmp_path / "eval", *options)
    assert evaluated(trained_run, tmp_path / "eval", *options, "processes=2")["episodes"] == serial["episodes"]


@pytest.mark.parametrize("name", ["Same", "Anything"])
def test_arguments_of_training_are_inherited(name: str, module: str, moved_run: Path, tmp_path: Path) -> None:
    report = evaluated(moved_run, tmp_path / "eval", f"env_id={module}:own/{name}-v0")
    assert report["env"] == {"observation": "state", "goal_pose": GOAL}
    given = evaluated(moved_run, tmp_path / "eval", f"env_id={module}:own/{name}-v0", "env.goal_pose=[100,100,0]")
    assert given["env"]["goal_pose"] == [100, 100, 0]


@pytest.mark.parametrize(("name", "env"), [("Plain", {}), ("Moved", {"observation": "state"})])
def test_arguments_that_are_not_taken_are_printed(
    name: str, env: dict[str, Any], module: str, moved_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluated(moved_run, tmp_path / "eval", f"env_id={module}:own/{name}-v0")["env"] == env
    said = capsys.readouterr().out
    assert f"own/{name}-v0 takes no " in said
    assert f"env.goal_pose={GOAL}" in said


def test_options_in_force_are_shown(moved_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluated(moved_run, tmp_path / "eval")
    shown = capsys.readouterr().out
    assert "env.goal_pose" in shown
    assert str(GOAL) in shown


def test_a_constructor_with_any_arguments_gets_all_of_them(module: str) -> None:
    assert accepted_options(f"{module}:own/Anything-v0") is None
    env = environment_maker(f"{module}:own/Anything-v0", {"goal_pose": GOAL})()
    assert env.get_wrapper_attr("goal_pose").tolist() == GOAL


@pytest.mark.parametrize(
    ("env_id", "expected"),
    [
        ("no_such_module:own/Same-v0", ["no_such_module", "PYTHONPATH"]),
        ("MODULE:own/Other-v0", ["unknown environment", "own/Other", "env_id=MODULE:ID"]),
        ("MODULE:own/Broken-v0", ["own_tasks_that_are", "cannot be imported"]),
        (
            "MODULE:own/Plain-v0 env.colour=red",
            ["takes no env.colour", "it takes env.control_hz, env.success_key, env.max_"],
        ),
        ("CartPole-v1", ["CartPole-v1 has the actions Discrete(2)", "policies need a Box"]),
        ("flowchunk/PickPlace-v1", ["2 action dimensions", "flowchunk/PickPlace-v1 has 7"]),
    ],
)
def test_what_cannot_be_used_is_explained(
    env_id: str, expected: list[str], module: str, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = f"env_id={env_id}".replace("MODULE", module, 1).split()
    assert main(["eval", str(trained_run), f"output_dir={tmp_path / 'new'}", *options]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert all(part in said for part in expected), said
    assert "env.observation=image" not in said
    assert not (tmp_path / "new").exists()
