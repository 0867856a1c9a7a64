"""LeRobot's loader on a data set in its format; run by ``formats_speed.py``, with the Python of an environment that has it.

usage: PYTHON formats_lerobot.py LEROBOT_PATH SECONDS BATCH_SIZE

Reads all frames in order and shuffled, in batches of a DataLoader, in the same process and with two workers, for so many
seconds each. Prints one JSON object per measurement.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from loader_lerobot import video_backend


def main(root: Path, *, seconds: float, batch_size: int) -> None:
    """Measure all four."""
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    torch.set_num_threads(1)
    dataset = LeRobotDataset("flowchunk/formats", root=root, video_backend=(backend := video_backend()))
    for is_shuffled in (False, True):
        for workers in (0, 2):
            loader: Any = torch.utils.data.DataLoader(
                dataset, batch_size=batch_size, shuffle=is_shuffled, num_workers=workers, drop_last=True
            )
            order = "shuffled" if is_shuffled else "in order"
            name = f"lerobot by {backend}, {order}, {workers} workers"
            print(json.dumps({"loader": name, **measure(loader, seconds, batch_size)}), flush=True)


def measure(loader: Any, seconds: float, batch_size: int) -> dict[str, float]:
    """How many frames are read, and how long it takes, once the workers have started and what they prepared is read."""
    batches = iter(loader)
    for _ in range(1 + loader.num_workers * (loader.prefetch_factor or 0)):
        next(batches)
    started, processor, count = time.perf_counter(), processor_seconds(), 0
    for _ in batches:
        count += batch_size
        if time.perf_counter() - started > seconds:
            break
    return {
        "frames": count,
        "frame_seconds": time.perf_counter() - started,
        "frame_processor_seconds": processor_seconds() - processor,
    }


def processor_seconds() -> float:
    """Seconds of a processor that this process and its workers, running or ended, took."""
    import psutil

    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(member.cpu_times()[:4]) for member in family)


if __name__ == "__main__":
    main(Path(sys.argv[1]), seconds=float(sys.argv[2]), batch_size=int(sys.argv[3]))
