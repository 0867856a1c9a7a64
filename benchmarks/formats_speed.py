"""Converting between formats: MB/s and memory; decoding for the first epoch; windows per second from every format.

usage: python benchmarks/formats_speed.py DATASET_PATH CAMERA_PATH [--exclude KEY …] [--repeats 10] [--seconds 5]
           [--lerobot PYTHON] [--work DIR]

DATASET_PATH is diffusion_policy's Push-T (data/img, 96 x 96), CAMERA_PATH a data set of any format with images of cameras;
--exclude leaves out keys of it. Each is converted to every format that is written, and from LeRobot's back to flowchunk's;
MB are those of the decoded data, 4 bytes per value and 1 per channel of a pixel. Each measurement is made in a process of its
own, and memory is the peak of its resident memory above that before the conversion. Speeds are per second, and per second
of a processor, over all threads, which other work on the machine changes little. The camera's data are also converted
after their episodes were repeated, from flowchunk's format; target: at most 300 MB more memory.

Then every format is decoded into the image cache, which is what a first epoch waits for, and gives batches of 64 shuffled
windows of 2 observations and 16 actions from it, on one thread. PYTHON, of an environment in which lerobot (0.4.4) is
installed, measures its loader on the same videos. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from flowchunk.datasets.derived_specs import SpecOptions, derive_specs
from flowchunk.datasets.episode_source import EpisodeSource
from flowchunk.datasets.episodes import read_episodes
from flowchunk.datasets.formats import open_dataset
from flowchunk.datasets.formats.writing import make_writer
from flowchunk.datasets.image_cache import ImageCacheOptions
from flowchunk.datasets.windows import load_image_tensors, load_windows
from flowchunk.policy.demonstrations import Specs

BATCH_SIZE, OBSERVATION_STEPS, HORIZON = 64, 2, 16
TARGETS: dict[str, tuple[str, str | None, str]] = {  # name: format, codec, suffix
    "flowchunk": ("flowchunk", None, ".zarr"),
    "diffusion_policy": ("diffusion_policy", None, ".zarr"),
    "robomimic": ("robomimic", None, ".hdf5"),
    "LeRobot, png": ("lerobot", "png", ""),
    "LeRobot, h264": ("lerobot", "h264", ""),
    "LeRobot, av1": ("lerobot", "av1", ""),
}
VIDEOS = ("LeRobot, h264", "LeRobot, av1")
BACK = "LeRobot, h264"  # what is converted back to flowchunk's format


@dataclass(frozen=True)
class DataSet:
    """A data set, and what has to be said about it; see ``SpecOptions``."""

    path: str
    sources: dict[str, str] = field(default_factory=dict)
    observe: list[str] | None = None
    exclude: list[str] = field(default_factory=list)
    control_hz: float | None = None

    def open(self) -> tuple[EpisodeSource, Specs]:
        """The source with its specifications."""
        source = open_dataset(self.path, sources=self.sources)
        options = SpecOptions(observe=self.observe, exclude=self.exclude, control_hz=self.control_hz)
        derived = derive_specs(source, options)
        return source, (derived.observation_spec, derived.action_spec)


def main(push_t: DataSet, camera: DataSet, *, repeats: int, seconds: float, work: Path, lerobot: str | None) -> None:
    """Measure, and print a table for each figure."""
    conversions = Table("data", "to", "decoded MB", "MB / s", "MB / processor s", "memory", title="conversions")
    loading = Table(
        "data", "format", "decoded frames / s", "/ processor s", "windows / s", "/ processor s", title="loading"
    )
    made = {}
    for name, source in (("Push-T", push_t), ("camera", camera)):
        made[name] = convert_all(conversions, name, source, work / name, TARGETS)
    several = [target for target in TARGETS if target != "LeRobot, av1"]
    convert_all(conversions, f"camera, {repeats} x", made["camera"]["flowchunk"], work / "repeated", several, repeats)
    Console(width=140).print(conversions)
    for name, source in (("Push-T", push_t), ("camera", camera)):
        for label, data_set in {"the original": source, **made[name]}.items():
            result = in_process("load", data_set, work / "cache", seconds=seconds)
            decoded, windows = (per_second(result[f"{one}s"], result, one) for one in ("frame", "window"))
            loading.add_row(name, label, *decoded, *windows)
    Console(width=140).print(loading)
    if lerobot is not None:
        Console(width=140).print(lerobot_table(lerobot, made["camera"], work, seconds))


def convert_all(
    table: Table, name: str, source: DataSet, work: Path, targets: Iterable[str], repeats: int = 1
) -> dict[str, DataSet]:
    """Convert to each target, and back from LeRobot's video; adds the rows, and returns the results by target."""
    made: dict[str, DataSet] = {}
    for target in targets:
        to, codec, suffix = TARGETS[target]
        out = work / f"{to}-{codec}{suffix}"
        result = in_process("convert", source, out, to=to, codec=codec, repeats=repeats)
        made[target] = DataSet(str(out))
        add_row(table, name, target, result)
    add_row(
        table, f"{name}, {BACK}", "flowchunk", in_process("convert", made[BACK], work / "back.zarr", to="flowchunk")
    )
    return made


