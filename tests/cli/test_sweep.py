"""flowchunk sweep: quality and latency for each number of network evaluations; invalid numbers are marked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from PIL import Image

from flowchunk.cli.main import main
from flowchunk.envs.rollout import rollout
from flowchunk.policy.diffusion.objectives import make_objective, objective_names
from flowchunk.policy.evaluation.intervals import wilson_interval

MEASURES = {"sliced_wasserstein", "energy_distance"}


def swept(run: Path, folder: Path, *options: str) -> dict[str, Any]:
    assert main(["sweep", str(run), f"output_dir={folder}", *options]) == 0
    return report(folder)


def report(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "sweep.json").read_text())
    assert isinstance(content, dict)
    return content


def is_blank(file: Path) -> bool:
    with Image.open(file) as image:
        return len(np.unique(np.asarray(image.convert("L")))) <= 10


@pytest.fixture(scope="module")
def of_policy(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of a policy over three episodes."""
    folder = tmp_path_factory.mktemp("sweep")
    swept(trained_run, folder, "nfe=[1,4]", "episodes=3")
    return folder


@pytest.fixture(scope="module")
def of_toy(toy_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of a generative model with a solver that admits only even numbers."""
    folder = tmp_path_factory.mktemp("sweep")
    swept(toy_run, folder, "nfe=[1,2,4]", "n=50", "solver=heun")
    return folder


# Policies


def test_a_policy_gets_score_success_and_latency(of_policy: Path, trained_run: Path) -> None:
    content = report(of_policy)
    assert content["kind"] == "chunk_policy"
    assert content["checkpoint"] == str(trained_run / "checkpoints" / "best")
    assert (content["seed"], content["floor"]) == (100_000, {})
    assert (content["env_id"], content["env"]) == ("flowchunk/PushT-v1", {"observation": "state"})
    assert (content["episodes"], content["num_envs"], content["n_action_steps"]) == (3, 3, 4)
    assert (content["solver"], content["device"], content["processes"]) == ("euler", "cpu", 1)
    assert {"flowchunk", "torch", "mujoco"} <= content["versions"].keys()
    assert [row["nfe"] for row in content["rows"]] == [1, 4]
    for row in content["rows"]:
        assert row.keys() == {"nfe", "score", "score_ci95", "success", "success_ci95", "latency_ms"}
        assert 0 <= row["score_ci95"][0] <= row["score"] <= row["score_ci95"][1] <= 1
        assert row["success_ci95"] == list(wilson_interval(round(3 * row["success"]), 3))
        assert 0 < row["latency_ms"]["p50"] <= row["latency_ms"]["p95"]


def test_a_policy_scores_as_in_eval(of_policy: Path, trained_run: Path, tmp_path: Path) -> None:
    assert main(["eval", str(trained_run), f"output_dir={tmp_path}", "video=0", "episodes=3", "nfe=4"]) == 0
    evaluated = json.loads((tmp_path / "eval.json").read_text())
    row = report(of_policy)["rows"][1]
    assert (row["score"], row["success"]) == (evaluated["score_mean"], evaluated["success_rate"])


def test_one_episode_is_enough(trained_run: Path, tmp_path: Path) -> None:
    (row,) = swept(trained_run, tmp_path, "nfe=[1]", "episodes=1")["rows"]
    assert row["score_ci95"] == [row["score"], row["score"]]


def test_a_solver_of_policies_can_be_chosen(of_policy: Path, trained_run: Path, tmp_path: Path) -> None:
    refused, other = swept(trained_run, tmp_path, "nfe=[1,4]", "episodes=3", "solver=heun")["rows"]
    assert "heun" in refused["refused"]
    assert other["score"] != report(of_policy)["rows"][1]["score"]


@pytest.fixture
def short_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arm's task is over after 16 steps."""
    monkeypatch.setattr(gymnasium.spec("flowchunk/PickPlace-v1"), "max_episode_steps", 16)


@pytest.mark.usefixtures("short_tasks")
@pytest.mark.parametrize("objective", objective_names())
def test_a_robots_policy_of_every_objective_is_trained_evaluated_and_swept(
    objective: str, pickplace_store: Path, tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    run, robot = tmp_path / "run", ("task=pickplace_state", f"dataset.path={pickplace_store}")
    assert main(["train", *robot, f"output_dir={run}", f"objective={objective}", *tiny]) == 0
    assert main(["eval", str(run), "episodes=1", "video=0"]) == 0
    valid_nfe = make_objective(objective).valid_nfe
    (valid,) = valid_nfe or (4,)
    assert json.loads((run / "eval" / "eval.json").read_text())["nfe"] == valid
    rows = swept(run, tmp_path / "sweep", "nfe=[1,2]", "episodes=2")["rows"]
    assert [row["nfe"] for row in rows if "refused" not in row] == list(valid_nfe or (1, 2))


# Models of other data


def test_a_generative_model_gets_its_measures_beside_their_floor(of_toy: Path) -> None:
    content = report(of_toy)
    assert content["kind"] == "generative_model"
    assert content["floor"].keys() == MEASURES | {f"{name}_std" for name in MEASURES}
    assert (content["task"], content["n"], content["guidance"]) == ("toy2d", 50, 1.0)
    assert (content["solver"], content["device"]) == ("heun", "cpu")
    refused, *rows = content["rows"]
    assert [row["nfe"] for row in rows] == [2, 4]
    for row in rows:
        assert row.keys() == {"nfe", *MEASURES, *(f"{name}_std" for name in MEASURES), "latency_ms"}
        assert all(row[name] > 0 and content["floor"][name] > 0 for name in MEASURES)
    assert refused == {"nfe": 1, "refused": "nfe=1: heun needs a positive multiple of 2 evaluations"}


def test_the_same_sweep_gives_the_same_measures(of_toy: Path, toy_run: Path, tmp_path: Path) -> None:
    again = swept(toy_run, tmp_path, "nfe=[4]", "n=50", "solver=heun")
    assert again["floor"] == report(of_toy)["floor"]
    assert {name: again["rows"][0][name] for name in MEASURES} == {
        name: report(of_toy)["rows"][2][name] for name in MEASURES
    }


def test_guidance_is_swept(image_run: Path, tmp_path: Path) -> None:
    odd, even = swept(image_run, tmp_path, "nfe=[1,2]", "guidance=1.5", "n=12")["rows"]
    assert "give an even number" in odd["refused"]
    measures = ("kernel_distance", "class_accuracy")
    assert even.keys() == {"nfe", *measures, *(f"{name}_std" for name in measures), "latency_ms"}


# What is shown


@pytest.mark.parametrize("which", ["of_policy", "of_toy"])
def test_a_plot_is_written(which: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(which)
    assert {file.name for file in folder.iterdir()} == {"sweep.json", "sweep.png"}
    assert not is_blank(folder / "sweep.png")


def test_the_table_shows_refused_numbers_as_dashes(
    toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = swept(toy_run, tmp_path, "nfe=[1,2]", "n=50", "solver=heun")
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["1", "-", "-", "-"] in lines
    for name, values in (("floor", content["floor"]), ("2", content["rows"][1])):
        (shown,) = [line for line in lines if line[:1] == [name]]
        assert shown[1:4] == [f"{values['sliced_wasserstein']:.4f}", "±", f"{values['sliced_wasserstein_std']:.4f}"]


def test_a_narrow_terminal_cuts_nothing(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "45")
    content = swept(toy_run, tmp_path, "nfe=[2]", "n=50")
    _, title, shown = capsys.readouterr().out.partition(f"{content['checkpoint']}\n")
    assert title
    assert "…" not in shown
    assert f"written: {tmp_path / 'sweep.json'}\nwritten: {tmp_path / 'sweep.png'}\n" in shown


# What goes wrong


def test_a_folder_that_cannot_be_made_is_found_before_anything_is_measured(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "flowchunk.cli.eval.rollout", lambda *_, **__: pytest.fail("measured before the folder was checked")
    )
    (tmp_path / "a_file").touch()
    assert main(["sweep", str(trained_run), f"output_dir={tmp_path / 'a_file' / 'sweep'}", "nfe=[1]"]) == 1
    assert "a_file" in capsys.readouterr().err


def test_rows_are_kept_whatever_happens_to_later_ones(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_at_four(*arguments: Any, **options: Any) -> Any:
        if options["nfe"] == 4:
            raise KeyboardInterrupt
        return rollout(*arguments, **options)

    monkeypatch.setattr("flowchunk.cli.eval.rollout", fails_at_four)
    options = ["nfe=[1,2,4]", "episodes=2", f"output_dir={tmp_path}"]
    assert main(["sweep", str(trained_run), *options]) == 130
    assert [row["nfe"] for row in report(tmp_path)["rows"]] == [1, 2]
    assert [file.name for file in tmp_path.iterdir()] == ["sweep.json"]


def test_numbers_that_are_not_admitted_at_all_leave_nothing(toy_run: Path, tmp_path: Path) -> None:
    assert main(["sweep", str(toy_run), "nfe=[1,3]", "solver=heun", f"output_dir={tmp_path / 'new'}"]) == 1
    assert not (tmp_path / "new").exists()


def test_the_sweep_stands_beside_the_run_by_default(toy_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(toy_run, run)
    assert main(["sweep", str(run), "nfe=[1]", "n=20"]) == 0
    assert [row["nfe"] for row in report(run / "sweep")["rows"]] == [1]


def test_the_starting_noise_can_be_scaled(trained_run: Path, tmp_path: Path) -> None:
    reports = {}
    for scale in ("0.0", "1.0"):
        common = ["episodes=2", f"noise_scale={scale}", "env.render_size=8"]
        assert main(["sweep", str(trained_run), "nfe=[1]", *common, f"output_dir={tmp_path / scale}"]) == 0
        assert main(["eval", str(trained_run), "nfe=1", "video=0", *common, f"output_dir={tmp_path / scale}"]) == 0
        swept, evaluated = (json.loads((tmp_path / scale / name).read_text()) for name in ("sweep.json", "eval.json"))
        assert swept["noise_scale"] == evaluated["noise_scale"] == float(scale)
        assert swept["rows"][0]["score"] == evaluated["score_mean"]
        reports[scale] = evaluated["episodes"]
    assert reports["0.0"] != reports["1.0"]


def test_noise_that_cannot_be_scaled_is_refused(
    trained_run: Path, toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, message in (
        (["eval", str(trained_run), "noise_scale=-1"], "noise_scale=-1.0 must be at least 0"),
        (["eval", str(trained_run), "noise_scale=much"], "noise_scale=much must be a number"),
        (["sweep", str(toy_run), "noise_scale=0.5"], "noise_scale=0.5 is for policies only"),
    ):
        assert main([*command, f"output_dir={tmp_path / 'out'}"]) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
