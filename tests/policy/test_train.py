"""The trainer: after a crash or with several processes the numbers are those of one uninterrupted run."""

from __future__ import annotations

import json
import math
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowchunk.datasets.errors import CheckpointError
from flowchunk.policy.chunk_policy import KIND, ChunkPolicy
from flowchunk.policy.training.config import TrainingConfig
from flowchunk.policy.training.run_log import RunLog, read_metrics
from flowchunk.policy.training.sample_order import seeded_generator
from flowchunk.policy.training.trainer import AVERAGE_EVERY, Trainer
from tests.policy.small_trainers import (
    CONFIG,
    LONG,
    CrashError,
    assert_same,
    checkpoint_tensors,
    make_policy,
    make_trainer,
    make_windows,
    run_to,
    untimed_metrics,
)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """One run that nothing interrupts."""
    trainer = make_trainer(tmp_path_factory.mktemp("straight"))
    trainer.run()
    return trainer


# Resuming.


@pytest.mark.parametrize("died_at", [5, 7, 10, 19])
def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path: Path, straight: Trainer, died_at: int) -> None:
    run_to(make_trainer(tmp_path), died_at)
    resumed = make_trainer(tmp_path)
    resumed.resume(kind=KIND)
    assert resumed.step == max(died_at // 5 * 5, died_at // 4 * 4)  # saved at checkpoints, and before evaluations
    resumed.run()
    assert_same(resumed.module.state_dict(), straight.module.state_dict())
    assert_same(resumed.averaged.state_dict(), straight.averaged.state_dict())
    assert resumed.ema.num_updates == straight.ema.num_updates == math.ceil(CONFIG.steps / AVERAGE_EVERY)
    for name in ("last", "best"):
        assert_same(checkpoint_tensors(tmp_path, name), checkpoint_tensors(straight.output_dir, name))
    assert untimed_metrics(tmp_path) == untimed_metrics(straight.output_dir)
    assert resumed.best_score == straight.best_score


def test_a_run_can_be_resumed_again_and_again(tmp_path: Path, straight: Trainer) -> None:
    run_to(make_trainer(tmp_path), 6)
    for died_at in (8, 13, 16):
        trainer = make_trainer(tmp_path)
        trainer.resume(kind=KIND)
        run_to(trainer, died_at)
    trainer = make_trainer(tmp_path)
    trainer.resume(kind=KIND)
    trainer.run()
    assert_same(checkpoint_tensors(tmp_path), checkpoint_tensors(straight.output_dir))
    assert untimed_metrics(tmp_path) == untimed_metrics(straight.output_dir)


def test_the_optimizer_is_in_the_checkpoint(straight: Trainer) -> None:
    tensors = checkpoint_tensors(straight.output_dir)
    for index, parameter in enumerate(straight.module.parameters()):
        for moment in ("exp_avg", "exp_avg_sq"):
            saved = tensors[f"optimizer.{index}.{moment}"]
            assert torch.equal(saved, straight.optimizer.state[parameter][moment])
            assert saved.abs().max() > 0
        assert tensors[f"optimizer.{index}.step"] == CONFIG.steps


def test_a_finished_run_resumes_to_nothing_more(tmp_path: Path) -> None:
    make_trainer(tmp_path).run()
    metrics, weights = untimed_metrics(tmp_path), checkpoint_tensors(tmp_path)
    resumed = make_trainer(tmp_path)
    resumed.resume(kind=KIND)
    resumed.run()
    assert untimed_metrics(tmp_path) == metrics
    assert_same(checkpoint_tensors(tmp_path), weights)


def test_a_run_that_fails_closes_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[RunLog] = []

    class WatchedLog(RunLog):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            opened.append(self)

        def close(self) -> None:
            super().close()
            opened.remove(self)

    def fail(policy: ChunkPolicy) -> dict[str, float]:
        raise CrashError

    monkeypatch.setattr("flowchunk.policy.training.trainer.RunLog", WatchedLog)
    with pytest.raises(CrashError):
        make_trainer(tmp_path, evaluate=fail).run()
    left_open = len(opened)
    for log in tuple(opened):
        log.close()
    assert left_open == 0


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*last"):
        make_trainer(tmp_path).resume(kind=KIND)


@pytest.mark.parametrize("key", ["files", "step", "best_score"])
def test_a_state_that_lacks_something_cannot_resume(tmp_path: Path, straight: Trainer, key: str) -> None:
    shutil.copytree(straight.output_dir / "checkpoints" / "last", tmp_path / "checkpoints" / "last")
    file = tmp_path / "checkpoints" / "last" / "training_state.json"
    state = json.loads(file.read_text())
    del state[key]
    file.write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=rf"training_state\.json lacks \['{key}'\]; copy"):
        make_trainer(tmp_path).resume(kind=KIND)


