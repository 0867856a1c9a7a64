"""Policies measured on recorded episodes: after training, and by ``flowchunk eval RUN dataset.path=PATH``."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from PIL import Image

from flowchunk.cli.main import main
from flowchunk.cli.open_loop import admitted_nfe, worst_dimensions
from flowchunk.cli.plots import EpisodeChunks, plot_chunks
from flowchunk.cli.recordings import load_recordings
from flowchunk.datasets.recorder import StoreWriter
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.evaluation.open_loop import (
    DimensionError,
    OpenLoopError,
    action_std,
    every_kth,
    open_loop_error,
    predict_chunks,
)
from tests.cli.training_commands import metrics
from tests.policy.small_policies import make_policy

OBSERVATION = ObservationSpec({"joints": ObservationField((3,), names=("a", "b", "c"), units=("rad",) * 3)})
ACTION = ActionSpec(tuple(ActionDimension(name, "rad", "base") for name in "abc"), control_hz=10.0)

KEYS = {
    "checkpoint",
    "dataset",
    "device",
    "episodes",
    "errors",
    "nfe",
    "noise_scale",
    "num_episodes",
    "num_windows",
    "scaled_by",
    "seed",
    "solver",
    "versions",
}


def record(path: Path, lengths: tuple[int, ...], *, seed: int, action_spec: ActionSpec = ACTION) -> Path:
    random = np.random.default_rng(seed)
    with StoreWriter(path, observation_spec=OBSERVATION, action_spec=action_spec) as writer:
        for length in lengths:
            joints = random.normal(size=(length, 3)).cumsum(0)
            writer.add_episode({"joints": joints}, joints + 0.1)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny: tuple[str, ...]) -> Path:
    """Two data sets, ``mine.zarr`` and ``other.zarr``, and ``run``, trained on the first."""
    folder = tmp_path_factory.mktemp("open_loop")
    record(folder / "mine.zarr", (20, 30, 25, 40), seed=0)
    record(folder / "other.zarr", (10, 35), seed=1)
    command = ["train", "task=own", f"dataset.path={folder / 'mine.zarr'}", f"output_dir={folder / 'run'}", *tiny]
    assert main([*command, "dataset.validation_fraction=0.5", "seed=3"]) == 0
    return folder


def report(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def evaluate(folder: Path, data: str, output_dir: Path, *options: str) -> dict[str, Any]:
    command = ["eval", str(folder / "run"), f"dataset.path={folder / data}", f"output_dir={output_dir}", *options]
    assert main(command) == 0
    return report(output_dir / "open_loop.json")


def methods(content: dict[str, Any]) -> list[tuple[str, int | None]]:
    return [(entry["method"], entry["nfe"]) for entry in content["errors"]]


# What is written


def test_training_without_an_environment_measures_the_held_out_episodes(folder: Path) -> None:
    content = report(folder / "run" / "open_loop.json")
    assert content.keys() == KEYS
    assert content["checkpoint"] == str(folder / "run" / "checkpoints" / "best")
    assert content["versions"].keys() == {"flowchunk", "torch", "numpy"}
    assert content["episodes"] == "held-out"
    assert (content["num_episodes"], content["scaled_by"]) == (2, "training actions")
    assert (content["dataset"], content["nfe"], content["seed"]) == (str(folder / "mine.zarr"), 4, 100_000)
    assert methods(content) == [
        ("policy", 1), ("policy", 4), ("policy", 10), ("hold", None), ("nearest", None), ("mean", None)
    ]  # fmt: skip
    for entry in content["errors"]:
        assert entry["normalized"] > 0
        assert len(entry["per_step"]) == 16
        assert [(d["name"], d["unit"]) for d in entry["dimensions"]] == [(name, "rad") for name in "abc"]
    with Image.open(folder / "run" / "open_loop.png") as image:
        assert image.format == "PNG"


def test_evaluating_on_the_training_data_gives_the_same_report(folder: Path, tmp_path: Path) -> None:
    content = evaluate(folder, "mine.zarr", tmp_path)
    assert content == report(folder / "run" / "open_loop.json")


def test_the_errors_are_those_of_the_library(folder: Path) -> None:
    policy = ChunkPolicy.load(folder / "run")
    dataset = {"path": str(folder / "mine.zarr"), "sources": {}}
    recordings = load_recordings(policy, folder / "run", dataset, say=print)
    assert recordings.training is not None
    assert not set(recordings.windows.first.tolist()) & set(recordings.training.first.tolist())
    indices, std = every_kth(recordings.windows), action_std(recordings.training)
    chunks = predict_chunks(policy, recordings.windows, indices, nfe=10, seed=100_000)
    error = open_loop_error(chunks, recordings.windows, indices, std=std, action_spec=ACTION)
    content = report(folder / "run" / "open_loop.json")
    assert content["errors"][2]["normalized"] == error.normalized
    assert content["num_windows"] == len(recordings.windows)


def test_all_episodes_of_another_data_set_are_measured(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = evaluate(folder, "other.zarr", tmp_path, "nfe=2", "seed=5", "solver=midpoint", "noise_scale=0.5")
    assert (content["episodes"], content["num_episodes"], content["num_windows"]) == ("all", 2, 45)
    assert (content["seed"], content["solver"], content["noise_scale"]) == (5, "midpoint", 0.5)
    assert (content["nfe"], content["scaled_by"]) == (2, "training actions")
    assert methods(content) == [("policy", 2), ("hold", None), ("nearest", None), ("mean", None)]
    shown = capsys.readouterr().out
    assert f"open-loop error on all 2 episodes of {folder / 'other.zarr'}" in shown
    assert "policy, nfe=2" in shown
    assert f"written: {tmp_path / 'open_loop.png'}" in shown


def test_the_tables_show_the_errors(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = evaluate(folder, "mine.zarr", tmp_path)
    shown = capsys.readouterr().out
    assert f"open-loop error on 2 held-out episodes of {folder / 'mine.zarr'}" in shown
    rows = {cells[0]: cells[1:] for cells in (_cells(line) for line in shown.splitlines()) if cells}
    for label, entry in zip(("policy, nfe=1", "policy, nfe=4"), content["errors"], strict=False):
        worst = max(entry["dimensions"], key=lambda dimension: float(dimension["normalized"]))
        numbers = [f"{number:.3f}" for number in (entry["normalized"], entry["per_step"][0], entry["per_step"][-1])]
        assert rows[label] == [*numbers, f"{worst['name']} {worst['normalized']:.3f}"]
    main_and_baselines = [content["errors"][1], *content["errors"][3:]]
    assert rows["b"] == ["rad", *(f"{entry['dimensions'][1]['mean_absolute']:.4g}" for entry in main_and_baselines)]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("│")[1:-1]]


def test_by_default_the_report_is_in_the_folder_of_evaluations(folder: Path, tmp_path: Path) -> None:
    run = shutil.copytree(folder / "run", tmp_path / "run")
    assert main(["eval", str(run), f"dataset.path={folder / 'other.zarr'}"]) == 0
    assert (run / "eval" / "open_loop.png").exists()
    assert report(run / "eval" / "open_loop.json")["dataset"] == str(folder / "other.zarr")


def test_a_task_with_an_environment_is_measured_without_it(trained_run: Path) -> None:
    """evaluation.episodes=0; its data set has another layout, and is mirrored."""
    content = report(trained_run / "open_loop.json")
    assert (content["episodes"], content["num_episodes"]) == ("held-out", 1)
    assert all("action_error" in entry for entry in metrics(trained_run) if "score" in entry)


def test_only_the_main_process_measures(
    folder: Path, tmp_path: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowchunk.cli.train.PartialState", lambda: SimpleNamespace(is_main_process=False))
    run = tmp_path / "run"
    assert main(["train", "task=own", f"dataset.path={folder / 'mine.zarr'}", f"output_dir={run}", *tiny]) == 0
    assert (run / "checkpoints" / "best").exists()
    assert not (run / "open_loop.json").exists()


def test_images_that_were_on_the_device_in_training_need_not_be(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    spec, random = ObservationSpec({"image": ObservationField((16, 16, 3), camera="front")}), np.random.default_rng(0)
    with StoreWriter(tmp_path / "seen.zarr", observation_spec=spec, action_spec=ACTION) as writer:
        for _ in range(3):
            writer.add_episode(
                {"image": random.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)}, random.normal(size=(12, 3))
            )
    run, data = tmp_path / "run", f"dataset.path={tmp_path / 'seen.zarr'}"
    command = ["train", "task=own", "vision=small_conv", data, "dataset.cache=ram", f"output_dir={run}", *tiny]
    assert main(command) == 0
    trained = report(run / "open_loop.json")
    assert methods(trained)[-2:] == [("nearest", None), ("mean", None)]
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("cache: ram", "cache: device"))
    assert "cache: device" in config.read_text()
    cache = f"cache_dir: {tmp_path / 'cache'}"
    config.write_text(config.read_text().replace("cache_dir: null", cache))
    assert main(["eval", str(run), data]) == 0
    assert report(run / "eval" / "open_loop.json") == trained


def test_sources_are_those_of_the_training_unless_given(folder: Path, tmp_path: Path) -> None:
    """A store of another layout, with the joints of either robot."""
    joints = np.random.default_rng(0).normal(size=(20, 6)).cumsum(0)
    root = zarr.open_group(tmp_path / "theirs.zarr", mode="w", zarr_format=2)
    root.create_array("data/qpos", data=joints)
    root.create_array("data/action", data=joints[:, 3:])
    root.create_array("meta/episode_ends", data=np.array([20]))
    run = shutil.copytree(folder / "run", tmp_path / "run")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("sources: {}", "sources:\n    joints: qpos[:3]"))
    dataset: dict[str, Any] = {"path": str(tmp_path / "theirs.zarr"), "sources": {}}
    policy = ChunkPolicy.load(run)
    for given, columns in (({}, slice(3)), ({"joints": "qpos[3:]"}, slice(3, 6))):
        recordings = load_recordings(policy, run, {**dataset, "sources": given}, say=print)
        observed = recordings.windows.observations["joints"].numpy()
        assert np.array_equal(observed, joints[:, columns].astype(np.float32))


def test_steps_that_no_episode_has_are_null(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path / "short.zarr", (5, 4), seed=2)
    command = ["eval", str(folder / "run"), f"dataset.path={tmp_path / 'short.zarr'}", f"output_dir={tmp_path}"]
    assert main(command) == 0
    for entry in report(tmp_path / "open_loop.json")["errors"]:
        assert [step is None for step in entry["per_step"]] == [False] * 5 + [True] * 11
    assert "nan" not in capsys.readouterr().out, "the last step is the last that there is"


# What is not known or not there


@pytest.mark.parametrize("missing", ["config.yaml", "data"])
def test_without_the_training_data_the_rest_is_measured(
    missing: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(folder / "run", tmp_path / "run")
    config = run / "config.yaml"
    if missing == "data":
        config.write_text(config.read_text().replace(str(folder / "mine.zarr"), str(tmp_path / "gone.zarr")))
    else:
        config.unlink()
    assert main(["eval", str(run), f"dataset.path={folder / 'mine.zarr'}", f"output_dir={tmp_path}"]) == 0
    content = report(tmp_path / "open_loop.json")
    assert (content["episodes"], content["num_episodes"], content["scaled_by"]) == ("all", 4, "these actions")
    assert methods(content) == [("policy", 1), ("policy", 4), ("policy", 10), ("hold", None)]
    said = capsys.readouterr().out
    assert "the training data cannot be read" in said
    assert (f"{run} has no config.yaml" if missing == "config.yaml" else str(tmp_path / "gone.zarr")) in said


def test_no_held_out_episodes_are_reported_after_training_and_refused_by_eval(
    folder: Path, tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = tmp_path / "run", f"dataset.path={folder / 'mine.zarr'}"
    assert main(["train", "task=own", data, f"output_dir={run}", *tiny, "dataset.validation_fraction=0"]) == 0
    assert "no episodes were held out, so there is no open-loop error" in capsys.readouterr().out
    assert not (run / "open_loop.json").exists()
    assert main(["eval", str(run), data]) == 1
    message = capsys.readouterr().err
    assert f"{run} was trained on all episodes of {folder / 'mine.zarr'}; give another data set" in message
    assert not (run / "eval").exists()


# What is refused


def test_data_that_are_not_the_policys_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    degrees = replace(ACTION, dimensions=(replace(ACTION.dimensions[0], unit="deg"), *ACTION.dimensions[1:]))
    record(tmp_path / "degrees.zarr", (5,), seed=0, action_spec=degrees)
    assert main(["eval", str(folder / "run"), f"dataset.path={tmp_path / 'degrees.zarr'}"]) == 1
    message = capsys.readouterr().err
    assert "action dimension 'a' differs: the policy has unit='rad'" in message
    assert f"{tmp_path / 'degrees.zarr'} has unit='deg'" in message


def test_a_store_without_the_arrays_is_refused(
    folder: Path, pusht_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(folder / "run"), f"dataset.path={pusht_store}"]) == 1
    assert f"{pusht_store} has no array data/joints" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["episodes=3", "video=0", "env.goal=1", "num_envs=2", "n_action_steps=2"])
def test_options_of_simulation_are_refused(option: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(folder / "run"), f"dataset.path={folder / 'mine.zarr'}", option]) == 1
    name = option.partition("=")[0]
    assert f"error: {name}: with dataset.path the policy is measured on recorded episodes" in capsys.readouterr().err


def test_an_nfe_that_is_not_admitted_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["nfe=3", "solver=heun", f"output_dir={tmp_path / 'eval'}"]
    assert main(["eval", str(folder / "run"), f"dataset.path={folder / 'mine.zarr'}", *options]) == 1
    assert "nfe=3" in capsys.readouterr().err
    assert not (tmp_path / "eval").exists()


def test_without_an_environment_both_ways_out_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(folder / "run")]) == 1
    assert "give env_id=…, or dataset.path=… of recordings" in capsys.readouterr().err


# The parts


@pytest.mark.parametrize(
    ("config", "nfe", "expected"),
    [
        ({}, None, [1, 4, 10]),
        ({"nfe": 6}, None, [1, 4, 6, 10]),
        ({}, 3, [3]),
        ({"solver": "heun"}, None, [4, 10]),
        ({"solver": "rk4"}, None, [4]),
        ({"objective": "regression"}, None, [1]),
        ({"objective": "mip"}, None, [2]),
    ],
)
def test_the_numbers_of_evaluations_are_those_that_the_policy_admits(
    config: dict[str, Any], nfe: int | None, expected: list[int]
) -> None:
    assert admitted_nfe(make_policy(**config), nfe) == expected


def test_the_worst_dimensions_are_in_their_own_order() -> None:
    dimensions = tuple(DimensionError(name, "m", 0.0, size) for name, size in zip("abcd", (1, 4, 2, 3), strict=True))
    error = OpenLoopError(1.0, (1.0,), dimensions)
    assert worst_dimensions(error, 2) == [1, 3]
    assert worst_dimensions(error, 9) == [0, 1, 2, 3]


def test_the_plot_has_a_panel_per_dimension_and_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: figures.append(figure))
    recorded = np.arange(15.0).reshape(5, 3)
    samples = np.ones((2, 2, 3, 3))
    episodes = [EpisodeChunks(number, recorded, np.array([0, 3]), samples) for number in (7, 9)]
    plot_chunks(tmp_path / "plot.png", episodes, ACTION, [0, 2])
    (figure,) = figures
    assert figure.get_suptitle() == "2 predicted chunks from each start\nthe 2 worst of 3 dimensions"
    assert [axes.get_title() for axes in figure.axes] == ["episode 7", "episode 9", "", ""]
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == ["a [rad]", "c [rad]"]
    assert figure.axes[2].get_xlabel() == "time [s]"
    line, *chunks = figure.axes[2].lines
    assert line.get_xdata().tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert line.get_ydata().tolist() == recorded[:, 2].tolist()
    assert [len(chunk.get_xdata()) for chunk in chunks] == [3, 3, 1, 2, 2, 1]  # without padding; starts between
    assert chunks[3].get_xdata().tolist() == pytest.approx([0.3, 0.4])
    assert (chunks[5].get_xdata().tolist(), chunks[5].get_ydata().tolist()) == ([pytest.approx(0.3)], [11.0])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["recorded", "predicted", "start of chunks"]


def test_the_plotted_chunks_are_several_samples_from_frames_of_one_episode(folder: Path) -> None:
    from flowchunk.cli.open_loop import sample_episode

    policy = ChunkPolicy.load(folder / "run")
    recordings = load_recordings(policy, folder / "run", {"path": str(folder / "other.zarr"), "sources": {}}, say=print)
    assert recordings.first_frames == [0, 10]
    episode = sample_episode(policy, recordings, 10, nfe=2, seed=0)
    assert episode.episode == 1
    assert np.array_equal(episode.recorded, recordings.store.read("action")[10:].astype(np.float32))
    assert episode.starts.tolist() == [0, 16, 32]
    assert episode.samples.shape == (5, 3, 16, 3)
    assert not np.array_equal(episode.samples[0], episode.samples[1])
    first = predict_chunks(policy, recordings.windows, torch.tensor([10, 26, 42]).repeat(5), nfe=2, seed=0)
    assert np.array_equal(episode.samples[:, 2], first[2::3].numpy())
