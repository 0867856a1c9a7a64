"""Small trainers, what they train, and ways to interrupt them, that several tests share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from flowchunk.datasets.windows import Windows
from flowchunk.policy.chunk_policy import KIND, ChunkPolicy
from flowchunk.policy.data_model import DataConfig, DataModel
from flowchunk.policy.normalizer import Normalizer, Scaling
from flowchunk.policy.policy_config import PolicyConfig
from flowchunk.policy.training.config import TrainingConfig
from flowchunk.policy.training.run_log import read_metrics
from flowchunk.policy.training.trainer import Trainer

__all__ = ["KIND"]  # scripts of tests read it from here

OBSERVATION = ObservationSpec({"state": ObservationField((3,))})
ACTION = ActionSpec(tuple(ActionDimension(name, "m", "world") for name in "xy"), control_hz=10.0)
HORIZON = 4
CONFIG = TrainingConfig(steps=20, batch_size=8, log_every=3, checkpoint_every=5, evaluate_every=4, warmup_steps=4)
LONG = TrainingConfig(steps=400, batch_size=8, log_every=3, checkpoint_every=5, evaluate_every=40)
SHARED = TrainingConfig(steps=15, batch_size=8, log_every=1, checkpoint_every=5, evaluate_every=5, learning_rate=1e-2)


def make_policy(*, width: int = 8, mask_padding: bool = True, prefix_max: int = 2) -> ChunkPolicy:
    generator = np.random.default_rng(0)
    scalings = {
        "state": Scaling.fit("min_max", [generator.normal(size=(50, 3))]),
        "action": Scaling.fit("min_max", [generator.normal(size=(50, 2))]),
    }
    config = PolicyConfig(
        network_options={"width": width, "blocks": 1},
        horizon=HORIZON,
        n_action_steps=2,
        mask_padding=mask_padding,
        prefix_max=prefix_max,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return ChunkPolicy(config, OBSERVATION, ACTION, Normalizer(scalings))


def make_windows(lengths: tuple[int, ...] = (1, 9, 2, 1, 10, 3, 4)) -> Windows:
    """Episodes so short that most windows are padded, and unevenly."""
    generator, total = torch.Generator().manual_seed(2), sum(lengths)
    state = torch.randn(total, 3, generator=generator)
    first = torch.cat([torch.full((n,), sum(lengths[:i])) for i, n in enumerate(lengths)])
    last = torch.cat([torch.full((n,), sum(lengths[: i + 1]) - 1) for i, n in enumerate(lengths)])
    return Windows(
        observations={"state": state},
        actions=torch.stack([state.sum(-1), state[:, 0]], dim=-1),
        frames=torch.arange(total),
        first=first,
        last=last,
        observation_steps=2,
        horizon=HORIZON,
    )


def evaluate(policy: ChunkPolicy) -> dict[str, float]:
    chunk = policy.predict_chunk({"state": np.zeros((1, 2, 3))}, nfe=2, seed=0)
    return {"score": -float(np.abs(chunk).mean()), "chunk": float(chunk[0, 0, 0])}


def make_trainer(output_dir: Path, config: TrainingConfig = CONFIG, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {"evaluate": evaluate, "validation": make_windows((3, 2))}
    model, data = options.pop("model", None) or make_policy(), options.pop("data", None) or make_windows()
    return Trainer(
        model, data, config, output_dir=output_dir, accelerator=Accelerator(cpu=True), **(defaults | options)
    )


def make_shared(output_dir: Path) -> Trainer:
    return make_trainer(output_dir, SHARED)


def make_shared_in_parts(output_dir: Path) -> Trainer:
    return make_trainer(output_dir, replace(SHARED, num_micro_batches=2, log_every=3))


class Points:
    """Fifty points in the plane."""

    x = torch.randn(50, 1, 2, generator=torch.Generator().manual_seed(3)).cumsum(0) / 5

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        return {"x": self.x[indices]}


def make_coupled(output_dir: Path) -> Trainer:
    """A generative model whose noise is paired with its data by optimal transport."""
    config = DataConfig((1, 2), network_options={"width": 8, "blocks": 1}, coupling="ot")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = DataModel(config, Normalizer({"x": Scaling.fit("gaussian", [Points.x.flatten(1).numpy()])}))
    return make_trainer(output_dir, SHARED, model=model, data=Points(), evaluate=None, validation=Points())


class CrashError(Exception):
    """Stands for a crash."""


def run_to(trainer: Trainer, step: int) -> None:
    """Run as if the process died after ``step``: what is then on disk was written by the steps before."""
    train_step, pause = trainer.train_step, trainer.evaluate_and_checkpoint
    logs: list[Any] = []

    def die_at_the_step() -> Tensor:
        if trainer.step == step:
            raise CrashError
        return train_step()

    def remember_the_log(log: Any) -> None:
        logs.append(log)
        pause(log)

    trainer.train_step, trainer.evaluate_and_checkpoint = die_at_the_step, remember_the_log  # type: ignore[method-assign]
    with pytest.raises(CrashError):
        trainer.run()
    if logs[0] is not None:  # the main process has it
        logs[0].close()


def checkpoint_tensors(output_dir: Path, name: str = "last") -> dict[str, Tensor]:
    directory = output_dir / "checkpoints" / name
    return {key: value for file in sorted(directory.glob("*.safetensors")) for key, value in load_file(file).items()}


def assert_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def untimed_metrics(output_dir: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in entry.items() if k != "steps_per_second"} for entry in read_metrics(output_dir)]
