"""Trainings that go wrong: numbers that are not finite, evaluations that fail, resuming with what does not fit."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowchunk.datasets.errors import CheckpointError, TrainingError
from flowchunk.datasets.windows import Windows
from flowchunk.policy.checkpoint import read_checkpoint, replace_text
from flowchunk.policy.chunk_policy import KIND, ChunkPolicy
from flowchunk.policy.normalizer import Normalizer, Scaling
from flowchunk.policy.training.run_log import RunLog, read_metrics
from tests.policy.small_policies import to_format_1
from tests.policy.small_trainers import (
    CONFIG,
    CrashError,
    assert_same,
    checkpoint_tensors,
    make_policy,
    make_trainer,
    make_windows,
    run_to,
    untimed_metrics,
)


def saved(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "checkpoints" / name / "checkpoint.json").read_text())["training"]
    return content


class Poisoned(Windows):
    """Windows whose batches hold a NaN from the tenth on."""

    asked = 0

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        found = super().batch(indices)
        object.__setattr__(self, "asked", self.asked + 1)
        if self.asked > 9:
            found["observation.state"][0, 0, 0] = math.nan
        return found


def poisoned() -> Windows:
    return Poisoned(**{name: getattr(make_windows(), name) for name in Windows.__dataclass_fields__})


# Numbers that are not finite.


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"not finite at step 9 of 20; .*lower training.learning_rate"):
        make_trainer(tmp_path, data=poisoned()).run()
    assert saved(tmp_path, "last")["step"] == saved(tmp_path, "best")["step"] == 8
    for name in ("last", "best"):
        assert all(value.isfinite().all() for value in checkpoint_tensors(tmp_path, name).values())


def test_a_gradient_that_is_not_finite_stops_the_run_too(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    next(trainer.module.parameters()).register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingError, match="not finite at step 0"):
        trainer.run()
    assert not (tmp_path / "checkpoints").exists()


def test_on_a_gpu_failures_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, data=poisoned())
    trainer.accelerator = SimpleNamespace(  # as on a GPU, whose results one waits for
        **{name: getattr(trainer.accelerator, name) for name in ("num_processes", "process_index", "is_main_process")},
        **{name: getattr(trainer.accelerator, name) for name in ("reduce", "backward", "wait_for_everyone")},
        device=SimpleNamespace(type="slow"),
    )
    trainer.local_batch = lambda step: (  # type: ignore[method-assign]
        trainer.data.batch(trainer.order.indices(step)),
        trainer.module.sample_noise(8, torch.Generator().manual_seed(step)),
    )
    trainer.load_batch = trainer.local_batch
    for _ in range(12):
        trainer.train_step()  # goes on behind our back
    trainer.is_evaluated = False
    with pytest.raises(TrainingError, match="not finite at step 9 of 20"):
        trainer.evaluate_and_checkpoint(None)
    with pytest.raises(TrainingError, match="not finite at step 9 of 20"):
        trainer.require_finite()


@pytest.mark.parametrize("worthless", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_never_best(tmp_path: Path, worthless: float) -> None:
    scores = iter([worthless, 1.0, worthless, 2.0, worthless])
    make_trainer(tmp_path, evaluate=lambda policy: {"score": next(scores)}).run()
    assert saved(tmp_path, "best")["step"] == 16
    assert json.loads((tmp_path / "checkpoints" / "last" / "training_state.json").read_text())["best_score"] == 2.0


# Evaluations that fail.


def test_last_is_written_before_its_step_is_evaluated(tmp_path: Path) -> None:
    def fail_at_eight(policy: ChunkPolicy) -> dict[str, float]:
        if trainer.step == 8:
            raise CrashError
        return {"score": float(trainer.step)}

    trainer = make_trainer(tmp_path, evaluate=fail_at_eight)
    with pytest.raises(CrashError):
        trainer.run()
    assert saved(tmp_path, "last")["step"] == 8
    assert saved(tmp_path, "best")["step"] == 4


def test_an_interrupted_evaluation_is_repeated(tmp_path: Path) -> None:
    """As in a run that nothing interrupted: the same checkpoints and lines."""

    def score(policy: ChunkPolicy) -> dict[str, float]:
        return {"score": {4: 1.0, 8: 3.0}.get(trainers[-1].step, 0.0)}

    def fail_at_eight(policy: ChunkPolicy) -> dict[str, float]:
        if trainers[-1].step == 8:
            raise CrashError
        return score(policy)

    trainers = [make_trainer(tmp_path / "straight", evaluate=score)]
    trainers[-1].run()
    trainers.append(make_trainer(tmp_path / "broken", evaluate=fail_at_eight))
    with pytest.raises(CrashError):
        trainers[-1].run()
    trainers.append(make_trainer(tmp_path / "broken", evaluate=score))
    trainers[-1].resume(kind=KIND)
    assert trainers[-1].step == 8
    trainers[-1].run()
    assert saved(tmp_path / "broken", "best")["step"] == 8
    for name in ("last", "best"):
        assert_same(checkpoint_tensors(tmp_path / "broken", name), checkpoint_tensors(tmp_path / "straight", name))
    assert untimed_metrics(tmp_path / "broken") == untimed_metrics(tmp_path / "straight")


def test_an_evaluation_logged_but_not_recorded_is_logged_once(tmp_path: Path) -> None:
    run_to(make_trainer(tmp_path), 9)
    state = tmp_path / "checkpoints" / "last" / "training_state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "is_evaluated": False}))
    resumed = make_trainer(tmp_path)
    resumed.resume(kind=KIND)
    resumed.run()
    assert [entry["step"] for entry in read_metrics(tmp_path) if "score" in entry] == [4, 8, 12, 16, 20]


def test_a_finished_evaluation_is_not_repeated(tmp_path: Path) -> None:
    def measure(policy: ChunkPolicy) -> dict[str, float]:
        measured.append(trainer.step)
        return {"score": 10.0 - trainer.step}

    measured: list[int] = []
    trainer = make_trainer(tmp_path, evaluate=measure)
    run_to(trainer, 9)
    trainer = make_trainer(tmp_path, evaluate=measure)
    trainer.resume(kind=KIND)
    assert trainer.best_score == 6.0
    trainer.run()
    assert measured == [4, 8, 12, 16, 20]


# Other data.


def other_scale(policy: ChunkPolicy) -> ChunkPolicy:
    policy.model.normalizer = policy.normalizer.with_scaling(
        "state", Scaling.fit("min_max", [torch.randn(9, 3).numpy()])
    )
    return policy


def test_a_run_is_not_resumed_on_other_data(tmp_path: Path) -> None:
    run_to(make_trainer(tmp_path), 6)
    with pytest.raises(CheckpointError, match=r"was trained on other data: normalizer differ; resume it with the data"):
        make_trainer(tmp_path, model=other_scale(make_policy())).resume(kind=KIND)
    with pytest.raises(CheckpointError, match=r"samples differ \(30 samples before, 12 now\)"):
        make_trainer(tmp_path, data=make_windows((5, 7))).resume(kind=KIND)
    renamed = make_policy()
    first, second = renamed.action_spec.dimensions
    renamed.action_spec = replace(renamed.action_spec, dimensions=(replace(first, name="z"), second))
    with pytest.raises(CheckpointError, match="action_spec differ"):
        make_trainer(tmp_path, model=renamed).resume(kind=KIND)


def test_rounding_of_another_processor_is_not_other_data(tmp_path: Path) -> None:
    run_to(make_trainer(tmp_path), 6)
    policy = make_policy()
    scaling = policy.normalizer.scalings["state"]
    policy.model.normalizer = Normalizer(
        {**policy.normalizer.scalings, "state": replace(scaling, low=scaling.low * (1 + 1e-7))}
    )
    resumed = make_trainer(tmp_path, model=policy)
    resumed.resume(kind=KIND)
    assert resumed.step == 5


# What else resuming brings back.


def test_a_run_of_format_1_resumes_bit_for_bit(tmp_path: Path) -> None:
    make_trainer(tmp_path / "straight").run()
    run_to(make_trainer(tmp_path / "resumed"), 6)
    content = to_format_1(tmp_path / "resumed" / "checkpoints" / "last")
    assert "network.output.weight" in content["weights"]["model.safetensors"]
    resumed = make_trainer(tmp_path / "resumed")
    resumed.resume(kind=KIND)
    assert resumed.step == 5
    resumed.run()
    assert_same(checkpoint_tensors(tmp_path / "resumed"), checkpoint_tensors(tmp_path / "straight"))


class Forgetful(nn.Module):
    """The small policy with dropout before its network's condition."""

    def __init__(self, policy: ChunkPolicy) -> None:
        super().__init__()
        self.policy, self.dropout = policy, nn.Dropout(0.5)
        policy.encoder.register_forward_hook(lambda _, __, output: self.dropout(output))
        self.sample_noise, self.save, self.describe = policy.sample_noise, policy.save, policy.describe
        self.pair_noise = None

    def forward(self, batch: Any, noise: Any) -> Any:
        return self.policy(batch, noise)


