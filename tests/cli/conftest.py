"""Shared fixtures of the commands' tests: stores, images, finished and interrupted runs. Do not write into them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from PIL import Image

import flowchunk.envs  # noqa: F401 -- registers the ids
from flowchunk.cli.main import main
from flowchunk.policy.training.trainer import Trainer

TINY = (
    "network.width=32",
    "network.blocks=1",
    "training.steps=6",
    "training.batch_size=16",
    "training.checkpoint_every=2",
    "training.log_every=3",  # so that a checkpoint falls between two logs
    "evaluation.episodes=0",
    "device=cpu",
)

TINY_GENERATIVE = (
    "network=mlp",
    "network.width=16",
    "network.blocks=1",
    "training.steps=20",
    "training.batch_size=16",
    "training.log_every=10",
    "evaluation.samples=0",
    "device=cpu",
)


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """Overrides for a training of about a second."""
    return TINY


@pytest.fixture(scope="session")
def tiny_generative() -> tuple[str, ...]:
    """Overrides for a training of about a second, of a model of generated data."""
    return TINY_GENERATIVE


@pytest.fixture(scope="session")
def pickplace_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 6 demonstrations of the arm."""
    path = tmp_path_factory.mktemp("stores") / "arm.zarr"
    assert main(["collect", "task=pickplace_state", f"output_dir={path}", "episodes=6"]) == 0
    return path


@pytest.fixture(scope="session")
def trained_run(pusht_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Push-T policy after 6 steps."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    assert main(["train", "task=pusht_state", f"dataset.path={pusht_store}", f"output_dir={run}", *TINY]) == 0
    return run


@pytest.fixture(scope="session")
def interrupted_run(pusht_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training, interrupted after 3 of its 6 steps."""
    run = tmp_path_factory.mktemp("runs") / "interrupted"
    train_step = Trainer.train_step

    def interrupted(self: Trainer) -> torch.Tensor:
        if self.step == 3:
            raise KeyboardInterrupt
        return train_step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        command = ["train", "task=pusht_state", f"dataset.path={pusht_store}", f"output_dir={run}", *TINY]
        assert main(command) == 130
    return run


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of eight Gaussians after 20 steps."""
    run = tmp_path_factory.mktemp("runs") / "toy"
    assert main(["train", "task=toy2d", f"output_dir={run}", *TINY_GENERATIVE]) == 0
    return run


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 images of 8 x 8 pixels: dark ones in the folder ``cats``, light ones in ``dogs``."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name, darkest in (("cats", 0), ("dogs", 150)):
        (folder / name).mkdir()
        for number in range(32):
            pixels = darkest + random.integers(0, 100, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def image_run(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of those images after 20 steps."""
    run = tmp_path_factory.mktemp("runs") / "images"
    assert (
        main(
            [
                "train",
                "task=images",
                "dataset=folder",
                f"dataset.path={image_folder}",
                f"output_dir={run}",
                *TINY_GENERATIVE,
            ]
        )
        == 0
    )
    return run


@pytest.fixture(scope="module", autouse=True)
def short_episodes() -> Iterator[None]:
    """Limit episodes of Push-T to 40 steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gymnasium.spec("flowchunk/PushT-v1"), "max_episode_steps", 40)
        yield


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tables and messages on single lines."""
    monkeypatch.setenv("COLUMNS", "400")
