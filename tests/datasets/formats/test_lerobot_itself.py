"""LeRobot's own code reads what is written: values, names, tasks, images, several files, batches."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowchunk.datasets.formats.lerobot_writer import LeRobotWriter
from tests.datasets.formats.episodes import LENGTHS, TASK_TEXTS, everything, write
from tests.own_environments import python_with

READ = """
import sys
import numpy as np
from torch.utils.data import DataLoader
from lerobot.datasets.lerobot_dataset import LeRobotDataset

path, out = sys.argv[1:]
data = LeRobotDataset(repo_id="local", root=path, video_backend="pyav")
assert (data.num_episodes, data.num_frames, data.fps) == (3, len(data), 10)
assert data.meta.names["observation.state"] == ["x", "y", "angle"]
assert data.meta.names["action"] == ["x", "y"]
items = [data[k] for k in range(len(data))]
assert sum(len(batch["action"]) for batch in DataLoader(data, batch_size=4, shuffle=True)) == len(data)
steps = {"action": [0.0, 0.1, 0.2], "observation.images.front": [-0.1, 0.0]}
window = LeRobotDataset(repo_id="local", root=path, video_backend="pyav", delta_timestamps=steps)[8]
assert len(window["observation.images.front"]) == 2
assert LeRobotDataset(repo_id="local", root=path, episodes=[2], video_backend="pyav")[0]["index"] == 6
keys = ["observation.state", "observation.gripper", "observation.force", "observation.grid", "observation.images.front"]
arrays = {key: np.stack([item[key].numpy() for item in items]) for key in (*keys, "action", "episode_index", "timestamp")}
stats = data.meta.stats["action"]
np.savez(out, tasks=[item["task"] for item in items], window=window["action"], q99=stats["q99"], mean=stats["mean"], **arrays)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python that has lerobot: the one that FLOWCHUNK_LEROBOT names, or that of a new environment."""
    return python_with("lerobot", "lerobot==0.4.4", tmp_path_factory.mktemp("lerobot"))  # FLOWCHUNK_ENVIRONMENTS


@pytest.mark.parametrize("codec", ["h264", "av1", "png"])
@pytest.mark.parametrize("file_mb", [100.0, 0.0])
def test_lerobot_reads_it(python: str, tmp_path: Path, codec: str, file_mb: float) -> None:
    limits: dict[str, Any] = {"data_file_mb": file_mb, "video_file_mb": file_mb}
    path, out = write(LeRobotWriter, tmp_path / "set", codec=codec, **limits), tmp_path / "read.npz"
    env = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
    done = subprocess.run([python, "-c", READ, path, out], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    read, expected = np.load(out), everything()
    for key in ("state", "grid"):
        np.testing.assert_array_equal(read[f"observation.{key}"], expected.observations[key])
    for key in ("gripper", "force"):
        np.testing.assert_array_equal(read[f"observation.{key}"].ravel(), expected.observations[key].ravel())
    np.testing.assert_array_equal(read["action"], expected.actions)
    np.testing.assert_array_equal(read["window"], expected.actions[8:11])
    np.testing.assert_array_equal(read["episode_index"], np.repeat(range(len(LENGTHS)), LENGTHS))
    assert read["tasks"].tolist() == TASK_TEXTS
    np.testing.assert_allclose(read["mean"], expected.actions.mean(axis=0))
    np.testing.assert_allclose(read["q99"], np.quantile(expected.actions, 0.99, axis=0), rtol=1e-6)
    images = read["observation.images.front"].transpose(0, 2, 3, 1) * 255
    errors = np.abs(images[:, None] - expected.observations["front"][None]).mean(axis=(2, 3, 4))
    np.testing.assert_array_equal(errors.argmin(axis=1), np.arange(len(images)))
    assert np.diag(errors).max() < (1e-4 if codec == "png" else 2)
