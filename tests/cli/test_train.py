"""flowchunk train: what a run leaves, and choosing the best; see also test_resuming and test_fine_tuning."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from flowchunk.cli.main import main
from flowchunk.datasets.formats.zarr_store import Store
from flowchunk.datasets.recorder import StoreWriter
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from flowchunk.envs.rollout import Episode, Rollout
from flowchunk.envs.simulation import environment_maker
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.devices import choose_device
from flowchunk.policy.fitting import fit
from flowchunk.policy.networks import NETWORKS
from flowchunk.policy.policy_config import PolicyConfig
from flowchunk.policy.training.config import TrainingConfig
from tests.cli.training_commands import description, metrics, pickplace, pusht

NETWORK_SIZES = {
    "mlp": ("network.width=32", "network.blocks=1"),
    "mixer": ("network.width=32", "network.blocks=1"),
    "dit": ("network.width=32", "network.blocks=1", "network.heads=2"),
    "unet1d": ("network.channels=[16,32]",),
    "gru": ("network.width=32", "network.blocks=1"),
}


# What a run leaves


def test_a_run_writes_checkpoints_metrics_options_and_a_plot(trained_run: Path) -> None:
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


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_a_device_is_chosen_by_name(
    device: str, pusht_store: Path, tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(pusht(pusht_store, tmp_path / "run", *tiny, f"device={device}")) == 0
    assert f"weights and optimiser on {choose_device(device)};" in capsys.readouterr().out


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

    monkeypatch.setattr("flowchunk.envs.evaluation.rollout", rollout)
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
    assert "the environment has" in message
    assert f"'{unit}'" in message
    assert f"{store} has" in message
    assert "'furlong'" in message
    assert not (tmp_path / "run").exists()


# A data set of one's own


def test_a_data_set_of_ones_own_needs_no_simulation(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    observation = ObservationSpec({"joints": ObservationField((3,), names=("a", "b", "c"), units=("rad",) * 3)})
    action = ActionSpec(tuple(ActionDimension(name, "rad", "base") for name in "abc"), control_hz=50.0)
    random, store, run = np.random.default_rng(0), tmp_path / "mine.zarr", tmp_path / "run"
    with StoreWriter(store, observation_spec=observation, action_spec=action) as writer:
        for _ in range(4):
            joints = random.normal(size=(20, 3)).cumsum(0)
            writer.add_episode({"joints": joints}, joints + 0.1)
    few = [option for option in tiny if not option.startswith("evaluation")]
    assert main(["train", "task=own", f"dataset.path={store}", f"output_dir={run}", *few]) == 0
    policy = ChunkPolicy.load(run)
    assert (policy.observation_spec, policy.action_spec) == (observation, action)
    assert policy.predict_chunk({"joints": np.zeros((1, 2, 3))}, seed=0).shape == (1, 32, 3)  # as long as at 50 Hz
    metrics_of_best = description(run / "checkpoints" / "best")["training"]["metrics"]
    assert metrics_of_best["score"] == -metrics_of_best["action_error"]


def test_training_from_python_gives_the_same_policy(
    pickplace_store: Path, tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    """The command reads options and calls ``fit``: the same numbers, bit for bit."""
    arguments = ["train", "task=own", f"dataset.path={pickplace_store}", f"output_dir={tmp_path / 'command'}", *tiny]
    assert main(arguments) == 0
    store = Store.open(pickplace_store)
    assert store.action_spec is not None
    policy = fit(
        store,
        PolicyConfig(  # what the command derives from the data set
            network_options={"width": 32, "blocks": 1},
            horizon=32,
            n_action_steps=16,
            relative_to=[f"state.{name}" for name in store.action_spec.names],
        ),
        TrainingConfig(steps=6, batch_size=16, checkpoint_every=2, log_every=3),
        output_dir=tmp_path / "python",
        device="cpu",
    )
    commanded = ChunkPolicy.load(tmp_path / "command")
    with_defaults = {**commanded.config.network_options, **policy.config.network_options}
    assert replace(policy.config, network_options=with_defaults) == commanded.config
    theirs = commanded.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in policy.state_dict().items())


def test_a_data_set_of_unknown_rate_is_refused(
    pusht_store: Path, tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "task=own", f"dataset.path={pusht_store}", f"output_dir={tmp_path / 'run'}", *tiny]) == 1
    message = capsys.readouterr().err
    assert "does not say at which rate it was recorded" in message
    assert "dataset.control_hz=10" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("lacks", "precision", "is_said"), [(True, "bf16", True), (False, "bf16", False), (True, "fp32", False)]
)
def test_bfloat16_without_instructions_for_it_is_warned_about(
    lacks: bool,
    precision: str,
    is_said: bool,
    pusht_store: Path,
    tmp_path: Path,
    tiny: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flowchunk.policy.training.run.lacks_bfloat16", lambda device: lacks)
    more = (*tiny, "device=cpu", f"training.precision={precision}")
    assert main(pusht(pusht_store, tmp_path / "run", *more)) == 0
    assert ("training.precision=bf16: this processor" in " ".join(capsys.readouterr().out.split())) == is_said
