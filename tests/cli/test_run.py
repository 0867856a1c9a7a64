"""flowchunk run: whole runs on the simulated robot, their files, and what is refused before anything moves."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flowchunk.cli.main import main
from flowchunk.datasets.formats import open_dataset
from tests.envs.control.faults import read_log
from tests.envs.control.small_sessions import save_policy

pytestmark = pytest.mark.real_time


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained policy of Push-T, which knows how fast its demonstrations moved."""
    return save_policy(tmp_path_factory.mktemp("policies") / "limited")


@pytest.fixture(scope="module")
def unlimited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of an earlier version, which does not."""
    return save_policy(tmp_path_factory.mktemp("policies") / "unlimited", limits=False, prefix_max=0)


def test_a_run_writes_its_reports_and_a_data_set(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log, record, output_dir = tmp_path / "robot.log", tmp_path / "recorded.zarr", tmp_path / "out"
    monkeypatch.setattr("sys.stdin", io.StringIO("perhaps\ns\nFailure\n"))
    options = ["episodes=2", "seconds=1.5", "outcome=ask", f"record={record}", f"driver.log={log}"]
    assert main(["run", str(checkpoint), f"output_dir={output_dir}", *options]) == 0
    shown = capsys.readouterr().out
    for text in (
        "50 commands per second; up to about",
        "8 actions at 10 Hz, 4 executed",
        "real_time",
        "episode 1: success or failure? [s/f] episode 1: success or failure?",
        "s, time, success",
        "s, time, failure",
        f"written: {output_dir / 'eval.json'}",
    ):
        assert text in shown
    assert re.search(r"target_x \[px\] +│ +0 +│ +512 +│ +400 ", shown), "the limits"
    _check_report(json.loads((output_dir / "run.json").read_text()))
    _check_evaluation(json.loads((output_dir / "eval.json").read_text()), checkpoint, tmp_path)
    _check_page((output_dir / "run.html").read_text())
    data = open_dataset(record)
    assert len(data.episode_lengths) == 2
    actions = np.concatenate([data.read("action", start, stop) for start, stop in _bounds(data.episode_lengths)])
    commanded = np.array([line["action"] for line in read_log(log, "command")])
    assert np.abs(actions[:, None] - commanded[None]).max(axis=2).min(axis=1).max() < 1e-3, "what was commanded"
    assert data.action_spec is not None
    assert data.action_spec.control_hz == 10


def _bounds(lengths: Any) -> list[tuple[int, int]]:
    ends = np.cumsum(lengths).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _check_report(report: dict[str, Any]) -> None:
    assert (report["stopped"], report["fault"], report["control_hz"]) == (None, None, 10)
    assert [(one["seed"], one["success"], one["score"], one["end"]) for one in report["episodes"]] == [
        (100_000, True, 1.0, "time"),
        (100_001, False, 0.0, "time"),
    ]
    assert all(abs(one["steps"] - 15) <= 2 for one in report["episodes"])
    assert report["commands"] >= 2 * 1.4 * 50
    assert set(report["stages_ms"]) == {
        "command_late", "observe", "limit", "command", "loop", "inference", "request_to_chunk",
    }  # fmt: skip
    assert report["interventions"]["velocity"] > 0
    assert sum(report["delays"].values()) == report["chunks"] > 2
    assert report["preflight"]["rate"] == 50
    assert report["preflight"]["execution"]["strategy"] == "real_time"
    assert report["smoothness"]["velocity_jump_at_boundaries"] > 0


def _check_evaluation(content: dict[str, Any], checkpoint: Path, folder: Path) -> None:
    """It has what ``flowchunk eval`` writes, so that both can be compared."""
    assert main(["eval", str(checkpoint), "episodes=1", "video=0", f"output_dir={folder / 'eval'}"]) == 0
    simulated = json.loads((folder / "eval" / "eval.json").read_text())
    assert simulated.keys() - content.keys() == {"delay", "processes", "env_steps_per_second"}, "of a simulation"
    for name in ("nfe", "solver", "noise_scale", "prefix_method", "device", "env_id", "env", "n_action_steps"):
        assert content[name] == simulated[name]
    assert simulated["episodes"][0].keys() - content["episodes"][0].keys() == {"error"}, "of a simulation"
    assert (content["success_rate"], content["score_mean"], content["task"]) == (0.5, 0.5, "pusht_state")


def _check_page(page: str) -> None:
    """It needs nothing from elsewhere."""
    assert not re.search(r"https?://|<script|<link|url\(", page)
    sources = re.findall(r'<img src="([^"]*)"', page)
    assert len(sources) == 2
    for source in sources:
        kind, _, content = source.partition(",")
        assert kind == "data:image/png;base64"
        image = Image.open(io.BytesIO(base64.b64decode(content)))
        assert image.width > 500
        assert np.asarray(image.convert("L")).std() > 5, "it is not empty"


def test_a_dry_run_of_an_older_checkpoint_takes_limits_from_the_data(
    unlimited: Path, pusht_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "robot.log"
    options = ["dry_run=true", "seconds=1", f"dataset.path={pusht_store}", f"driver.log={log}", "nfe=2"]
    assert main(["run", str(unlimited), f"output_dir={tmp_path}", *options]) == 0
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["preflight"]["execution"]["strategy"] == "asynchronous"
    assert len(report["episodes"]) == 1
    assert "nothing will be commanded" in capsys.readouterr().out
    events = {line["event"] for line in read_log(log)}
    assert not events & {"command"}
    assert not [line for line in read_log(log, "hold") if line["reason"] == "as commanded"]
    assert not (tmp_path / "eval.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["robot=toaster"], "unknown robot 'toaster'; expected one of simulated, gym, lerobot, or MODULE:CLASS"),
        (["driver.speed=3"], "robot 'simulated' takes no option ['speed']; it takes ['env_id', 'env', 'command_hz'"),
        (["robot=lerobot"], "got []; give driver.robot_type=VALUE on a command line"),
        (["driver.jitter=-1"], "jitter: expected a number of seconds from 0, got -1"),
        (["rate=5"], "rate=5: a robot needs at least as many commands per second as the chunk has actions, 10"),
        (["rate=0"], "rate=0: expected more than 0 commands per second"),
        (["robot=lerobot", "rate=-5"], "rate=-5: expected more than 0 commands per second"),
        (["episodes=0"], "episodes=0, seconds=30.0: expected at least 1, and above 0"),
        (["outcome=maybe"], "outcome=maybe: there are auto, robot, ask, none"),
        (["dry_run=true", "record=x.zarr"], "nothing is done that could be recorded"),
        (["safety.velocity_max=-1"], "safety.velocity_max=-1: expected a number of at least 0, or 2 of them"),
        (["landmarks.gaol=[1,2,3]"], "the policy's frame has no landmark gaol; it has none"),
        (["safety.scale=2"], "both must be above 0 and at most 1"),
        (
            ["env_id=flowchunk/PickPlace-v1"],
            "the policy expects ['agent_x', 'agent_y', 'block_x', 'block_y', 'block_a",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    options: list[str], message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(checkpoint), f"output_dir={tmp_path / 'out'}", *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_a_report_is_not_replaced_without_a_word(
    unlimited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["dry_run=true", "seconds=0.3", "safety.velocity_max=100", "nfe=1", f"output_dir={tmp_path}"]
    replaced = f"the report of an earlier run in {tmp_path} will be replaced; to keep both, give output_dir=DIR"
    for number in range(2):
        assert main(["run", str(unlimited), *options]) == 0
        assert (replaced in capsys.readouterr().out) == bool(number)


def test_a_recording_that_exists_is_refused_before_the_last_report_is_touched(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text("of the last run")
    (tmp_path / "mine.zarr").mkdir()
    command = ["run", str(checkpoint), f"output_dir={tmp_path / 'out'}", f"record={tmp_path / 'mine.zarr'}"]
    assert main(command) == 1
    shown = capsys.readouterr()
    assert shown.err == f"error: {tmp_path / 'mine.zarr'} exists already; choose another path, or move it away first\n"
    assert shown.out == ""
    assert (tmp_path / "out" / "run.json").read_text() == "of the last run"


def test_a_checkpoint_without_limits_is_refused_with_the_ways_out(
    unlimited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(unlimited), f"output_dir={tmp_path / 'out'}"]) == 1
    message = "give dataset.path=… of its training data, or safety.velocity_max=… in units per second"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_stop_file_of_an_earlier_run_has_to_be_removed(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "STOP").touch()
    assert main(["run", str(checkpoint), f"output_dir={tmp_path}"]) == 1
    assert f"{tmp_path / 'STOP'} exists, which stops the robot; remove it first" in capsys.readouterr().err
