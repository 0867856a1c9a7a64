"""flowchunk eval with delays in virtual time: options, reports and refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowchunk.cli.main import main
from flowchunk.envs.rollout import record_episode
from flowchunk.envs.virtual_delay import VirtualDelay


@pytest.fixture(scope="module")
def prefix_run(pusht_store: Path, tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Push-T policy trained with prefixes, for 6 steps."""
    run = tmp_path_factory.mktemp("runs") / "prefix"
    options = [f"dataset.path={pusht_store}", f"output_dir={run}", "policy.prefix_max=3", *tiny]
    assert main(["train", "task=pusht_state", *options]) == 0
    return run


def evaluate(run: Path, output_dir: Path, *options: str) -> dict[str, Any]:
    assert main(["eval", str(run), f"output_dir={output_dir}", "video=0", "episodes=3", *options]) == 0
    content = json.loads((output_dir / "eval.json").read_text())
    assert isinstance(content, dict)
    return content


def test_without_options_a_run_is_synchronous_and_without_delay(prefix_run: Path, tmp_path: Path) -> None:
    report = evaluate(prefix_run, tmp_path)
    assert report["strategy"] == "synchronous"
    assert report["delay"] == {"steps": 0, "jitter": 0, "drop": 0.0, "seed": 0}
    assert (report["prefix_method"], report["reanchor_steps"]) == (None, 0)


def test_each_option_changes_what_is_executed(
    prefix_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variants = {
        "waits": ("delay.steps=2",),
        "naive": ("delay.steps=2", "strategy=asynchronous"),
        "anchored": ("delay.steps=2", "strategy=asynchronous", "reanchor_steps=3"),
        "trained": ("delay.steps=2", "strategy=real_time"),
        "guided": ("delay.steps=2", "strategy=real_time", "prefix_method=guided"),
        "jitter": ("delay.steps=1", "delay.jitter=2", "strategy=asynchronous"),
        "seed": ("delay.steps=1", "delay.jitter=2", "delay.seed=1", "strategy=asynchronous"),
        "drop": ("delay.steps=2", "delay.drop=0.4", "strategy=asynchronous"),
    }
    reports = {name: evaluate(prefix_run, tmp_path / name, *options) for name, options in variants.items()}
    outcomes = {name: json.dumps(report["episodes"]) for name, report in reports.items()}
    assert len({*outcomes.values()}) == len(outcomes), outcomes
    assert reports["guided"]["prefix_method"] == "guided"
    assert reports["drop"]["delay"]["drop"] == 0.4
    assert "real_time, delay 2 control steps" in capsys.readouterr().out
    again = evaluate(prefix_run, tmp_path / "again", *variants["jitter"])
    assert again["episodes"] == reports["jitter"]["episodes"]


def test_videos_are_recorded_with_the_delay(prefix_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[VirtualDelay] = []

    def noted(*arguments: Any, delay: VirtualDelay, **options: Any) -> Iterator[np.ndarray]:
        given.append(delay)
        return record_episode(*arguments, delay=delay, **options)

    monkeypatch.setattr("flowchunk.cli.eval.record_episode", noted)
    evaluate(prefix_run, tmp_path, "delay.steps=2", "delay.seed=5", "strategy=real_time", "video=1")
    assert given == [VirtualDelay(steps=2, seed=5)]
    assert len(list((tmp_path / "videos").glob("*.mp4"))) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["strategy=fast"], "unknown strategy 'fast'; there are synchronous, asynchronous"),
        (["strategy=asynchronous", "delay.steps=5"], "n_action_steps from 5 to 11"),
        (
            ["strategy=real_time", "delay.steps=4"],
            "continues at most 3 committed actions: train it with policy.prefix_max=4",
        ),
        (["delay.steps=-1"], "delay=-1 must be at least 0 control steps"),
        (["delay.drop=1.0"], "delay.drop=1.0"),
        (["reanchor_steps=-1"], "reanchor_steps=-1 must be at least 0"),
        (["prefix_method=magic"], "magic"),
    ],
)
def test_what_cannot_be_is_refused(
    prefix_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    command = ["eval", str(prefix_run), f"output_dir={tmp_path}", "episodes=1", "video=0", *options]
    assert main(command) == 1
    assert message in capsys.readouterr().err
