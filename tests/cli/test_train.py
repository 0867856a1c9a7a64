"""flowchunk train: what a run leaves, going on after an interruption, fine-tuning, and choosing the best."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import zarr
from safetensors.torch import load_file

from flowchunk.cli.main import main
from flowchunk.cli.simulation import environment_maker
from flowchunk.envs.rollout import Episode, Rollout
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.networks import NETWORKS

NETWORK_SIZES = {
    "mlp": ("network.width=32", "network.blocks=1"),
    "mixer": ("network.width=32", "network.blocks=1"),
    "dit": ("network.width=32", "network.blocks=1", "network.heads=2"),
    "unet1d": ("network.channels=[16,32]",),
    "gru": ("network.width=32", "network.blocks=1"),
}


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def description(checkpoint: Path) -> dict[str, Any]:
    content = json.loads((checkpoint / "checkpoint.json").read_text())
    assert isinstance(content, dict)
    return content


def pusht(store: Path, run: Path, *more: str) -> list[str]:
    return ["train", "task=pusht_state", f"dataset.path={store}", f"output_dir={run}", *more]


def pickplace(store: Path, run: Path, *more: str) -> list[str]:
    return ["train", "task=pickplace_state", f"dataset.path={store}", f"output_dir={run}", *more]


# What a run leaves


def test_a_run_leaves_checkpoints_metrics_options_and_a_picture(trained_run: Path) -> None:
    for name in ("last", "best"):
        assert description(trained_run / "checkpoints" / name)["kind"] == "chunk_policy"
    assert (trained_run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "batch_size: 16" in (trained_run / "config.yaml").read_text()
    assert list((trained_run / "tensorboard").iterdir())
    steps = [entry["step"] for entry in metrics(trained_run) if "loss" in entry]
    assert steps == [3, 6]
    assert [entry["step"] for entry in metrics(trained_run) if "validation_loss" in entry] == [2, 4, 6]
    assert not list(trained_run.rglob(".*")), "nothing half-written is left"


def test_a_checkpoint_remembers_task_environment_and_step(trained_run: Path) -> None:
    training = description(trained_run / "checkpoints" / "last")["training"]
    assert training["task"] == "pusht_state"
    assert training["env_id"] == "flowchunk/PushT-v1"
    assert training["env"] == {"observation": "state"}
    assert training["step"] == training["steps"] == 6


def test_the_plan_is_printed_before_training(
    pickplace_store: Path, tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(pickplace(pickplace_store, tmp_path / "run", *tiny)) == 0
    plan, _, afterwards = capsys.readouterr().out.partition("training ")
    assert afterwards
    policy = ChunkPolicy.load(tmp_path / "run")
    parameters = sum(weight.numel() for weight in policy.parameters())
    assert f"mlp with {parameters / 1e6:.2f} M parameters" in plan
    windows = [int(number) for number in re.findall(r"(\d+) (?:windows to train on|to validate)", plan)]
    assert sum(windows) == zarr.open_group(pickplace_store, mode="r")["meta/episode_ends"][-1]  # type: ignore[index]
    assert re.search(r"\d+ MiB of data, weights and optimiser on cpu", plan)
    assert re.search(r"6 steps of 16: about \d+\.\d minutes", plan)


@pytest.mark.parametrize("network", NETWORK_SIZES)
def test_every_network_trains(network: str, pusht_store: Path, tmp_path: Path, tiny: tuple[str, ...]) -> None:
    small = [*tiny[2:], "training.steps=2", "training.log_every=2", f"network={network}", *NETWORK_SIZES[network]]
    assert main(pusht(pusht_store, tmp_path / "run", *small)) == 0
    assert ChunkPolicy.load(tmp_path / "run").config.network == network
    assert [entry["step"] for entry in metrics(tmp_path / "run") if entry.get("loss", 0) > 0] == [2]


def test_every_network_is_offered() -> None:
    assert NETWORK_SIZES.keys() == NETWORKS.keys()


def test_arguments_of_the_environment_are_saved_and_inherited_by_eval(
    pusht_store: Path, tmp_path: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, made = tmp_path / "run", []
    assert main(pusht(pusht_store, run, "env.physics_step=0.005", *tiny)) == 0
    saved = {"observation": "state", "physics_step": 0.005}
    assert description(run / "checkpoints" / "best")["training"]["env"] == saved

    def spy(env_id: str, options: dict[str, Any]) -> Any:
        made.append(options)
        return environment_maker(env_id, options)

    monkeypatch.setattr("flowchunk.cli.eval.environment_maker", spy)
    assert main(["eval", str(run), "episodes=1", "video=0"]) == 0
    assert main(["eval", str(run), "episodes=1", "video=0", "env.physics_step=0.01"]) == 0
    assert made == [saved, saved | {"physics_step": 0.01}]


# Going on


def test_a_folder_that_holds_a_run_is_refused(
    trained_run: Path, pusht_store: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in trained_run.rglob("*") if path.is_file()}
    assert main(pusht(pusht_store, trained_run, *tiny)) == 1
    message = capsys.readouterr().err
    assert str(trained_run) in message
    assert "training.resume=true" in message
    assert {path: path.read_bytes() for path in trained_run.rglob("*") if path.is_file()} == before


def test_a_resumed_run_ends_as_if_it_had_not_been_interrupted(
    trained_run: Path,
    interrupted_run: Path,
    pusht_store: Path,
    tmp_path: Path,
    tiny: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    shutil.copytree(interrupted_run, run)
    assert description(run / "checkpoints" / "last")["training"]["step"] == 2
    assert main(pusht(pusht_store, run, *tiny, "training.resume=true")) == 0
    assert "resuming from step 2" in capsys.readouterr().out
    for name in ("last/model", "last/training_state", "best/model"):
        file = f"checkpoints/{name}.safetensors"
        ours, theirs = load_file(run / file), load_file(trained_run / file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    timeless = [
        [{k: v for k, v in entry.items() if k != "steps_per_second"} for entry in metrics(one)]
        for one in (run, trained_run)
    ]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("training.learning_rate=0.002", "training.learning_rate: 0.001 then, 0.002 now"),
        ("seed=1", "seed: 0 then, 1 now"),
        ("env.physics_step=0.005", "env.physics_step: None then, 0.005 now"),
        ("network.width=16", "network.width: 32 then, 16 now"),
    ],
)
def test_resuming_with_other_options_is_refused(
    override: str,
    named: str,
    interrupted_run: Path,
    pusht_store: Path,
    tiny: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(pusht(pusht_store, interrupted_run, *tiny, "training.resume=true", override)) == 1
    assert f"({named})" in capsys.readouterr().err


def test_resuming_where_nothing_is_starts_a_run(pusht_store: Path, tmp_path: Path, tiny: tuple[str, ...]) -> None:
    assert main(pusht(pusht_store, tmp_path / "run", *tiny, "training.resume=true")) == 0
    assert [entry["step"] for entry in metrics(tmp_path / "run") if "loss" in entry] == [3, 6]


# Fine-tuning


def test_fine_tuning_starts_from_the_weights_and_the_normaliser_of_a_checkpoint(
    trained_run: Path, pusht_store: Path, tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    run = tmp_path / "run"
    negligible = (
        "training.steps=2",
        "training.learning_rate=1e-12",
        "network.width=16",
        "dataset.normalizer.state=gaussian",
    )
    assert main(pusht(pusht_store, run, *tiny, f"training.init_from={trained_run}", *negligible)) == 0
    tuned, original = ChunkPolicy.load(run), ChunkPolicy.load(trained_run)
    assert tuned.config == original.config
    assert tuned.normalizer.to_json() == original.normalizer.to_json()
    for name, value in original.state_dict().items():
        torch.testing.assert_close(tuned.state_dict()[name], value, atol=1e-7, rtol=0)


def test_fine_tuning_learns(trained_run: Path, pusht_store: Path, tmp_path: Path, tiny: tuple[str, ...]) -> None:
    assert main(pusht(pusht_store, tmp_path / "run", *tiny, f"training.init_from={trained_run}")) == 0
    tuned, original = ChunkPolicy.load(tmp_path / "run").state_dict(), ChunkPolicy.load(trained_run).state_dict()
    assert any(not torch.equal(value, original[name]) for name, value in tuned.items())


def test_fine_tuning_for_another_robot_is_refused(
    trained_run: Path, pickplace_store: Path, tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(pickplace(pickplace_store, tmp_path / "run", *tiny, f"training.init_from={trained_run}")) == 1
    message = capsys.readouterr().err
    assert str(trained_run) in message
    assert str(pickplace_store) in message


# Choosing the best


def test_the_simulation_is_asked_how_good_a_policy_is(pusht_store: Path, tmp_path: Path, tiny: tuple[str, ...]) -> None:
    run = tmp_path / "run"
    assert main(pusht(pusht_store, run, *tiny, "evaluation.episodes=2", "training.evaluate_every=6")) == 0
    (measured,) = [entry for entry in metrics(run) if "success_rate" in entry]
    assert measured["step"] == 6
    assert 0 <= measured["score"] <= 1
    assert measured["success_rate"] in (0, 0.5, 1)
    assert measured["score"] == pytest.approx((measured["score_mean"] + measured["success_rate"]) / 2)
    remembered = description(run / "checkpoints" / "best")["training"]["metrics"]
    assert remembered == {key: value for key, value in measured.items() if key != "step"}


def test_the_best_score_in_simulation_chooses_the_best_checkpoint(
    pusht_store: Path, tmp_path: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, asked = iter([0.2, 0.9, 0.1]), []

    def rollout(policy: Any, make_env: Any, execution: Any, **options: Any) -> Rollout:
        asked.append(options)
        return Rollout((Episode(options["seed"], next(scores), False, 1),), 1.0, ({},))

    monkeypatch.setattr("flowchunk.cli.train.rollout", rollout)
    assert main(pusht(pusht_store, tmp_path / "run", *tiny, "evaluation.episodes=7", "evaluation.nfe=2")) == 0
    best = description(tmp_path / "run" / "checkpoints" / "best")["training"]
    assert (best["step"], best["metrics"]["score_mean"]) == (4, 0.9)
    assert asked == [{"episodes": 7, "seed": 300_000, "nfe": 2}] * 3
    assert description(tmp_path / "run" / "checkpoints" / "last")["training"]["step"] == 6


# Data and environment have to agree


def test_a_store_of_another_action_size_is_refused(
    pickplace_store: Path, tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(pusht(pickplace_store, tmp_path / "run", *tiny)) == 1
    message = capsys.readouterr().err
    assert "the environment has 2 action dimensions" in message
    assert f"{pickplace_store} has 7" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("spec", "unit"), [("action_spec", "rad"), ("observation_spec", "m")])
def test_a_store_in_another_unit_is_refused(
    spec: str,
    unit: str,
    pickplace_store: Path,
    tmp_path: Path,
    tiny: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = tmp_path / "store.zarr"
    shutil.copytree(pickplace_store, store)
    root = zarr.open_group(store, mode="r+")
    attributes: Any = root.attrs["flowchunk"]
    if spec == "action_spec":
        attributes[spec]["dimensions"][0]["unit"] = "furlong"
    else:
        attributes[spec]["state"]["units"][-7] = "furlong"
    root.attrs["flowchunk"] = attributes
    assert main(pickplace(store, tmp_path / "run", *tiny)) == 1
    message = capsys.readouterr().err
    assert "the environment says" in message
    assert f"'{unit}'" in message
    assert f"{store} says" in message
    assert "'furlong'" in message
    assert not (tmp_path / "run").exists()
