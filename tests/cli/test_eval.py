"""flowchunk eval: the report, the options, the video, and the same numbers every time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import av
import pytest

from flowchunk.cli.main import main
from flowchunk.envs.rollout import rollout
from flowchunk.policy.devices import choose_device
from flowchunk.policy.evaluation.intervals import wilson_interval
from tests.cli.test_main import CONSOLE_SCRIPT

KEYS = {
    "task",
    "env_id",
    "env",
    "checkpoint",
    "step",
    "seed",
    "nfe",
    "solver",
    "noise_scale",
    "n_action_steps",
    "strategy",
    "prefix_method",
    "reanchor_steps",
    "delay",
    "num_envs",
    "processes",
    "device",
    "versions",
    "episodes",
    "score_mean",
    "success_rate",
    "success_ci95",
    "seeds_overlap_selection",
    "latency_ms",
    "env_steps_per_second",
}


def evaluate(run: Path, output_dir: Path, *options: str) -> dict[str, Any]:
    assert main(["eval", str(run), f"output_dir={output_dir}", "video=0", *options]) == 0
    content = json.loads((output_dir / "eval.json").read_text())
    assert isinstance(content, dict)
    return content


@pytest.fixture(scope="module")
def report(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return evaluate(trained_run, tmp_path_factory.mktemp("eval"), "episodes=3")


def test_the_report_says_what_was_measured(report: dict[str, Any], trained_run: Path) -> None:
    assert report.keys() == KEYS
    assert report["task"] == "pusht_state"
    assert report["env_id"] == "flowchunk/PushT-v1"
    assert report["checkpoint"] == str(trained_run / "checkpoints" / "best")
    assert (report["seed"], report["nfe"], report["n_action_steps"], report["num_envs"]) == (100_000, 4, 4, 3)
    assert (report["env"], report["solver"]) == ({"observation": "state"}, "euler")
    assert (report["processes"], report["device"]) == (1, "cpu")
    assert {"flowchunk", "torch", "mujoco", "gymnasium", "numpy"} <= report["versions"].keys()


def test_the_episodes_are_there_one_by_one(report: dict[str, Any]) -> None:
    assert [set(episode) for episode in report["episodes"]] == [{"seed", "score", "success", "steps", "error"}] * 3
    assert [episode["seed"] for episode in report["episodes"]] == [100_000, 100_001, 100_002]
    for episode in report["episodes"]:
        assert 0 <= episode["score"] <= 1
        assert 1 <= episode["steps"] <= 40


def test_the_summary_follows_from_the_episodes(report: dict[str, Any]) -> None:
    successes = sum(episode["success"] for episode in report["episodes"])
    assert report["score_mean"] == pytest.approx(sum(episode["score"] for episode in report["episodes"]) / 3)
    assert report["success_rate"] == successes / 3
    assert report["success_ci95"] == list(wilson_interval(successes, 3))
    assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["p95"]
    assert report["latency_ms"].keys() == {"p50", "p95"}
    assert report["env_steps_per_second"] > 0


def test_the_same_command_gives_the_same_episodes_and_replaces_its_files(
    report: dict[str, Any], trained_run: Path, tmp_path: Path
) -> None:
    evaluate(trained_run, tmp_path, "episodes=1", "seed=7")
    again = evaluate(trained_run, tmp_path, "episodes=3")
    assert again["episodes"] == report["episodes"]
    assert [path.name for path in tmp_path.iterdir()] == ["eval.json"]


def test_fewer_environments_at_a_time_change_the_batch_and_not_the_episodes(
    report: dict[str, Any], trained_run: Path, tmp_path: Path
) -> None:
    one_by_one = evaluate(trained_run, tmp_path, "episodes=2", "num_envs=1")
    assert one_by_one["num_envs"] == 1
    for ours, theirs in zip(one_by_one["episodes"], report["episodes"], strict=False):
        assert ours["seed"] == theirs["seed"]
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-3)  # matrices of other sizes round otherwise


def test_options_reach_the_rollout(report: dict[str, Any], trained_run: Path, tmp_path: Path) -> None:
    other = evaluate(trained_run, tmp_path, "episodes=2", "seed=100001", "nfe=1", "n_action_steps=16")
    assert (other["seed"], other["nfe"], other["n_action_steps"]) == (100_001, 1, 16)
    assert [episode["seed"] for episode in other["episodes"]] == [100_001, 100_002]
    assert other["episodes"] != report["episodes"][1:]


@pytest.mark.parametrize("option", ["nfe=1", "n_action_steps=1"])
def test_each_option_changes_what_happens(
    option: str, report: dict[str, Any], trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: dict[str, Any] = {}

    def spy(policy: Any, make_env: Any, execution: Any, **options: Any) -> Any:
        received.update(options, n_action_steps=execution.n_action_steps)
        return rollout(policy, make_env, execution, **options)

    monkeypatch.setattr("flowchunk.cli.eval.rollout", spy)
    evaluate(trained_run, tmp_path, "episodes=1", option)
    name, _, value = option.partition("=")
    assert received[name] == int(value)


def test_the_report_tells_other_conditions_apart(trained_run: Path, tmp_path: Path) -> None:
    options = ("nfe=2", "solver=midpoint", "env.goal_pose=[200,300,0.5]", "episodes=2", "num_envs=1")
    moved = evaluate(trained_run, tmp_path, *options)
    assert (moved["solver"], moved["nfe"], moved["num_envs"]) == ("midpoint", 2, 1)
    assert moved["env"] == {"observation": "state", "goal_pose": [200, 300, 0.5]}


def test_a_device_can_be_chosen(report: dict[str, Any], trained_run: Path, tmp_path: Path) -> None:
    assert evaluate(trained_run, tmp_path, "episodes=3", "device=cpu")["episodes"] == report["episodes"]
    found = evaluate(trained_run, tmp_path, "episodes=1", "device=auto")["device"]
    assert found.partition(":")[0] == choose_device("auto").type


def test_the_report_stands_beside_the_run_by_default(trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    assert main(["eval", str(run / "checkpoints" / "last"), "episodes=1", "video=0"]) == 0
    content = json.loads((run / "eval" / "eval.json").read_text())
    assert content["checkpoint"] == str(run / "checkpoints" / "last")


def test_a_video_of_the_first_episode_is_written(trained_run: Path, tmp_path: Path) -> None:
    report = evaluate(trained_run, tmp_path, "episodes=1", "video=1", "env.render_size=128")
    (file,) = (tmp_path / "videos").iterdir()
    assert file.name == "episode_100000.mp4"
    with av.open(file) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == (128, 128)
        assert stream.average_rate == 10
        assert len(list(container.decode(stream))) == report["episodes"][0]["steps"]


def videos(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "videos").iterdir())


def test_videos_are_of_the_episodes_in_the_report(trained_run: Path, tmp_path: Path) -> None:
    evaluate(trained_run, tmp_path, "episodes=1", "seed=5", "video=3", "env.render_size=32")
    assert videos(tmp_path) == ["episode_5.mp4"]
    (tmp_path / "videos" / "mine.mp4").touch()
    evaluate(trained_run, tmp_path, "episodes=2", "seed=9", "video=2", "env.render_size=32")
    assert videos(tmp_path) == ["episode_10.mp4", "episode_9.mp4", "mine.mp4"]
    evaluate(trained_run, tmp_path, "episodes=1")
    assert videos(tmp_path) == ["mine.mp4"]


def test_the_report_is_kept_if_the_video_is_too_small(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(trained_run, tmp_path, "episodes=1", "video=1", "env.render_size=1")
    assert "no video: " in capsys.readouterr().out


@pytest.mark.parametrize("columns", ["80", "30"])
def test_a_narrow_terminal_cuts_nothing(
    columns: str, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    report = evaluate(trained_run, tmp_path, "episodes=1", "n_action_steps=3")
    _, title, shown = capsys.readouterr().out.partition("flowchunk/PushT-v1, 1 episodes from seed 100000\n")
    assert title
    assert "…" not in shown
    assert f"written: {tmp_path / 'eval.json'}\n" in shown, "in one piece, to be copied"
    for text in ("n_action_steps", f"{report['score_mean']:.3f}", f"{report['env_steps_per_second']:,.0f}"):
        assert columns == "30" or text in shown


def test_a_terminal_limited_to_ascii_gets_the_table_and_the_video(trained_run: Path, tmp_path: Path) -> None:
    command = ["eval", str(trained_run), f"output_dir={tmp_path}", "episodes=1", "env.render_size=32"]
    done = subprocess.run(
        [str(CONSOLE_SCRIPT), *command],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "40"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"n_action_steps" in done.stdout
    assert videos(tmp_path) == ["episode_100000.mp4"]


def test_the_table_shows_the_numbers(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = evaluate(trained_run, tmp_path, "episodes=1")
    shown = capsys.readouterr().out
    assert "flowchunk/PushT-v1, 1 episodes from seed 100000" in shown
    assert f"{report['score_mean']:.3f}" in shown
    assert str(tmp_path / "eval.json") in shown


def test_another_environment_with_the_same_specs_can_be_asked_for(trained_run: Path, tmp_path: Path) -> None:
    moved = evaluate(trained_run, tmp_path, "episodes=1", "env.goal_pose=[100,100,0]")
    again = evaluate(trained_run, tmp_path, "episodes=1", "env_id=flowchunk/PushT-v1", "env.goal_pose=[100,100,0]")
    assert moved["episodes"] == again["episodes"]
