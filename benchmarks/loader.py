"""Windows per second from images, and the memory used, for each kind of image cache.

usage: python benchmarks/loader.py DATASET_PATH [--seconds 10] [--repeats 10] [--work DIR] [--lerobot PYTHON]

DATASET_PATH is diffusion_policy's Push-T (data/img, 96 x 96). Batches of 64 shuffled windows of 2 observations and 16
actions, each measurement in a process of its own; memory is the peak of the private memory of the process (USS), and how
much of it is for the data. The same for the data set repeated that many times. PYTHON, of an environment in which lerobot
is installed, measures its loader on the same frames. Targets: ten times what a training step consumes; the memory for the
repeated data set within 300 MB of that for the original.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table

from flowchunk.datasets.formats.zarr_store import Store
from flowchunk.datasets.image_cache import ImageCacheOptions
from flowchunk.datasets.image_reader import ImageReader
from flowchunk.datasets.recorder import StoreWriter
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from flowchunk.datasets.symmetry import Symmetry
from flowchunk.datasets.windows import load_image_tensors, load_windows

BATCH_SIZE, OBSERVATION_STEPS, HORIZON = 64, 2, 16
OBSERVATIONS = ObservationSpec(
    {"image": ObservationField((96, 96, 3), camera="top"), "agent_position": ObservationField((2,))}
)
ACTIONS = ActionSpec((ActionDimension("x", "px", "plane"), ActionDimension("y", "px", "plane")), control_hz=10.0)
MIRRORED = "disk, half of it mirrored"
_SWAPPED = {"order": [1, 0], "sign": [-1, -1], "offset": [512, 512]}
MIRROR = {"image": {"transform": "anti_transpose"}, "agent_position": _SWAPPED, "action": _SWAPPED}
SIZES = {"agent_position": 2, "action": 2}


def main(dataset: Path, *, seconds: float, repeats: int, work: Path, lerobot: str | None) -> None:
    """Measure every mode on the data set and on its repetition, and print a table."""
    source = Store.open(dataset, sources={"image": "img", "agent_position": "state[:2]"})
    table = Table("loader", "frames", "windows / s", "first batch", "second run", "memory", "of it for data")
    for count in (1, repeats):
        store = work / f"{count}.zarr"
        if not store.exists():
            write_repeats(source, store, count)
        for mode in ("disk", MIRRORED, "ram"):
            first, second = (measure_in_process(mode, store, work / "cache", seconds) for _ in range(2))
            table.add_row(
                f"flowchunk, cache={mode}",
                f"{first['frames']:,}",
                f"{max(first['speed'], second['speed']):,.0f}",
                f"{first['ready']:.1f} s",
                f"{second['ready']:.1f} s",
                f"{second['memory'] / 1e6:,.0f} MB",
                f"{second['grown'] / 1e6:,.0f} MB",
            )
    if lerobot is not None:
        for line in measure_lerobot(lerobot, work / "1.zarr", work, seconds):
            table.add_row(
                line["loader"],
                f"{line['frames']:,}",
                f"{line['speed']:,.0f}",
                "",
                "",
                f"{line['memory'] / 1e6:,.0f} MB",
                "",
            )
    Console(width=140).print(table)


def write_repeats(source: Store, path: Path, count: int) -> None:
    """Write a store that has every episode ``count`` times."""
    images = ImageReader.find(source, "image", OBSERVATIONS.fields["image"])
    with StoreWriter(path, observation_spec=OBSERVATIONS, action_spec=ACTIONS) as writer:
        for start, stop in zip(source.episode_starts.tolist(), source.episode_ends.tolist(), strict=True):
            values = {
                "image": images.read(start, stop),
                "agent_position": source.read("agent_position", start, stop),
            }
            for _ in range(count):
                writer.add_episode(values, source.read("action", start, stop))


def measure_in_process(mode: str, store: Path, cache: Path, seconds: float) -> dict[str, float]:
    """``measure`` in a process of its own."""
    command = [sys.executable, __file__, str(store), "--measure", mode, "--work", str(cache), "--seconds", str(seconds)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))


def measure(mode: str, path: Path, cache: Path, seconds: float) -> dict[str, float]:
    """Windows per second, seconds until the first batch, and bytes of private memory."""
    torch.set_num_threads(1)
    process, started = psutil.Process(), time.perf_counter()
    before = process.memory_full_info().uss
    store = Store.open(path)
    options = ImageCacheOptions("disk" if mode == MIRRORED else mode, cache)
    images = load_image_tensors(store, OBSERVATIONS, options, say=None)
    windows = load_windows(
        store,
        OBSERVATIONS,
        ACTIONS,
        episodes=range(len(store.episode_ends)),
        observation_steps=OBSERVATION_STEPS,
        horizon=HORIZON,
        images=images,
        symmetry=Symmetry.from_options(MIRROR, SIZES, {"image": (96, 96, 3)}) if mode == MIRRORED else None,
    )
    windows.batch(torch.arange(BATCH_SIZE))
    ready, memory, spent, count = time.perf_counter() - started, 0, 0.0, 0
    generator = torch.Generator().manual_seed(0)
    while spent < seconds:
        for indices in torch.randperm(len(windows), generator=generator)[: 100 * BATCH_SIZE].view(-1, BATCH_SIZE):
            started = time.perf_counter()
            windows.batch(indices)
            spent += time.perf_counter() - started
            count += 1
            if count % 10 == 0:
                memory = max(memory, process.memory_full_info().uss)
    return {
        "frames": store.num_frames,
        "speed": count * BATCH_SIZE / spent,
        "ready": ready,
        "memory": memory,
        "grown": memory - before,
    }


def measure_lerobot(python: str, path: Path, work: Path, seconds: float) -> list[dict[str, float | str]]:
    """Measurements of LeRobot's loader on the frames of a store, with the Python of another environment."""
    store, arrays = Store.open(path), work / "frames.npz"
    if not arrays.exists():
        np.savez(arrays, **{key: store.read(key) for key in (*OBSERVATIONS.fields, "action")}, ends=store.episode_ends)
    script = Path(__file__).with_name("loader_lerobot.py")
    command = [python, str(script), str(arrays), str(work / "lerobot"), str(seconds), str(BATCH_SIZE), str(HORIZON)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--lerobot", metavar="PYTHON")
    parser.add_argument("--measure", choices=("disk", MIRRORED, "ram"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given.dataset, given.work, given.seconds)))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(
                given.dataset,
                seconds=given.seconds,
                repeats=given.repeats,
                work=given.work or Path(folder),
                lerobot=given.lerobot,
            )
