"""Benchmarks resume as documented, and those of formats notice what differs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import zarr

from flowchunk.policy.training.trainer import Trainer
from tests.datasets.formats.foreign import FRAMES, write_lerobot_3

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = ["network=mlp", "network.width=16", "network.blocks=1", "training.steps=6", "training.batch_size=16"]
OFTEN = ["training.checkpoint_every=2", "training.log_every=3", "device=cpu"]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their types
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


@pytest.fixture
def push_t(tmp_path: Path) -> Path:
    """Two episodes in the layout of diffusion_policy's Push-T with images."""
    root, generator = zarr.open_group(tmp_path / "push_t.zarr", mode="w", zarr_format=2), np.random.default_rng(0)
    for name, shape in (("state", (5,)), ("action", (2,)), ("img", (96, 96, 3))):
        values = generator.integers(0, 256, (20, *shape)).astype(np.float32)
        root.create_array(f"data/{name}", data=values, chunks=(8, *shape))
    root.create_array("meta/episode_ends", data=np.array([8, 20]))
    return tmp_path / "push_t.zarr"


def test_formats_are_compared_with_the_original(
    push_t: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    formats = load("formats")
    for name in ("flowchunk", "diffusion_policy", "LeRobot v3.0, png"):
        monkeypatch.delitem(formats.TARGETS, name)
    formats.main(push_t, lerobot=None, steps=2, work=tmp_path)
    lines = [line.split("│")[1:] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    rows = {name.strip(): [cell.strip() for cell in cells] for name, *cells in lines}
    assert rows["robomimic"][:5] == ["20", "20", "20", "0", "identical"]
    windows, values, images, error, loss, _ = rows["LeRobot v3.0, h264"]
    assert (windows, values, images) == ("20", "20", "0")
    assert error.startswith("mean ")
    assert loss.startswith("losses differ by up to ")


def test_rows_of_another_copy_are_compared(push_t: Path, tmp_path: Path) -> None:
    formats = load("formats")
    source = formats.open_dataset(push_t, sources={**formats.SOURCES, "observation.state": "state[:2]"})
    said = formats.compare_rows(source, source)
    assert said.endswith("as others converted it: positions equal, actions equal, lengths equal")
    other = formats.open_dataset(push_t, sources={"observation.state": "state[1:3]"})
    assert "positions DIFFER, actions equal" in formats.compare_rows(source, other)


def test_speeds_of_formats(
    push_t: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speed, called = load("formats_speed"), list[str]()
    sources = {"image": "img", "agent_position": "state[:2]"}
    original = speed.DataSet(str(push_t), sources, [*sources], control_hz=10.0)
    in_process = speed.in_process

    def first_in_process(what: str, data_set: object, path: Path, **options: object) -> dict[str, float]:
        called.append(what)
        measure = getattr(speed, what)
        result: dict[str, float] = (
            measure(data_set, path, **options) if what in called[:-1] else in_process(what, data_set, path, **options)
        )
        return result

    monkeypatch.setattr(speed, "in_process", first_in_process)
    camera = speed.DataSet(str(write_lerobot_3(tmp_path)))
    speed.main(original, camera, repeats=2, seconds=0.01, work=tmp_path / "work", lerobot=None)
    assert called == ["convert"] * (7 + 7 + 6) + ["load"] * 14
    repeated = speed.open_dataset(tmp_path / "work" / "repeated" / "lerobot-png")
    assert repeated.num_frames == 2 * FRAMES
    assert "camera, 2 x" in capsys.readouterr().out
    megabytes = 20 * (96 * 96 * 3 + 4 * (2 + 2)) / 1e6
    assert speed.convert(original, tmp_path / "again", to="flowchunk")["megabytes"] == pytest.approx(megabytes)


def test_sequential_tests_are_simulated() -> None:
    sequential = load("sequential")
    *_, success, score = sequential.false_alarms(100, 0)
    for line in (success, score):
        assert all(0 <= float(cell) <= 0.1 for cell in line.split("|")[2:-1])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in sequential.episodes_saved(100, 0)[2:]]
    assert [row[0] for row in rows] == ["success"] * 4 + ["score"] * 4
    for row in rows:
        assert float(row[2]) <= float(row[3]) + 0.1, "looking at any time costs power"
        assert float(row[4]) <= float(row[1])
    assert sequential.mcnemar(100) == pytest.approx(0.789, abs=0.001)
    assert sequential.paired_t(50) == pytest.approx(0.943, abs=0.001)


def test_found_poses_are_those_of_the_plane() -> None:
    """The drawn goal is at the task's goal, and mirrored images have mirrored poses, as dataset.symmetry says."""
    found_poses = load("found_poses")
    goal, drawn = np.array([256.0, 256.0, np.pi / 4]), np.array([42.3, 53.2, 3 * np.pi / 4])
    found = np.random.default_rng(0).uniform([10, 10, -3], [80, 80, 3], (20, 3))
    poses = found_poses.as_block_poses(np.vstack([drawn, found]), drawn, goal)
    np.testing.assert_allclose(poses[0], goal, atol=4)  # px: the place is sought along the axis only
    assert poses[0, 2] == pytest.approx(np.pi / 4)
    mirrored = np.stack([95 - found[:, 1], 95 - found[:, 0], -np.pi / 2 - found[:, 2]], axis=1)
    x, y, angle = found_poses.as_block_poses(mirrored, drawn, goal).T
    np.testing.assert_allclose([x, y], [512 - poses[1:, 1], 512 - poses[1:, 0]], atol=1e-3)
    np.testing.assert_allclose(np.exp(1j * angle), np.exp(1j * (np.pi / 2 - poses[1:, 2])), atol=1e-5)
