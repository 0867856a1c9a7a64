"""Starting from the weights of a checkpoint: what it keeps, what may be changed, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from flowchunk.cli.main import main
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.sampling import SamplingOptions
from tests.cli.training_commands import pickplace, pusht


def test_fine_tuning_starts_from_the_weights_and_the_normaliser_of_a_checkpoint(
    trained_run: Path, pusht_store: Path, tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    run = tmp_path / "run"
    negligible = ("training.steps=2", "training.learning_rate=1e-12")
    assert main(pusht(pusht_store, run, *tiny, f"training.init_from={trained_run}", *negligible)) == 0
    tuned, original = ChunkPolicy.load(run), ChunkPolicy.load(trained_run)
    assert tuned.config == original.config
    assert tuned.normalizer.to_json() == original.normalizer.to_json()
    for name, value in original.state_dict().items():
        torch.testing.assert_close(tuned.state_dict()[name], value, atol=1e-7, rtol=0)


def test_fine_tuning_changes_what_it_can(
    trained_run: Path,
    pusht_store: Path,
    tmp_path: Path,
    tiny: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    changed = ("policy.n_action_steps=2", "policy.mask_padding=true", "policy.prefix_max=3", "policy.solver=midpoint")
    command = pusht(
        pusht_store, run, *tiny, f"training.init_from={trained_run}", *changed, "evaluation.noise_scale=0.5"
    )
    assert main(command) == 0
    tuned, original = ChunkPolicy.load(run), ChunkPolicy.load(trained_run)
    asked: dict[str, Any] = {
        "n_action_steps": 2,
        "mask_padding": True,
        "prefix_max": 3,
        "sampling": SamplingOptions(solver="midpoint", noise_scale=0.5),
    }
    assert tuned.config == replace(original.config, **asked)
    assert main([*command, "training.resume=true"]) == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("network=dit", "network=dit: {run} was trained with network=mlp, and fine-tuning keeps it"),
        ("network.width=16", "network.width=16: {run} was trained with network.width=32"),
        ("policy.horizon=32", "policy.horizon=32: {run} was trained with policy.horizon=16"),
        ("policy.observation_steps=1", "policy.observation_steps=1: {run} was trained with policy.observation_steps=2"),
        ("policy.relative_to=null", "policy.relative_to=null: {run} was trained with policy.relative_to=['state.0'"),
        ("objective=v", "objective=v: {run} was trained with objective=flow"),
        ("schedule=cosine", "schedule=cosine: {run} was trained with schedule=null"),
        ("vision=small_conv", "vision=small_conv: {run} was trained with vision=null"),
        ("dataset.normalizer.state=gaussian", "dataset.normalizer.state: fine-tuning keeps the normalizer of {run}"),
    ],
)
def test_fine_tuning_refuses_what_it_cannot_change(
    override: str,
    message: str,
    trained_run: Path,
    pusht_store: Path,
    tmp_path: Path,
    tiny: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = [option for option in tiny if not (override.startswith("network") and option.startswith("network"))]
    command = pusht(pusht_store, tmp_path / "run", *few, f"training.init_from={trained_run}", override)
    assert main(command) == 1
    assert message.format(run=trained_run) in capsys.readouterr().err.replace("\n", "")
    assert not (tmp_path / "run").exists()


def test_what_a_checkpoint_brings_is_what_is_saved_and_said(
    trained_run: Path,
    pusht_store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The network that no option asked for."""
    short = ("training.steps=2", "training.batch_size=16", "evaluation.episodes=0", "device=cpu")
    run = tmp_path / "run"
    assert main(pusht(pusht_store, run, *short, f"training.init_from={trained_run}")) == 0
    assert "mlp with 0.0" in capsys.readouterr().out
    saved = OmegaConf.load(run / "config.yaml")
    assert saved.network.width == 32
    assert main(pusht(pusht_store, run, *short, f"training.init_from={trained_run}", "training.resume=true")) == 0


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
