"""``fit``: from a store to a policy in one call, and what it refuses before anything is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from accelerate import Accelerator

from flowchunk.datasets.errors import ConfigurationError, DatasetError, FlowchunkError, SpecMismatchError
from flowchunk.datasets.formats.zarr_store import Store
from flowchunk.datasets.recorder import StoreWriter
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from flowchunk.datasets.symmetry import Symmetry, ValueTransform
from flowchunk.policy.checkpoint import read_description
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.demonstrations import DatasetOptions, load_demonstrations
from flowchunk.policy.evaluation.open_loop import evaluate_on
from flowchunk.policy.fitting import fit
from flowchunk.policy.policy_config import PolicyConfig
from flowchunk.policy.training.config import TrainingConfig
from flowchunk.policy.training.run import make_accelerator, only_training, open_run
from flowchunk.policy.training.run_log import read_metrics

JOINTS = ObservationField((3,), names=("a", "b", "c"), units=("rad",) * 3)
OBSERVATION = ObservationSpec({"joints": JOINTS})
ACTION = ActionSpec(tuple(ActionDimension(name, "rad", "base") for name in "abc"), control_hz=50.0)
POLICY = PolicyConfig(network_options={"width": 16, "blocks": 1}, horizon=4, n_action_steps=2)
TRAINING = TrainingConfig(steps=6, batch_size=8, log_every=3, checkpoint_every=2, evaluate_every=3)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four episodes of three joints that are to move on by 0.1."""
    path, random = tmp_path_factory.mktemp("stores") / "mine.zarr", np.random.default_rng(0)
    with StoreWriter(path, observation_spec=OBSERVATION, action_spec=ACTION) as writer:
        for _ in range(4):
            joints = random.normal(size=(20, 3)).cumsum(0)
            writer.add_episode({"joints": joints}, joints + 0.1)
    return path


@pytest.fixture
def store(path: Path) -> Store:
    return Store.open(path)


