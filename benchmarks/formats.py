"""The same data in every format: Push-T converted and read back gives the same windows, and the same training.

usage: python benchmarks/formats.py DATASET_PATH [--lerobot LEROBOT_PATH] [--steps 20] [--work DIR]

DATASET_PATH is diffusion_policy's Push-T (data/img, 96 x 96). It is converted to every format that is written; all windows
of all episodes are compared with those of the original, and so are the losses of a short training (the same seed, batches
of 64, a small policy) and its weights. h264 is lossy, so its error is measured, of 255. LEROBOT_PATH is the same data set as
others converted it, such as lerobot/pusht: its positions and actions are compared row by row; its videos are not needed.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from flowchunk.datasets.convert import convert
from flowchunk.datasets.episode_source import EpisodeSource
from flowchunk.datasets.formats import open_dataset
from flowchunk.datasets.image_cache import ImageCacheOptions
from flowchunk.datasets.windows import Windows, load_image_tensors, load_windows
from flowchunk.envs.contract import specs_of
from flowchunk.envs.simulation import environment_maker
from flowchunk.policy.demonstrations import DatasetOptions, Specs
from flowchunk.policy.fitting import fit
from flowchunk.policy.policy_config import PolicyConfig
from flowchunk.policy.training.config import TrainingConfig
from flowchunk.policy.training.run_log import read_metrics

SOURCES = {"image": "img", "agent_position": "state[:2]"}
OBSERVATION_STEPS, HORIZON, BATCH_SIZE = 2, 16, 64
POLICY = PolicyConfig(
    observation_steps=OBSERVATION_STEPS,
    horizon=HORIZON,
    network_options={"width": 64, "blocks": 1},
    vision="small_conv",
    vision_options={"widths": [8, 16]},
)
TARGETS: dict[str, tuple[str, str | None, str]] = {  # name: format, codec, suffix
    "flowchunk": ("flowchunk", None, ".zarr"),
    "diffusion_policy": ("diffusion_policy", None, ".zarr"),
    "robomimic": ("robomimic", None, ".hdf5"),
    "LeRobot v3.0, png": ("lerobot", "png", ""),
    "LeRobot v3.0, h264": ("lerobot", "h264", ""),
}


@dataclass(frozen=True)
class Training:
    """The loss of every step, and the weights after the last."""

    losses: list[float]
    weights: dict[str, torch.Tensor]

    def difference(self, other: Training) -> str:
        """How another training differs, in words."""
        if self.losses == other.losses and all(map(torch.equal, self.weights.values(), other.weights.values())):
            return "identical"
        worst = max(abs(a - b) / a for a, b in zip(self.losses, other.losses, strict=True))
        return f"losses differ by up to {worst:.1e} of them"


def main(dataset: Path, *, lerobot: Path | None, steps: int, work: Path) -> None:
    """Convert, compare and print a table."""
    source, specs, cache = (
        open_dataset(dataset, sources=SOURCES),
        push_t_specs(),
        ImageCacheOptions("disk", work / "cache"),
    )
    windows, training = all_windows(source, specs, cache), train(source, specs, cache, steps, work / "original")
    table = Table(
        "format", "windows", "with equal values", "with equal images", "error of images", "loss of every step"
    )
    for name, (to, codec, suffix) in TARGETS.items():
        out = work / f"{to}-{codec}{suffix}"
        if not out.exists():
            convert(source, *specs, out, to=to, codec=codec, say=lambda _: None)
        converted = open_dataset(out)
        other = all_windows(converted, specs, cache)
        values, images = equal_windows(windows, other)
        error = "0" if images == len(windows) else image_error(windows, other)
        loss = training.difference(train(converted, specs, cache, steps, work / f"run-{out.stem}"))
        table.add_row(name, f"{len(other):,}", f"{values:,}", f"{images:,}", error, loss)
    Console(width=140).print(table)
    print(f"loss of the first and the last of {steps} steps: {training.losses[0]:.4f}, {training.losses[-1]:.4f}")
    if lerobot is not None:
        print(compare_rows(source, open_dataset(lerobot)))


def push_t_specs() -> Specs:
    """The specifications of Push-T from images."""
    env = environment_maker("flowchunk/PushT-v1", {"observation": "image"})()
    try:
        return specs_of(env)
    finally:
        env.close()


def all_windows(source: EpisodeSource, specs: Specs, cache: ImageCacheOptions) -> Windows:
    """The windows of all episodes."""
    return load_windows(
        source,
        *specs,
        episodes=range(len(source.episode_ends)),
        observation_steps=OBSERVATION_STEPS,
        horizon=HORIZON,
        images=load_image_tensors(source, specs[0], cache, say=None),
    )


def equal_windows(windows: Windows, other: Windows) -> tuple[int, int]:
    """How many windows have the same values and mask in both, and how many the same images, bit for bit."""
    images = set() if windows.images is None else {f"observation.{key}" for key in windows.images.tensors}
    counts = {True: 0, False: 0}  # by whether it is of images
    if len(windows) == len(other):
        for indices in torch.arange(len(windows)).split(BATCH_SIZE):
            first, second = windows.batch(indices), other.batch(indices)
            for is_image in counts:
                keys = [key for key in first if (key in images) == is_image]
                equal = [(first[key] == second[key]).flatten(1).all(dim=1) for key in keys]
                counts[is_image] += int(torch.stack(equal).all(dim=0).sum())
    return counts[False], counts[True]


def image_error(windows: Windows, other: Windows) -> str:
    """Mean, 99th percentile and largest error over all pixels and channels of all images."""
    assert windows.images is not None
    assert other.images is not None
    counts = torch.zeros(256, dtype=torch.int64)
    for key, images in windows.images.tensors.items():
        for first, second in zip(images.split(BATCH_SIZE), other.images.tensors[key].split(BATCH_SIZE), strict=True):
            error = (first.short() - second.short()).abs()
            counts += torch.bincount(error.flatten(), minlength=256)
    levels, share = torch.arange(256), counts.cumsum(0) / counts.sum()
    mean = float((levels * counts).sum() / counts.sum())
    return f"mean {mean:.2f}, 99 % {int((share >= 0.99).int().argmax())}, largest {int(levels[counts > 0].max())}"


def train(source: EpisodeSource, specs: Specs, cache: ImageCacheOptions, steps: int, run: Path) -> Training:
    """Train a small policy from a fixed seed."""
    config = TrainingConfig(steps=steps, batch_size=BATCH_SIZE, log_every=1, evaluate_every=steps)
    with redirect_stdout(io.StringIO()):
        policy = fit(
            source, POLICY, config, output_dir=run, specs=specs, dataset=DatasetOptions(cache=cache), device="cpu"
        )
    return Training([line["loss"] for line in read_metrics(run) if "loss" in line], policy.state_dict())


def compare_rows(source: EpisodeSource, lerobot: EpisodeSource) -> str:
    """Whether positions, actions and the episodes' lengths are those of the original, in words."""
    pairs = {
        "positions": (source.read("agent_position"), lerobot.read("observation.state")),
        "actions": (source.read("action"), lerobot.read("action")),
        "lengths": (source.episode_lengths, lerobot.episode_lengths),
    }
    return f"{lerobot.format} as others converted it: " + ", ".join(
        f"{name} {'equal' if np.array_equal(*both) else 'DIFFER'}" for name, both in pairs.items()
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--lerobot", type=Path, metavar="LEROBOT_PATH")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--work", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        main(given.dataset, lerobot=given.lerobot, steps=given.steps, work=given.work or Path(folder))