def test_dropout_is_a_function_of_seed_and_step(tmp_path: Path) -> None:
    def loss(p: float, drawn_before: int) -> float:
        trainer = make_trainer(tmp_path, model=Forgetful(make_policy()), evaluate=None, validation=None)
        trainer.module.dropout.p = p
        torch.rand(drawn_before)
        for _ in range(4):
            trainer.train_step()
        return float(trainer.loss_sum)

    assert loss(0.5, 0) == loss(0.5, 7)
    assert loss(0.5, 0) != loss(0.0, 0)


def test_a_resumed_run_continues_the_same_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[dict[str, Any]] = []

    def init(**options: Any) -> SimpleNamespace:
        begun.append(options)
        return SimpleNamespace(finish=lambda: None)

    stand_in = SimpleNamespace(init=init)
    monkeypatch.setitem(sys.modules, "wandb", stand_in)  # the real one talks to a server
    for folder in (tmp_path / "a", tmp_path / "a", tmp_path / "b"):
        RunLog(folder, wandb=True).close()
    ids = [options["id"] for options in begun]
    assert ids[0] == ids[1] != ids[2]
    assert all(options["resume"] == "allow" for options in begun)


# Reading a checkpoint that training replaces.


def test_a_checkpoint_replaced_while_it_is_read_is_consistent(tmp_path: Path) -> None:
    policies = [make_policy() for _ in range(2)]
    for number, policy in enumerate(policies):
        for parameter in policy.parameters():
            parameter.data.fill_(number)
    policies[0].save(tmp_path / "last", training={"number": 0})
    done = threading.Event()

    def replace_it() -> None:
        for turn in range(60):
            policies[turn % 2].save(tmp_path / "last", training={"number": turn % 2})
        done.set()

    writer = threading.Thread(target=replace_it)
    writer.start()
    reads = 0
    while not done.is_set():
        description, weights = read_checkpoint(tmp_path / "last", kind=KIND)
        values = {float(value.flatten()[0]) for name, value in weights.items() if not name.startswith("normalizer")}
        assert values == {float(description["training"]["number"])}
        reads += 1
    writer.join()
    assert reads > 3


