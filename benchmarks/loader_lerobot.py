"""LeRobot's loader on given frames; run by ``loader.py``, with the Python of an environment that has lerobot (0.4.4).

usage: PYTHON loader_lerobot.py FRAMES_NPZ WORK_DIR SECONDS BATCH_SIZE HORIZON

FRAMES_NPZ holds image (N, H, W, 3) uint8, agent_position (N, 2), action (N, 2) and ends (E,). Builds a LeRobotDataset with
the frames as images and one with them as video, which is lerobot's default, and reads shuffled batches of 2 observations
with a DataLoader, in the same process and with two workers. Prints one JSON object per measurement.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

FPS = 10


def main(frames: Path, work: Path, *, seconds: float, batch_size: int, horizon: int) -> None:
    """Build both data sets, unless they exist, and measure each."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "home"), "HF_LEROBOT_HOME": str(work / "home")}
    for kind in ("image", "video"):
        if not (work / kind).exists():
            build(frames, work / kind, kind)
        for workers in (0, 2):
            print(json.dumps(measure(work / kind, kind, workers, seconds, batch_size, horizon)), flush=True)


def build(frames: Path, root: Path, kind: str) -> None:
    """Write the frames as a LeRobotDataset; ``root`` appears only when it is complete."""
    import numpy as np
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    arrays = dict(np.load(frames))
    images, ends = arrays["image"], arrays["ends"]
    dataset = LeRobotDataset.create(
        "flowchunk/loader",
        fps=FPS,
        root=root.with_suffix(".partial"),
        use_videos=kind == "video",
        features={
            "observation.image": {
                "dtype": kind,
                "shape": images.shape[1:],
                "names": ["height", "width", "channels"],
            },
            "observation.state": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
            "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
        },
    )
    for start, stop in zip([0, *ends[:-1]], ends, strict=True):
        for k in range(start, stop):
            values = {"observation.image": images[k], "observation.state": arrays["agent_position"][k]}
            dataset.add_frame({**values, "action": arrays["action"][k], "task": "push the T"})
        dataset.save_episode()
    dataset.finalize()
    root.with_suffix(".partial").rename(root)


def measure(
    root: Path, kind: str, workers: int, seconds: float, batch_size: int, horizon: int
) -> dict[str, float | str]:
    """Windows per second, and the private memory of the process and its workers in bytes."""
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    torch.set_num_threads(1)
    past = [-1 / FPS, 0.0]
    dataset = LeRobotDataset(
        "flowchunk/loader",
        root=root,
        video_backend=(backend := video_backend()),
        delta_timestamps={
            "observation.image": past,
            "observation.state": past,
            "action": [step / FPS for step in range(horizon)],
        },
    )
    loader: Any = torch.utils.data.DataLoader(
        dataset, batch_size=batch_size, shuffle=True, num_workers=workers, drop_last=True
    )
    batches = iter(loader)
    assert tuple(next(batches)["observation.image"].shape)[:2] == (batch_size, 2)
    started, count, memory = time.perf_counter(), 0, 0
    for _ in batches:
        count += 1
        memory = max(memory, private_memory()) if count % 10 == 1 else memory
        if time.perf_counter() - started > seconds:
            break
    speed = count * batch_size / (time.perf_counter() - started)
    name = f"lerobot, {kind if kind == 'image' else f'video by {backend}'}, {workers} workers"
    return {"loader": name, "frames": len(dataset), "speed": speed, "memory": memory}


def video_backend() -> str:
    """lerobot's default, or its fallback if the system has no FFmpeg libraries."""
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, RuntimeError, OSError):
        return "pyav"
    return "torchcodec"


def private_memory() -> int:
    """Private memory of this process and its children, in bytes."""
    import psutil

    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(member.memory_full_info().uss for member in family)


if __name__ == "__main__":
    given = sys.argv[1:]
    main(Path(given[0]), Path(given[1]), seconds=float(given[2]), batch_size=int(given[3]), horizon=int(given[4]))