def add_row(table: Table, name: str, target: str, result: dict[str, float]) -> None:
    """Add the result of a conversion."""
    speeds = per_second(result["megabytes"], result, "conversion")
    table.add_row(name, target, f"{result['megabytes']:,.0f}", *speeds, f"{result['memory']:,.0f} MB")


def per_second(amount: float, times: dict[str, float], what: str) -> list[str]:
    """An amount per second, and per second of a processor."""
    return [f"{amount / times[f'{what}_{clock}']:,.0f}" for clock in ("seconds", "processor_seconds")]


def in_process(what: str, data_set: DataSet, path: Path, **options: Any) -> dict[str, float]:
    """``convert`` or ``load`` in a process of its own."""
    call = json.dumps({"what": what, "data_set": asdict(data_set), "path": str(path), **options})
    command = [sys.executable, __file__, "--call", call]
    return dict(
        json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    )


def convert(data_set: DataSet, path: Path, *, to: str, codec: str | None = None, repeats: int = 1) -> dict[str, float]:
    """Write every episode ``repeats`` times; decoded megabytes, how long it took, and megabytes of memory."""
    source, specs = data_set.open()
    path.parent.mkdir(parents=True, exist_ok=True)
    before, started = memory("VmRSS"), clocks()
    with make_writer(to, path, *specs, codec=codec) as writer:
        for _ in range(repeats):
            for episode in read_episodes(source, *specs):
                writer.add_episode(episode.observations, episode.actions, task=episode.task)
    times = elapsed(started, "conversion")
    per_frame = sum(prod(one.shape) * (1 if one.is_image else 4) for one in specs[0].fields.values())
    megabytes = repeats * source.num_frames * (per_frame + 4 * specs[1].size) / 1e6
    return {"megabytes": megabytes, **times, "memory": (memory("VmHWM") - before) / 1e6}


def load(data_set: DataSet, path: Path, *, seconds: float) -> dict[str, float]:
    """How many frames are decoded into the image cache at ``path``, and windows read from it, and how long it takes."""
    source, specs = data_set.open()
    started = clocks()
    images = load_image_tensors(source, specs[0], ImageCacheOptions("disk", path), say=None)
    decoding = elapsed(started, "frame")
    torch.set_num_threads(1)
    windows = load_windows(
        source,
        *specs,
        episodes=range(len(source.episode_ends)),
        observation_steps=OBSERVATION_STEPS,
        horizon=HORIZON,
        images=images,
    )
    windows.batch(torch.arange(min(BATCH_SIZE, len(windows))))
    order, started, count = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0)), clocks(), 0
    while time.perf_counter() - started[0] < seconds:
        windows.batch(order[torch.arange(count, count + BATCH_SIZE) % len(order)])
        count += BATCH_SIZE
    return {"frames": source.num_frames, **decoding, "windows": count, **elapsed(started, "window")}


def clocks() -> tuple[float, float]:
    """Seconds, and seconds of a processor that all threads of this process took."""
    return time.perf_counter(), time.process_time()


def elapsed(started: tuple[float, float], what: str) -> dict[str, float]:
    """What both clocks have measured since then, with names that begin with ``what``."""
    seconds, processor_seconds = (now - then for now, then in zip(clocks(), started, strict=True))
    return {f"{what}_seconds": seconds, f"{what}_processor_seconds": processor_seconds}


def memory(name: str) -> int:
    """Bytes of this process's resident memory: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def lerobot_table(python: str, made: dict[str, DataSet], work: Path, seconds: float) -> Table:
    """What lerobot's loader reads of the videos, with the Python of another environment."""
    table = Table("format", "loader", "frames / s", "/ processor s", title="lerobot")
    for target in VIDEOS:
        script, home = Path(__file__).with_name("formats_lerobot.py"), str(work / "home")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": home, "HF_LEROBOT_HOME": home}
        output = subprocess.run(
            [python, str(script), made[target].path, str(seconds), str(BATCH_SIZE)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        ).stdout
        for line in (json.loads(text) for text in output.splitlines() if text.startswith("{")):
            table.add_row(target, line["loader"], *per_second(line["frames"], line, "frame"))
    return table


if __name__ == "__main__":
    if sys.argv[1:2] == ["--call"]:
        call = json.loads(sys.argv[2])
        function = {"convert": convert, "load": load}[call.pop("what")]
        print(json.dumps(function(DataSet(**call.pop("data_set")), Path(call.pop("path")), **call)))
        sys.exit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("camera", type=Path)
    parser.add_argument("--exclude", nargs="*", default=[])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--lerobot", metavar="PYTHON")
    given = parser.parse_args()
    push_t_sources = {"image": "img", "agent_position": "state[:2]"}
    with tempfile.TemporaryDirectory() as folder:
        main(
            DataSet(str(given.dataset), push_t_sources, [*push_t_sources], control_hz=10.0),
            DataSet(str(given.camera), exclude=given.exclude),
            repeats=given.repeats,
            seconds=given.seconds,
            work=given.work or Path(folder),
            lerobot=given.lerobot,
        )