def test_another_network_cannot_resume(tmp_path: Path, straight: Trainer) -> None:
    trainer = make_trainer(straight.output_dir, model=make_policy(width=16))
    with pytest.raises(CheckpointError, match="does not fit this training run"):
        trainer.resume(kind=KIND)


@pytest.mark.parametrize("missing", ["training_state.json", "training_state.safetensors"])
def test_a_checkpoint_without_its_state_cannot_resume(tmp_path: Path, missing: str) -> None:
    run_to(make_trainer(tmp_path), 6)
    (tmp_path / "checkpoints" / "last" / missing).unlink()
    with pytest.raises(CheckpointError, match=missing):
        make_trainer(tmp_path).resume(kind=KIND)


CRASHING = """
import runpy, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
trainers = runpy.run_path(sys.argv[1])
trainers["make_trainer"](Path(sys.argv[2]), trainers["LONG"]).run()
"""
TRAINERS = Path(__file__).with_name("small_trainers.py")


def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    run_dir = tmp_path / "killed"
    with (tmp_path / "output").open("w") as output:
        command = [sys.executable, "-c", CRASHING, str(TRAINERS), str(run_dir)]
        process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            while not (run_dir / "checkpoints" / "last").exists():
                assert process.poll() is None, (tmp_path / "output").read_text()
                time.sleep(0.01)
            time.sleep(random.uniform(0, 0.5))  # any moment will do, also one while it writes
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    killed = make_trainer(run_dir, LONG)
    killed.resume(kind=KIND)
    assert 0 < killed.step <= LONG.steps
    killed.run()
    make_trainer(tmp_path / "straight", LONG).run()
    assert_same(checkpoint_tensors(run_dir), checkpoint_tensors(tmp_path / "straight"))
    assert untimed_metrics(run_dir) == untimed_metrics(tmp_path / "straight")


# Learning.


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    config = TrainingConfig(steps=300, batch_size=34, learning_rate=1e-2, log_every=50, evaluate_every=300)
    trainer = make_trainer(tmp_path, config, model=make_policy(width=32), evaluate=None)
    trainer.run()
    losses = [entry["loss"] for entry in read_metrics(tmp_path) if "loss" in entry]
    assert len(losses) == 6
    assert losses[-1] < 0.7 * losses[0]


def test_the_logged_loss_is_the_mean_since_the_last(tmp_path: Path) -> None:
    every, third = tmp_path / "every", tmp_path / "third"
    for path, log_every in ((every, 1), (third, 3)):
        make_trainer(path, TrainingConfig(steps=6, batch_size=8, log_every=log_every, evaluate_every=6)).run()
    losses = [entry["loss"] for entry in read_metrics(every) if "loss" in entry]
    means = [entry["loss"] for entry in read_metrics(third) if "loss" in entry]
    assert means == pytest.approx([np.mean(losses[:3]), np.mean(losses[3:])])


@pytest.mark.parametrize("mask_padding", [False, True])
def test_the_loss_is_the_mean_over_what_counts(tmp_path: Path, mask_padding: bool) -> None:
    policy, windows = make_policy(mask_padding=mask_padding, prefix_max=0), make_windows()
    trainer = make_trainer(tmp_path, model=policy)
    noise = policy.sample_noise(8, seeded_generator(CONFIG.seed, 0))
    batch = windows.batch(trainer.order.indices(0))
    data = policy.normalizer.normalize("action", batch["action"])  # zero velocity: the error is that of data - noise
    errors = ((data - noise.path.x_0) ** 2).mean(-1)
    expected = errors[batch["mask"]].mean() if mask_padding else errors.mean()
    trainer.train_step()
    assert float(trainer.loss_sum) == pytest.approx(float(expected), rel=1e-5)