@pytest.fixture(scope="module")
def unspecified(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same episodes in a store that says nothing about its numbers."""
    copy, store = tmp_path_factory.mktemp("stores") / "theirs.zarr", Store.open(path)
    root = zarr.open_group(copy, mode="w", zarr_format=2)
    for key in ("joints", "action"):
        root.create_array(f"data/{key}", data=store.read(key))
    root.create_array("meta/episode_ends", data=store.episode_ends)
    return copy


def weights(policy: ChunkPolicy) -> dict[str, torch.Tensor]:
    return {name: value.cpu() for name, value in policy.state_dict().items()}


def assert_equal_weights(one: ChunkPolicy, other: ChunkPolicy) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


# What comes out


def test_a_store_is_all_it_needs(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowchunk.policy.fitting.TrainingConfig", lambda: TRAINING)
    policy = fit(store, output_dir=tmp_path / "run", device="cpu")
    assert policy.config == PolicyConfig()
    assert (policy.observation_spec, policy.action_spec) == (OBSERVATION, ACTION)
    assert not policy.training
    chunk = policy.predict_chunk({"joints": np.zeros((1, 2, 3))})
    assert chunk.shape == (1, 16, 3)
    assert np.isfinite(chunk).all()


def test_it_learns(store: Store, tmp_path: Path) -> None:
    """One action ahead, what the joints are to do is known from where they are."""
    config = replace(POLICY, network_options={"width": 64, "blocks": 2}, horizon=1, n_action_steps=1)
    training = TrainingConfig(steps=300, batch_size=64, learning_rate=5e-3, log_every=50)
    policy = fit(store, config, training, output_dir=tmp_path, device="cpu")
    losses = [entry["loss"] for entry in read_metrics(tmp_path) if "loss" in entry]
    assert losses[-1] < losses[0] / 3
    joints = store.read("joints")[:20].astype(np.float32)
    actions = policy.predict_chunk({"joints": np.stack([joints, joints], axis=1)}, nfe=10)[:, 0]
    assert np.abs(actions - joints - 0.1).mean() < 0.2 * joints.std()


def test_the_best_policy_of_the_run_is_returned(store: Store, tmp_path: Path) -> None:
    scores = iter([0.9, 0.1])
    policy = fit(
        store,
        POLICY,
        TRAINING,
        output_dir=tmp_path,
        device="cpu",
        evaluate=lambda policy: {"score": next(scores)},
        metadata={"env_id": "my_robot:Arm-v0", "env": {}},
    )
    assert_equal_weights(policy, ChunkPolicy.load(tmp_path / "checkpoints" / "best"))
    remembered = read_description(tmp_path / "checkpoints" / "best")["training"]
    assert (remembered["step"], remembered["metrics"]["score"]) == (3, 0.9)
    assert remembered["env_id"] == "my_robot:Arm-v0"


def test_without_evaluation_the_open_loop_error_chooses(store: Store, tmp_path: Path) -> None:
    """On the held-out episodes, at the default number of evaluations, scaled by the training actions."""
    dataset = DatasetOptions(validation_fraction=0.5)
    training = replace(TRAINING, steps=12, learning_rate=0.1)
    policy = fit(store, POLICY, training, dataset=dataset, output_dir=tmp_path, device="cpu")
    measured = [entry for entry in read_metrics(tmp_path) if "score" in entry]
    assert [entry["score"] for entry in measured] == [-entry["action_error"] for entry in measured]
    assert all(math.isfinite(entry["validation_loss"]) for entry in measured)
    best = max(reversed(measured), key=lambda entry: entry["score"])  # of equal scores the later
    assert read_description(tmp_path / "checkpoints" / "best")["training"]["step"] == best["step"]
    data = load_demonstrations(store, (OBSERVATION, ACTION), dataset, observation_steps=2, horizon=4, seed=0)
    assert evaluate_on(data.validation, data.training)(policy)["action_error"] == best["action_error"]


def test_with_nothing_held_out_the_last_is_the_best(store: Store, tmp_path: Path) -> None:
    fit(store, POLICY, TRAINING, dataset=DatasetOptions(validation_fraction=0), output_dir=tmp_path, device="cpu")
    assert not any("action_error" in entry for entry in read_metrics(tmp_path))
    assert read_description(tmp_path / "checkpoints" / "best")["training"]["step"] == TRAINING.steps


def test_the_same_seed_gives_the_same_policy_and_another_another(store: Store, tmp_path: Path) -> None:
    one, same, other = (
        fit(store, POLICY, replace(TRAINING, seed=seed), output_dir=tmp_path / name, device="cpu")
        for name, seed in (("one", 0), ("same", 0), ("other", 1))
    )
    assert_equal_weights(one, same)
    with pytest.raises(AssertionError):
        assert_equal_weights(one, other)


def test_specs_are_given_for_a_store_without(store: Store, unspecified: Path, tmp_path: Path) -> None:
    ours = fit(store, POLICY, TRAINING, output_dir=tmp_path / "ours", device="cpu")
    specs = (OBSERVATION, ACTION)
    theirs = fit(Store.open(unspecified), POLICY, TRAINING, specs=specs, output_dir=tmp_path / "theirs", device="cpu")
    assert_equal_weights(ours, theirs)


def test_options_of_the_data_are_used(store: Store, tmp_path: Path) -> None:
    """With its mirror image the data are symmetric about 0, so a Gaussian normaliser is not shifted."""
    mirror = ValueTransform((0, 1, 2), (-1.0,) * 3, (0.0,) * 3)
    dataset = DatasetOptions(
        validation_fraction=0.5,
        normalizer={"joints": "gaussian"},
        symmetry=Symmetry({"joints": mirror, "action": mirror}),
    )
    policy = fit(store, POLICY, TRAINING, dataset=dataset, output_dir=tmp_path, device="cpu")
    scaling = policy.normalizer.scalings["joints"]
    assert scaling.mode == "gaussian"
    assert scaling.offset == pytest.approx(np.zeros(3), abs=1e-9)
    assert policy.normalizer.scalings["action"].mode == "min_max"
    assert [entry["step"] for entry in read_metrics(tmp_path) if "validation_loss" in entry] == [3, 6]


def test_a_run_is_resumed_as_if_it_had_not_been_interrupted(store: Store, tmp_path: Path) -> None:
    def interrupt(policy: ChunkPolicy) -> dict[str, float]:
        raise KeyboardInterrupt

    measure: Callable[[ChunkPolicy], dict[str, float]] = lambda policy: {"score": 0.5}  # noqa: E731
    options: dict[str, Any] = {"device": "cpu"}
    with pytest.raises(KeyboardInterrupt):
        fit(store, POLICY, TRAINING, output_dir=tmp_path / "run", evaluate=interrupt, **options)
    resumed = fit(store, POLICY, TRAINING, output_dir=tmp_path / "run", evaluate=measure, resume=True, **options)
    whole = fit(store, POLICY, TRAINING, output_dir=tmp_path / "whole", evaluate=measure, **options)
    assert_equal_weights(resumed, whole)


def test_only_one_process_trains_in_a_folder(store: Store, tmp_path: Path) -> None:
    """Two would replace each other's checkpoints."""
    folder, refused = tmp_path / "run", "another process is training in .*run; wait for its end or stop it"
    for resume in (False, True):
        folder.mkdir(exist_ok=True)
        with only_training(folder), pytest.raises(ConfigurationError, match=refused):
            fit(store, POLICY, TRAINING, output_dir=folder, device="cpu", resume=resume)
        assert not (folder / "checkpoints").exists() or resume
        fit(store, POLICY, TRAINING, output_dir=folder, device="cpu", resume=resume)


def test_a_path_is_opened(store: Store, tmp_path: Path) -> None:
    by_path, opened = (
        fit(data, POLICY, TRAINING, output_dir=tmp_path / name, device="cpu")
        for name, data in (("path", str(store.path)), ("opened", store))
    )
    assert_equal_weights(by_path, opened)


def test_an_evaluation_without_a_score_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"must return a 'score', .* but returned {'succes': 1.0}"):
        fit(store, POLICY, TRAINING, output_dir=tmp_path, device="cpu", evaluate=lambda policy: {"succes": 1.0})


