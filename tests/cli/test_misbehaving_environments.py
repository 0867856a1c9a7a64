"""Environments that misbehave in ``flowchunk eval``: one clear message each, and no more harm than has to be."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from flowchunk.cli.main import main

OWN = """
import gymnasium
import numpy as np
from flowchunk.envs.tasks.pusht import PushT


class Failing(PushT):
    def __init__(self, *, every=2, render_mode=None):
        super().__init__(render_mode=render_mode)
        self.every = every

    def reset(self, *, seed=None, options=None):
        self.fails, self.steps = (seed or 0) % self.every == 0, 0
        return super().reset(seed=seed, options=options)

    def step(self, action):
        self.steps += 1
        if self.fails and self.steps == 6:
            raise RuntimeError("the block fell off")
        return super().step(action)


class NotRendering(PushT):
    def __init__(self):
        super().__init__()


class FailsToRender(PushT):
    def __init__(self, *, render_mode=None):
        super().__init__(render_mode=render_mode)

    def render(self):
        raise OSError("no display")


class Drifting(PushT):
    episodes = 0

    def reset(self, *, seed=None, options=None):
        self.episodes += 1
        observation, info = super().reset(seed=seed, options=options)
        return {"state": observation["state"] + np.float32(self.episodes)}, info


for entry_point in (Failing, NotRendering, FailsToRender, Drifting):
    gymnasium.register(f"misbehaving/{entry_point.__name__}-v0", entry_point=entry_point, max_episode_steps=12)
gymnasium.register("misbehaving/Endless-v0", entry_point=PushT)
"""
NAME = "flowchunk_tests_misbehaving"


@pytest.fixture
def evaluate(trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Evaluates in an environment of the module; returns the exit status and the report, None without one."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / f"{NAME}.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))

    def evaluate(name: str, *options: str) -> tuple[int, dict[str, Any] | None]:
        folder = tmp_path / "eval"
        given = ["video=0", *options] if not any("video" in option for option in options) else list(options)
        status = main(
            ["eval", str(trained_run), f"env_id={NAME}:misbehaving/{name}-v0", f"output_dir={folder}", *given]
        )
        file = folder / "eval.json"
        return status, json.loads(file.read_text()) if file.exists() else None

    yield evaluate
    sys.modules.pop(NAME, None)
    for env_id in [known for known in gymnasium.registry if known.startswith("misbehaving/")]:
        del gymnasium.registry[env_id]


@pytest.mark.parametrize("processes", [1, 2])
def test_episodes_that_raise_are_reported_and_the_others_go_on(
    processes: int, evaluate: Any, caplog: pytest.LogCaptureFixture
) -> None:
    status, report = evaluate("Failing", "episodes=4", "num_envs=2", f"processes={processes}")
    assert status == 0
    error = f"RuntimeError: the block fell off ({NAME}.py, line 19)"
    assert [episode["error"] for episode in report["episodes"]] == [error, None, error, None]
    assert [episode["steps"] for episode in report["episodes"]] == [6, 12, 6, 12]
    assert report["success_rate"] == 0
    assert f"the environment failed in 2 of 4 episodes; in that of seed 100000: {error}" in caplog.text


def test_nothing_is_reported_if_all_of_them_raise(evaluate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    status, report = evaluate("Failing", "episodes=2", "env.every=1")
    assert (status, report) == (1, None)
    assert "error: the environment failed in 2 of 2 episodes; in that of seed 100000: RuntimeError: the block" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("name", "reason"), [("NotRendering", "render_mode"), ("FailsToRender", "OSError: no display")]
)
def test_without_rendering_there_is_no_video_and_a_report(
    name: str, reason: str, evaluate: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, report = evaluate(name, "episodes=2", "video=2")
    assert status == 0
    assert len(report["episodes"]) == 2
    printed = capsys.readouterr().out
    assert printed.count("no video: ") == 1
    assert reason in printed.partition("no video: ")[2]
    assert not list(tmp_path.glob("eval/videos/*.mp4"))


def test_a_reset_that_does_not_reset_is_said_and_nothing_else(
    evaluate: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    status, report = evaluate("Drifting", "episodes=1")
    assert status == 0
    assert report is not None
    printed = capsys.readouterr().out
    assert f"warning: {NAME}:misbehaving/Drifting-v0: the same seed and actions gave another observation" in printed
    assert "let reset bring back all state" in printed
    evaluate("FailsToRender", "episodes=1")
    assert "warning" not in capsys.readouterr().out


def test_an_episode_needs_a_time_limit(evaluate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    status, report = evaluate("Endless", "episodes=1")
    assert (status, report) == (1, None)
    error = capsys.readouterr().err
    assert "misbehaving/Endless-v0 has no time limit" in error
    assert "give env.max_episode_steps=N" in error
    status, report = evaluate("Endless", "episodes=1", "env.max_episode_steps=7")
    assert status == 0
    assert report["episodes"][0]["steps"] == 7


def test_training_needs_a_time_limit_too(
    evaluate: Any, pusht_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = [f"env_id={NAME}:misbehaving/Endless-v0", f"dataset.path={pusht_store}"]
    assert main(["train", "task=pusht_state", *task, f"output_dir={tmp_path / 'run'}"]) == 1
    assert "has no time limit" in capsys.readouterr().err
