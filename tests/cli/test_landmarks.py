"""Where the goal is: policies know it from the environment, when they are trained and when they are evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flowchunk.cli.eval import PolicyEvaluation
from flowchunk.cli.main import main
from flowchunk.cli.options import read_options
from flowchunk.policy.checkpoint import find_checkpoint
from flowchunk.policy.chunk_policy import ChunkPolicy
from tests.cli.training_commands import pusht

GOAL = [256.0, 256.0, 0.7853981633974483]
ELSEWHERE = [200.0, 300.0, 0.5]


def landmarks(policy: ChunkPolicy) -> dict[str, list[float]]:
    assert policy.frame is not None
    return {name: list(pose) for name, pose in policy.frame.landmarks.items()}


def load(run: Path, *options: str) -> PolicyEvaluation:
    return PolicyEvaluation.load(find_checkpoint(run), read_options("eval", list(options)), console=Console(quiet=True))


def test_a_policy_is_trained_with_the_goal_of_its_environment(trained_run: Path) -> None:
    assert landmarks(ChunkPolicy.load(trained_run)) == {"goal": GOAL}


@pytest.mark.parametrize("options", [(), ("env_id=flowchunk/PushT-v1",)])
def test_a_policy_is_told_where_the_goal_is(trained_run: Path, options: tuple[str, ...]) -> None:
    moved = load(trained_run, f"env.goal_pose={ELSEWHERE}".replace(" ", ""), *options)
    assert landmarks(moved.policy) == {"goal": ELSEWHERE}
    assert landmarks(load(trained_run, *options).policy) == {"goal": GOAL}


def train(store: Path, run: Path, tiny: tuple[str, ...], *options: str) -> dict[str, Any]:
    assert main([*pusht(store, run, *tiny), "dataset.symmetry=null", *options]) == 0
    found: dict[str, Any] = json.loads((find_checkpoint(run) / "checkpoint.json").read_text())["config"]
    return found


def test_a_goal_elsewhere_is_where_the_policy_is_trained_for(
    pusht_store: Path, tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    config = train(pusht_store, tmp_path / "run", tiny, "env.goal_pose=[200,300,0.5]")
    assert config["frame"]["landmarks"] == {"goal": ELSEWHERE}
    resumed = train(pusht_store, tmp_path / "run", tiny, "env.goal_pose=[200,300,0.5]", "training.resume=true")
    assert resumed == config
    given = ("env.goal_pose=[200,300,0.5]", "policy.frame.landmarks.goal=[200,300,0.5]")
    assert train(pusht_store, tmp_path / "given", tiny, *given) == config


def test_fine_tuning_takes_the_goal_from_its_environment(
    trained_run: Path, pusht_store: Path, tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    started = (f"training.init_from={trained_run}", "env.goal_pose=[200,300,0.5]")
    own = tuple(option for option in tiny if not option.startswith(("network", "policy")))
    assert train(pusht_store, tmp_path / "run", own, *started)["frame"]["landmarks"] == {"goal": ELSEWHERE}
    again = train(pusht_store, tmp_path / "run", own, *started, "training.resume=true")
    assert again["frame"]["landmarks"] == {"goal": ELSEWHERE}
    given = "policy.frame.landmarks.goal=[200,300,0.5]"
    assert train(pusht_store, tmp_path / "given", own, *started, given)["frame"]["landmarks"] == {"goal": ELSEWHERE}
    whole = "policy.frame.landmarks={goal: [200,300,0.5]}"
    assert train(pusht_store, tmp_path / "whole", own, *started, whole)["frame"]["landmarks"] == {"goal": ELSEWHERE}
    other = [*pusht(pusht_store, tmp_path / "other", *own), *started, "policy.frame.landmarks.goal=[256,256,0.5]"]
    assert main(other) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "policy.frame.landmarks.goal=[256, 256, 0.5], but the environment has it at [200.0, 300.0, 0.5]" in said


def test_two_places_for_one_goal_are_refused(
    pusht_store: Path, tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*pusht(pusht_store, tmp_path / "run", *tiny), "policy.frame.landmarks.goal=[1,2,3]"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "policy.frame.landmarks.goal=[1, 2, 3], but the environment has it at [256.0, 256.0, 0.785" in said
    assert not (tmp_path / "run").exists()


def test_a_policy_without_a_frame_needs_no_goal(pusht_store: Path, tmp_path: Path, tiny: tuple[str, ...]) -> None:
    assert train(pusht_store, tmp_path / "run", tiny, "policy.frame=null")["frame"] is None
    assert load(tmp_path / "run", "env.goal_pose=[200,300,0.5]").policy.frame is None


def test_a_landmark_that_nobody_knows_is_refused(
    pusht_store: Path, tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*pusht(pusht_store, tmp_path / "run", *tiny), "policy.frame.landmarks.wall=null"]) == 1
    assert "policy.frame.landmarks.wall: expected [x, y, angle]" in " ".join(capsys.readouterr().err.split())