def test_resuming_where_nothing_is_starts_a_run(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(store, POLICY, TRAINING, output_dir=tmp_path / "new", device="cpu", resume=True)
    assert "new holds no run to resume, so one is begun" in capsys.readouterr().out.replace("\n", "")
    assert read_description(tmp_path / "new" / "checkpoints" / "last")["training"]["step"] == 6


def test_fine_tuning_leaves_the_given_policy_as_it_was(store: Store, tmp_path: Path) -> None:
    policy = fit(store, POLICY, TRAINING, output_dir=tmp_path / "first", device="cpu")
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    dataset = DatasetOptions(normalizer={"joints": "gaussian"})
    tuned = fit(store, policy, TRAINING, dataset=dataset, output_dir=tmp_path / "second", device="cpu")
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert tuned.config == policy.config
    assert tuned.normalizer.to_json() == policy.normalizer.to_json()
    assert any(not torch.equal(value, before[name]) for name, value in weights(tuned).items())


# What is refused


def other_unit() -> ObservationSpec:
    return ObservationSpec({"joints": replace(JOINTS, units=("rad", "deg", "rad"))})


MISMATCHES: dict[str, tuple[tuple[ObservationSpec, ActionSpec], list[str]]] = {
    "unit": ((other_unit(), ACTION), ["'joints' differs", "units[1]='deg'", "units[1]='rad'"]),
    "missing observation": (
        (ObservationSpec({**OBSERVATION.fields, "gripper": ObservationField((1,))}), ACTION),
        ["needs the observation 'gripper'", "only has ['joints']"],
    ),
    "fewer actions": (
        (OBSERVATION, ActionSpec(ACTION.dimensions[:2], 50.0)),
        ["2 action dimensions ['a', 'b']", "has 3"],
    ),
    "rate": ((OBSERVATION, replace(ACTION, control_hz=10.0)), ["10.0 Hz", "50.0 Hz"]),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_specs_that_are_not_the_stored_ones_are_named(name: str, store: Store, tmp_path: Path) -> None:
    specs, expected = MISMATCHES[name]
    with pytest.raises(SpecMismatchError) as caught:
        fit(store, POLICY, TRAINING, specs=specs, output_dir=tmp_path / "run", device="cpu")
    for part in ("the given specification", str(store.path), *expected):
        assert part in str(caught.value)
    assert not (tmp_path / "run").exists()


UNLIKE_THE_ARRAYS: dict[str, tuple[tuple[ObservationSpec, ActionSpec], list[str]]] = {
    "missing observation": (
        (ObservationSpec({**OBSERVATION.fields, "gripper": ObservationField((1,))}), ACTION),
        ["no array data/gripper", "['action', 'joints']"],
    ),
    "missing image": (
        (ObservationSpec({**OBSERVATION.fields, "front": ObservationField((8, 8, 3), camera="front")}), ACTION),
        ["no array data/front", "['action', 'joints']"],
    ),
    "shape of an observation": (
        (ObservationSpec({"joints": ObservationField((6,))}), ACTION),
        ["data/joints", "frames of shape (3,)", "expects (6,)"],
    ),
    "fewer actions": (
        (OBSERVATION, ActionSpec(ACTION.dimensions[:2], 50.0)),
        ["data/action", "frames of shape (3,)", "expects (2,)"],
    ),
}


@pytest.mark.parametrize("name", UNLIKE_THE_ARRAYS)
def test_specs_that_are_not_of_these_arrays_are_named(name: str, unspecified: Path, tmp_path: Path) -> None:
    specs, expected = UNLIKE_THE_ARRAYS[name]
    with pytest.raises(SpecMismatchError) as caught:
        fit(Store.open(unspecified), POLICY, TRAINING, specs=specs, output_dir=tmp_path / "run", device="cpu")
    for part in (str(unspecified), *expected):
        assert part in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_store_without_specs_needs_some(unspecified: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecMismatchError, match=r"does not say what its numbers mean.*specs="):
        fit(Store.open(unspecified), POLICY, TRAINING, output_dir=tmp_path / "run", device="cpu")


def test_a_policy_for_another_robot_is_not_tuned(store: Store, unspecified: Path, tmp_path: Path) -> None:
    policy = fit(store, POLICY, TRAINING, output_dir=tmp_path / "first", device="cpu")
    specs = (other_unit(), ACTION)
    with pytest.raises(SpecMismatchError, match="'joints' differs: the policy to fine-tune has"):
        fit(Store.open(unspecified), policy, TRAINING, specs=specs, output_dir=tmp_path / "run", device="cpu")


def test_another_run_in_the_folder_is_refused(store: Store, tmp_path: Path) -> None:
    fit(store, POLICY, TRAINING, output_dir=tmp_path, device="cpu")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(ConfigurationError, match="holds a training run; give resume=True"):
        fit(store, POLICY, TRAINING, output_dir=tmp_path, device="cpu")
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_a_run_is_not_resumed_with_another_policy(store: Store, tmp_path: Path) -> None:
    fit(store, POLICY, TRAINING, output_dir=tmp_path, device="cpu")
    with pytest.raises(FlowchunkError):
        fit(store, replace(POLICY, horizon=6), TRAINING, output_dir=tmp_path, device="cpu", resume=True)


def test_data_that_are_not_finite_are_refused(unspecified: Path, tmp_path: Path) -> None:
    store = Store.open(unspecified)
    array: Any = store.zarr_arrays["joints"]
    values = array[:]
    values[5] = np.nan
    root = zarr.open_group(tmp_path / "nan.zarr", mode="w", zarr_format=2)
    for key, rows in (("joints", values), ("action", store.read("action"))):
        root.create_array(f"data/{key}", data=rows)
    root.create_array("meta/episode_ends", data=store.episode_ends)
    with pytest.raises(DatasetError, match="NaN or infinity, first in episode 0, frame 5"):
        fit(
            Store.open(tmp_path / "nan.zarr"),
            POLICY,
            TRAINING,
            specs=(OBSERVATION, ACTION),
            output_dir=tmp_path / "run",
            device="cpu",
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(POLICY, relative_to=("joints.0",)), "1 entries for 3 action dimensions"),
        (replace(POLICY, relative_to=("joints.0", "joints.9", None)), "got 'joints.9'"),
        (replace(POLICY, vision="small_conv"), "small_conv"),
        (replace(POLICY, network_options={"heads": 2}), "cannot make network 'mlp'"),
    ],
)
def test_a_policy_that_cannot_be_made_for_the_data_is_refused(
    config: PolicyConfig, message: str, store: Store, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        fit(store, config, TRAINING, output_dir=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_normaliser_for_what_is_not_there_is_refused(store: Store, tmp_path: Path) -> None:
    dataset = DatasetOptions(normalizer={"gripper": "gaussian"})
    with pytest.raises(ConfigurationError, match=r"dataset.normalizer names \['gripper'\]"):
        fit(store, POLICY, TRAINING, dataset=dataset, output_dir=tmp_path / "run", device="cpu")


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_share_that_is_none_is_refused(fraction: float) -> None:
    with pytest.raises(ConfigurationError, match="validation_fraction"):
        DatasetOptions(validation_fraction=fraction)


@pytest.mark.parametrize(("name", "value"), [("precision", "fp8"), ("matmul_precision", "low")])
def test_an_unknown_precision_is_refused(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"training.{name}={value}"):
        TrainingConfig(**{name: value})  # type: ignore[arg-type]


# The machine


def test_an_unknown_device_is_refused_before_the_data_are_read(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="unknown device 'abacus'; there are auto, cpu, cuda, cuda:N and mps"):
        fit(store, POLICY, TRAINING, output_dir=tmp_path / "run", device="abacus")


@pytest.mark.parametrize(("device", "found"), [("cuda", "cuda"), ("cuda:1", "cuda:1"), ("mps", "mps")])
def test_the_device_is_the_one_that_was_asked_for(device: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a run of this process on the CPU, whose device accelerate would keep."""
    chosen: list[torch.device] = []
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    assert str(make_accelerator("cpu").device) == "cpu"
    assert str(make_accelerator(device).device) == found
    assert list(map(str, chosen)) == ([found] if ":" in found else [])
    assert str(make_accelerator("cpu").device) == "cpu"


def test_several_processes_do_not_share_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigurationError, match="device=cuda:1: 2 processes cannot share one; give device=cuda"):
        make_accelerator("cuda:1")


def test_processes_wait_for_hours_for_one_that_evaluates() -> None:
    """By default NCCL ends them after ten minutes."""
    assert make_accelerator("cpu").init_handler.timeout > timedelta(hours=2)


def test_one_process_of_each_machine_expands_images_before_the_others(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_first, was_first = [False], list[bool]()

    @contextmanager
    def go_first(accelerator: Accelerator) -> Iterator[None]:
        is_first[0] = True
        yield
        is_first[0] = False

    def load(*arguments: Any, **options: Any) -> Any:
        was_first.append(is_first[0])
        return load_demonstrations(*arguments, **options)

    monkeypatch.setattr(Accelerator, "local_main_process_first", go_first)
    monkeypatch.setattr("flowchunk.policy.fitting.load_demonstrations", load)
    fit(store, POLICY, TRAINING, output_dir=tmp_path / "run", device="cpu")
    assert was_first == [True]


@pytest.mark.parametrize("precision", ["medium", "highest"])
def test_products_have_the_precision_that_was_asked_for(precision: str, tmp_path: Path) -> None:
    open_run(tmp_path, replace(TRAINING, matmul_precision=precision), device="cpu")
    assert torch.get_float32_matmul_precision() == precision
