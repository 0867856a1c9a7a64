"""flowchunk grid: every combination once, whatever happens to one of them, and nothing twice."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import pytest

from flowchunk.cli.grid_plan import plan_grid
from flowchunk.cli.grid_report import groups_of
from flowchunk.cli.grid_training import is_finished
from flowchunk.cli.main import main
from tests.cli.test_main import CONSOLE_SCRIPT
from tests.cli.training_commands import description, metrics

TOY = "task=toy2d"


def grid(folder: Path, *arguments: str) -> list[str]:
    return ["grid", "train", *arguments, f"output_dir={folder}"]


# The plan


def test_every_combination_has_a_folder_named_by_what_differs(tmp_path: Path) -> None:
    runs = plan_grid([TOY, "network.width=16,32", "dataset=spiral", "seed=0,1,2"], tmp_path)
    expected = [*product(("16", "32"), ("0", "1", "2"))]
    assert [run.name for run in runs] == [f"width={width}_seed={seed}" for width, seed in expected]
    for run, (width, seed) in zip(runs, expected, strict=True):
        assert run.values == {"network.width": width, "seed": seed}
        assert run.folder == tmp_path / run.name
        assert run.arguments == (TOY, f"network.width={width}", "dataset=spiral", f"seed={seed}")
        assert run.command == [*run.arguments, "training.resume=true", f"output_dir={run.folder}"]


def test_commas_in_brackets_quotes_and_existing_paths_separate_nothing(tmp_path: Path) -> None:
    (path := tmp_path / "a,b.zarr").touch()
    arguments = [
        "task=pusht_state",
        f"dataset.path={path}",
        "env.goal_pose=[1,2,0.5],[3,4,0]",
        "dataset.sources.keypoints='state[:2],x'",
    ]
    first, second = plan_grid(arguments, tmp_path)
    assert first.arguments == (*arguments[:2], "env.goal_pose=[1,2,0.5]", arguments[3])
    assert second.values == {"env.goal_pose": "[3,4,0]"}
    assert (first.name, second.name) == ("goal_pose=1-2-0.5", "goal_pose=3-4-0")


def test_options_that_end_in_the_same_word_are_named_in_full(tmp_path: Path) -> None:
    names = [run.name for run in plan_grid([TOY, "seed=0,1", "evaluation.seed=5,6"], tmp_path)]
    assert names[1] == "seed=0_evaluation.seed=6"


def test_without_alternatives_there_is_one_run(tmp_path: Path) -> None:
    (run,) = plan_grid([TOY], tmp_path)
    assert (run.name, run.values) == ("run", {})


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train"], "dataset.path=… must be given"),
        (["eval", TOY], "usage: flowchunk grid train"),
        (["train", TOY, "seed=0,0"], "has the value 0 twice"),
        (["train", TOY, "seed=0,"], "has an empty value"),
        (["train", TOY, "seed=0", "seed=1"], "seed is given twice; give all of its values once: seed=A,B"),
        (["train", TOY, "network.witdh=1,2"], "did you mean network.width"),
        (["train", TOY, "network.width=16,wide"], "network.width=wide must be a whole number"),
        (["train", TOY, "training.resume=true"], "the grid gives training.resume to each run"),
        (["train", TOY, "--cfg"], "expected KEY=VALUE"),
        (["train", TOY, "processes=0"], "processes=0 must be at least 1"),
        (["train", TOY, "print=pbs"], "print=pbs: there is slurm"),
        (["train", TOY, "dataset=spiral,gaussians"], "unknown dataset 'gaussians'"),
        (
            ["train", "task=own", "dataset.path=/x", "dataset.sources.a='b c','b/c'"],
            "would have the same folder, a=b-c",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["grid", *arguments, f"output_dir={tmp_path / 'grid'}"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert expected in message
    assert not (tmp_path / "grid").exists()


def test_a_folder_of_other_options_is_refused(
    trained_run: Path, pusht_store: Path, tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained_run, tmp_path / "run")
    same = ("task=pusht_state", f"dataset.path={pusht_store}", *tiny)
    assert [is_finished(run) for run in plan_grid(same, tmp_path)] == [True]
    assert main(grid(tmp_path, *same, "policy.horizon=8")) == 1
    assert "policy.horizon: 16 then, 8 now" in capsys.readouterr().err


def test_only_a_run_with_its_last_step_and_files_is_finished(
    interrupted_run: Path, trained_run: Path, pusht_store: Path, tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    (run,) = plan_grid(("task=pusht_state", f"dataset.path={pusht_store}", *tiny), tmp_path)
    assert not is_finished(run)
    shutil.copytree(interrupted_run, run.folder)
    (run.folder / "loss.png").touch()
    assert not is_finished(run)
    shutil.copytree(trained_run, run.folder, dirs_exist_ok=True)
    assert is_finished(run)
    (run.folder / "loss.png").unlink()
    assert not is_finished(run)


# Training


def test_runs_are_resumed_skipped_and_fail_alone(
    interrupted_run: Path, pusht_store: Path, tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    stores = f"{pusht_store},/nowhere.zarr"
    command = grid(tmp_path, "task=pusht_state", f"dataset.path={stores}", *tiny, "processes=2")
    good, bad = plan_grid(("task=pusht_state", f"dataset.path={stores}", *tiny), tmp_path)
    shutil.copytree(interrupted_run, good.folder)
    (good.folder / "metrics.jsonl").write_text('{"step": 1, "loss": 123.0}\n')  # lost if it began again
    assert main(command) == 1
    message = capsys.readouterr().err
    assert f"1 of 2 trainings failed ({bad.name}: " in message
    assert "/nowhere.zarr" in message
    assert description(good.folder / "checkpoints" / "last")["training"]["step"] == 6
    assert metrics(good.folder)[0]["loss"] == 123.0

    first, second = results = json.loads((tmp_path / "grid.json").read_text())["runs"]
    assert [result["state"] for result in results] == ["finished", "failed"]
    assert first["best"]["step"] == 6
    assert first["final"]["score"] == metrics(good.folder)[-1]["score"] == first["best"]["score"]
    assert (second["best"], second["final"], second["loss"]) == (None, None, None)
    page = (tmp_path / "grid.html").read_text()
    assert f"{bad.name} failed: " in page
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)

    before = (good.folder / "log.txt").read_bytes()
    assert main(command) == 1
    assert "1 of 2 trainings are finished already" in capsys.readouterr().out
    assert (good.folder / "log.txt").read_bytes() == before


def test_ctrl_c_interrupts_every_training_and_starts_no_other(tmp_path: Path, tiny_generative: tuple[str, ...]) -> None:
    arguments = grid(tmp_path, TOY, *tiny_generative, "seed=0,1", "processes=1")
    arguments = ["training.steps=1000000" if argument == "training.steps=20" else argument for argument in arguments]
    process = subprocess.Popen([str(CONSOLE_SCRIPT), *arguments], stderr=subprocess.PIPE, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "seed=0" / "metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert b"finished trainings are kept" in errors
    assert not any(child.is_running() for child in children)
    assert not (tmp_path / "seed=1").exists()


# Slurm


def test_the_slurm_script_runs_each_training_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "my $grid's"
    arguments = (TOY, "dataset=spiral,two_moons", "seed=0,1", "processes=3", "print=slurm")
    assert main(grid(folder, *arguments)) == 0
    text = capsys.readouterr().out
    assert not folder.exists()
    assert "#SBATCH --array=0-3%3\n" in text
    (script := tmp_path / "script.sh").write_text(text)
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0

    (tmp_path / "flowchunk").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / "flowchunk").chmod(0o755)
    runs = plan_grid([TOY, "dataset=spiral,two_moons", "seed=0,1"], folder)
    for number, run in enumerate(runs):
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": str(number)}
        assert subprocess.run(["bash", str(script)], env=environment, check=False).returncode == 0
        assert (run.folder / "log.txt").read_text().splitlines() == ["train", *run.command]
    environment["SLURM_ARRAY_TASK_ID"] = str(len(runs))
    assert subprocess.run(["bash", str(script)], env=environment, check=False, capture_output=True).returncode == 2


# What is collected


def result(score: float | None, **values: str) -> dict[str, Any]:
    return {"values": values, "best": None if score is None else {"step": 1, "score": score}}


def test_runs_that_differ_only_in_their_seed_are_averaged() -> None:
    results = [
        result(0.2, width="1", seed="0"),
        result(0.4, width="1", seed="1"),
        result(None, width="1", seed="2"),
        result(0.9, width="2", seed="0"),
    ]
    (group,) = groups_of(results)
    assert (group["name"], group["values"], group["runs"]) == ("width=1", {"width": "1"}, 2)
    assert group["mean"] == pytest.approx(0.3)
    assert group["std"] == pytest.approx(0.2 / 2**0.5)
    assert groups_of([result(0.2, width="1"), result(0.3, width="2")]) == []
