"""The function that the README's five lines show is the one that every training step of every task calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowchunk.cli.main import main
from flowchunk.policy import flow
from flowchunk.policy.flow import Loss
from tests.cli.training_commands import metrics
from tests.golden_runs import write_store

STEPS = 3
ROBOT = ("network.width=16", "network.blocks=1", "training.batch_size=8", "evaluation.episodes=0")
TASKS: dict[str, tuple[str, ...]] = {
    "pusht_state": ROBOT,
    "pusht_state, prefix and mask": (*ROBOT, "policy.prefix_max=3", "policy.mask_padding=true"),
    "pusht_state, v": (*ROBOT, "objective=v"),
    "pusht_state, weighted": (*ROBOT, "objective=data_prediction", "policy.min_snr_gamma=5"),
    "pusht_state, flow map": (*ROBOT, "objective=flow_map"),
    "pusht_image": (*ROBOT, "vision.widths=[8,8,8,8]", "dataset.cache=ram"),
    "toy2d": ("network.width=16", "training.batch_size=8", "evaluation.samples=0"),
    "images": ("network.widths=[8]", "training.batch_size=8", "evaluation.samples=0"),
    "torus": ("network.width=16", "training.batch_size=8", "evaluation.samples=0"),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("store") / "pusht.zarr")


@pytest.fixture
def train(store: Path, tmp_path: Path) -> Any:
    """Train a task for three steps; returns its losses."""

    def train(name: str) -> list[float]:
        task = name.partition(",")[0]
        paths = [f"output_dir={tmp_path / 'run'}", *([f"dataset.path={store}"] if task.startswith("pusht") else [])]
        common = (f"training.steps={STEPS}", "training.log_every=1", "device=cpu")
        assert main(["train", f"task={task}", *paths, *common, *TASKS[name]]) == 0
        return [row["loss"] for row in metrics(tmp_path / "run") if "loss" in row]

    return train


@pytest.mark.parametrize("name", TASKS)
def test_every_step_calls_it(name: str, train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original, weights = flow.flow_matching_loss, list[float]()

    def counted(velocity: Any, x_1: Tensor, **options: Any) -> Loss:
        loss = original(velocity, x_1, **options)
        if torch.is_grad_enabled():  # validation calls it too
            weights.append(float(loss.weight.mean()))
        return loss

    monkeypatch.setattr(flow, "flow_matching_loss", counted)
    losses = train(name)
    assert len(losses) == STEPS
    timed_for_the_plan = 4
    assert len(weights) == STEPS + timed_for_the_plan
    assert min(losses) > 0
    assert (min(weights) < 1) == ("prefix" in name)  # the mask and the prefix are its business, too


@pytest.mark.parametrize("name", [name for name in TASKS if "flow map" not in name])
def test_nothing_else_adds_to_the_loss(name: str, train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = flow.flow_matching_loss

    def without_error(velocity: Any, x_1: Tensor, **options: Any) -> Loss:
        loss = original(velocity, x_1, **options)
        return Loss(0 * loss.errors, loss.weight)

    monkeypatch.setattr(flow, "flow_matching_loss", without_error)
    assert train(name) == [0.0] * STEPS