@pytest.mark.parametrize("name", ["../model.safetensors", "/tmp/model.safetensors", "folder/model.safetensors"])
def test_a_checkpoint_reads_no_file_outside_its_directory(tmp_path: Path, name: str) -> None:
    make_policy().save(tmp_path / "here")
    shutil.copy(tmp_path / "here" / "model.safetensors", tmp_path)
    file = tmp_path / "here" / "checkpoint.json"
    content = json.loads(file.read_text())
    content["weights"] = {name: content["weights"]["model.safetensors"]}
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="outside its directory"):
        ChunkPolicy.load(tmp_path / "here")


def test_a_checkpoint_is_flushed_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: dict[str, bool] = {}
    fsync = os.fsync

    def watched(handle: int) -> None:
        file = Path(f"/proc/self/fd/{handle}").readlink()
        flushed[file.name if file.is_file() else "folder of " + file.name] = (tmp_path / "here").exists()
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    make_policy().save(tmp_path / "here")
    before = {name for name, was_named in flushed.items() if not was_named}
    assert before == {"model.safetensors", "checkpoint.json", "folder of .here.partial"}
    assert flushed[f"folder of {tmp_path.name}"]


def test_a_replaced_text_is_flushed_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut would otherwise leave a name without content."""
    file = tmp_path / "state.json"
    replace_text(file, "before")
    flushed = list[tuple[str, str]]()

    def watched(handle: int) -> None:
        flushed.append((Path(f"/proc/self/fd/{handle}").read_text(), file.read_text()))

    monkeypatch.setattr(os, "fsync", watched)
    replace_text(file, "after")
    assert flushed == [("after", "before")]
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("state.json", "after")]


# Measuring.


@pytest.mark.parametrize(("micro_batches", "processes"), [(4, 1), (8, 1), (1, 2), (2, 4)])
def test_validation_uses_no_more_rows_at_once_than_a_step(tmp_path: Path, micro_batches: int, processes: int) -> None:
    whole = make_trainer(tmp_path / "whole")
    parts = make_trainer(tmp_path / "parts", replace(CONFIG, num_micro_batches=micro_batches))
    parts.accelerator = SimpleNamespace(num_processes=processes, device=parts.accelerator.device)
    rows: list[int] = []
    parts.averaged.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0]["action"])))
    data = make_windows((5, 6))
    assert parts.validation_loss(data) == pytest.approx(whole.validation_loss(data), rel=1e-5)
    assert max(rows) == 8 // (micro_batches * processes)


def test_a_pretrained_layer_has_a_tenth_of_the_learning_rate(tmp_path: Path) -> None:
    policy = make_policy()
    for parameter in policy.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    name, gentle = next((name, child) for name, child in policy.network.named_children() if list(child.parameters()))
    policy.network.__dict__["learning_rate_scales"] = {name: 0.1}  # as modules of vision have it
    gently = {id(parameter) for parameter in gentle.parameters()}
    trainer = make_trainer(tmp_path, replace(CONFIG, warmup_steps=0, weight_decay=0.0), model=policy)
    before = [parameter.detach().clone() for parameter in policy.parameters()]
    trainer.train_step()
    moved: dict[bool, float] = {True: 0.0, False: 0.0}
    for now, then in zip(policy.parameters(), before, strict=True):
        moved[id(now) in gently] = max(moved[id(now) in gently], float((now.detach() - then).abs().max()))
    rate = CONFIG.learning_rate  # the length of Adam's first step
    assert moved == pytest.approx({True: rate / 10, False: rate}, rel=1e-2)
