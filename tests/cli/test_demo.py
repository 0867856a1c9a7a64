"""flowchunk demo: the whole job, as small as it can be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import av
import gymnasium
import pytest
import torch

from flowchunk.cli import demo
from flowchunk.cli.eval import evaluate
from flowchunk.cli.main import main
from flowchunk.cli.options import read_options
from flowchunk.datasets.errors import SimulationError
from flowchunk.datasets.formats.zarr_store import Store
from flowchunk.envs.tasks.pick_place import PickPlace
from flowchunk.policy.training.trainer import Trainer
from tests.cli.folders import contents


def can_render() -> bool:
    env = PickPlace(render_mode="rgb_array", render_size=(8, 8))
    try:
        env.reset(seed=0)
        env.render()
    except SimulationError:
        return False
    finally:
        env.close()
    return True


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory: pytest.TempPathFactory, tiny: tuple[str, ...]) -> Path:
    path = tmp_path_factory.mktemp("demo") / "output"
    with pytest.MonkeyPatch.context() as patch:

        def evaluate_briefly(checkpoint: Path, options: dict[str, Any]) -> Path:
            patch.setattr(gymnasium.spec("flowchunk/PickPlace-v1"), "max_episode_steps", 20)
            return evaluate(checkpoint, options)

        def read_small_options(config: str, overrides: list[str]) -> dict[str, Any]:
            return read_options(config, [*tiny, *overrides] if config == "train" else overrides)

        patch.setattr(demo, "evaluate", evaluate_briefly)
        patch.setattr(demo, "read_options", read_small_options)
        demo.demonstrate(path, demonstrations=3, steps=3, episodes=2, selection_episodes=0)
    return path


def test_the_demo_leaves_demonstrations_a_policy_and_its_evaluation(output_dir: Path) -> None:
    assert len(Store.open(output_dir / "demonstrations.zarr").episode_ends) == 3
    report = json.loads((output_dir / "eval.json").read_text())
    assert report["task"] == "pickplace_state"
    assert len(report["episodes"]) == 2
    assert (output_dir / "train" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_demo_records_videos(output_dir: Path) -> None:
    if not can_render():
        pytest.skip("nothing can be rendered here: neither EGL nor OSMesa")
    videos = sorted((output_dir / "videos").iterdir())
    assert [video.name for video in videos] == ["episode_100000.mp4", "episode_100001.mp4"]
    with av.open(videos[0]) as container:
        assert container.streams.video[0].average_rate == 20
        assert next(container.decode(video=0)).width == 640


def test_a_demo_goes_on_with_what_its_folder_holds(
    pickplace_store: Path, tmp_path: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a folder, named 'so' = (1)"
    shutil.copytree(pickplace_store, folder / "demonstrations.zarr")
    before = contents(folder)
    train_step, steps = Trainer.train_step, []

    def interrupted_once(self: Trainer) -> torch.Tensor:
        steps.append(self.step)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return train_step(self)

    def small_options(config: str, overrides: list[str]) -> dict[str, Any]:
        return read_options(config, [*tiny, *overrides] if config == "train" else overrides)

    monkeypatch.setattr(Trainer, "train_step", interrupted_once)
    monkeypatch.setattr(demo, "read_options", small_options)
    monkeypatch.setattr(demo, "FULL", {"demonstrations": 6, "steps": 6, "episodes": 1, "selection_episodes": 0})
    monkeypatch.setattr(gymnasium.spec("flowchunk/PickPlace-v1"), "max_episode_steps", 20)
    assert main(["demo", f"output_dir={folder}"]) == 130
    assert not (folder / "eval.json").exists()
    assert main(["demo", f"output_dir={folder}"]) == 0
    assert steps == [0, 1, 2, 3, 2, 3, 4, 5], "from the checkpoint of step 2"
    assert json.loads((folder / "eval.json").read_text())["checkpoint"] == str(
        folder / "train" / "checkpoints" / "best"
    )
    assert contents(folder / "demonstrations.zarr").items() <= before.items()


@pytest.mark.parametrize(("flags", "size"), [([], demo.FULL), (["--quick"], demo.QUICK)])
def test_the_command_chooses_size_and_place(
    flags: list[str], size: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(demo, "demonstrate", lambda path, **sizes: asked.append((path, sizes)))
    assert main(["demo", *flags, f"output_dir={tmp_path}"]) == 0
    assert main(["demo", *flags]) == 0
    assert asked[0] == (tmp_path, size)
    assert asked[1][0].parent == Path("outputs")
