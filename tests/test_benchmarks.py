"""Benchmarks resume as documented: what was interrupted is trained to its end, not evaluated halfway."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from flowchunk.policy.training.trainer import Trainer

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = ["network=mlp", "network.width=16", "network.blocks=1", "training.steps=6", "training.batch_size=16"]
OFTEN = ["training.checkpoint_every=2", "training.log_every=3", "device=cpu"]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that were trained; the fourth is interrupted."""
    train_step, seen = Trainer.train_step, list[int]()

    def interrupted_once(self: Trainer) -> torch.Tensor:
        seen.append(self.step)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return train_step(self)

    monkeypatch.setattr(Trainer, "train_step", interrupted_once)
    return seen


def test_an_interrupted_model_of_generated_data_is_resumed(steps: list[int], tmp_path: Path) -> None:
    generated = load("generated")
    generated.RUNS["tiny"] = (["task=toy2d", "evaluation.samples=0", *TINY, *OFTEN], ["n=20", "nfe=2", "floor_pairs=2"])
    with pytest.raises(SystemExit):
        generated.row("tiny", tmp_path)
    line = generated.row("tiny", tmp_path)
    assert steps == [0, 1, 2, 3, 2, 3, 4, 5]
    assert "(resumed)" in line
    assert line.count("±") == 4, "measure and floor of two measures"
    assert generated.row("tiny", tmp_path) == line


def test_an_interrupted_policy_is_resumed_and_its_checkpoint_is_named(
    steps: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pickplace = load("pickplace")
    command = pickplace.flowchunk

    def small(arguments: list[str]) -> int:
        more = [*TINY[:3], *TINY[4:], *OFTEN, "evaluation.episodes=0"] if arguments[0] == "train" else []
        status: int = command([*arguments, *more])
        return status

    monkeypatch.setattr(pickplace, "flowchunk", small)
    options = ["--demonstrations", "2", "--steps", "6", "--episodes", "1"]
    monkeypatch.setattr(sys, "argv", ["pickplace.py", str(tmp_path), *options])
    with pytest.raises(SystemExit):
        pickplace.main()
    assert "success" not in capsys.readouterr().out
    pickplace.main()
    assert steps == [0, 1, 2, 3, 2, 3, 4, 5]
    assert "of step 6 of 6" in capsys.readouterr().out