def test_a_batch_of_nothing_but_padding_does_no_harm(tmp_path: Path) -> None:
    """Episodes of a single step: a prefix leaves only padding."""
    config = TrainingConfig(steps=20, batch_size=1)
    trainer = make_trainer(tmp_path, config, data=make_windows((1,) * 6), evaluate=None, validation=None)
    trainer.run()
    assert all(value.isfinite().all() for value in checkpoint_tensors(tmp_path).values())


def test_best_has_the_highest_score(tmp_path: Path) -> None:
    scores = iter([1.0, 3.0, 2.0, 3.0, 0.0])
    kept = []

    def measure(policy: ChunkPolicy) -> dict[str, float]:
        kept.append({name: value.clone() for name, value in policy.state_dict().items()})
        return {"score": next(scores)}

    make_trainer(tmp_path, evaluate=measure).run()
    best = json.loads((tmp_path / "checkpoints" / "best" / "checkpoint.json").read_text())
    assert best["training"]["step"] == 16  # of two equal scores the later, which was trained for longer
    assert best["training"]["metrics"]["score"] == 3.0
    assert_same(ChunkPolicy.load(tmp_path).state_dict(), kept[3])
    logged = [(entry["step"], entry["score"]) for entry in read_metrics(tmp_path) if "score" in entry]
    assert logged == [(4, 1.0), (8, 3.0), (12, 2.0), (16, 3.0), (20, 0.0)]


def test_a_resumed_run_remembers_its_best(tmp_path: Path) -> None:
    run_to(make_trainer(tmp_path, evaluate=lambda policy: {"score": 5.0}), 7)
    resumed = make_trainer(tmp_path, evaluate=lambda policy: {"score": 1.0})
    resumed.resume(kind=KIND)
    resumed.run()
    best = json.loads((tmp_path / "checkpoints" / "best" / "checkpoint.json").read_text())
    assert best["training"]["step"] == 4


def test_without_evaluation_the_validation_loss_chooses(tmp_path: Path) -> None:
    make_trainer(tmp_path, evaluate=None).run()
    measured = [entry for entry in read_metrics(tmp_path) if "score" in entry]
    assert all(entry["score"] == -entry["validation_loss"] for entry in measured)
    best = json.loads((tmp_path / "checkpoints" / "best" / "checkpoint.json").read_text())["training"]
    assert best["metrics"]["score"] == max(entry["score"] for entry in measured)


def test_without_evaluation_and_validation_best_is_last(tmp_path: Path) -> None:
    make_trainer(tmp_path, evaluate=None, validation=None).run()
    best = checkpoint_tensors(tmp_path, "best")
    assert_same(best, {name: checkpoint_tensors(tmp_path)[name] for name in best})


def test_validation_uses_the_same_noise_each_time(tmp_path: Path, straight: Trainer) -> None:
    data = make_windows((5, 6))
    assert straight.validation_loss(data) == straight.validation_loss(data)


def test_checkpoints_contain_the_averaged_weights(straight: Trainer) -> None:
    loaded = ChunkPolicy.load(straight.output_dir / "checkpoints" / "last")
    assert_same(loaded.state_dict(), straight.averaged.state_dict())
    live = straight.module.state_dict()
    assert any(not torch.equal(value, live[name]) for name, value in loaded.state_dict().items())


def test_a_run_shorter_than_its_log_interval_ends_with_a_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_trainer(tmp_path, TrainingConfig(steps=2, batch_size=2, log_every=100)).run()
    (entry,) = (entry for entry in read_metrics(tmp_path) if "loss" in entry)
    assert entry["step"] == 2
    shown = capsys.readouterr().out
    assert f"loss {entry['loss']:.4f}" in shown
    assert "nan" not in shown


def test_metadata_are_in_the_checkpoint(tmp_path: Path) -> None:
    make_trainer(tmp_path, TrainingConfig(steps=1, batch_size=2), metadata={"task": "toy"}).run()
    training = json.loads((tmp_path / "checkpoints" / "last" / "checkpoint.json").read_text())["training"]
    assert (training["task"], training["step"], training["seed"]) == ("toy", 1, 0)


def test_the_optimizer_gets_the_learning_rate(straight: Trainer) -> None:
    logged = {entry["step"]: entry["learning_rate"] for entry in read_metrics(straight.output_dir) if "loss" in entry}
    assert logged == {step: CONFIG.learning_rate_at(step - 1) for step in (*range(3, 20, 3), 20)}
    assert straight.optimizer.param_groups[0]["lr"] == CONFIG.learning_rate_at(CONFIG.steps - 1)
