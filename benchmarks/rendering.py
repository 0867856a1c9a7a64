"""Images per second, on one core, of every camera of the tasks, and how close those of Push-T are to recorded ones.

usage: python benchmarks/rendering.py [--images 2000] [--dataset pusht_cchi_v7_replay.zarr]

Targets: Push-T at least 1,500, PickPlace at least 400 per camera with software EGL; a mean difference of at most 1.0 of 255
from the recorded frames. Each number is the median of five runs.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import zarr
from rich.console import Console
from rich.table import Table

from flowchunk.envs.rendering import OffscreenRenderer
from flowchunk.envs.tasks.pick_place import CAMERAS, IMAGE_SIZE, PickPlace
from flowchunk.envs.tasks.pusht import PushT

NUM_ENVIRONMENTS = 50
RUNS = 5


def calls_per_second(function: Callable[[], object], calls: int) -> float:
    """How often the function runs per second: the median of five runs, of ``calls`` altogether."""
    rates = []
    for _ in range(RUNS):
        started = time.perf_counter()
        for _ in range(calls // RUNS):
            function()
        rates.append(calls // RUNS / (time.perf_counter() - started))
    return float(np.median(rates))


def pusht_rows(images: int) -> list[tuple[str, float]]:
    """Images of Push-T, and control steps with image observations."""
    env = PushT(render_mode="rgb_array", render_size=IMAGE_SIZE)
    image_env = PushT(observation="image")
    for environment in (env, image_env):
        environment.reset(seed=0)
    target = np.array([256.0, 256.0])
    return [
        ("PushT top", calls_per_second(env.render, images)),
        ("PushT control steps with images", calls_per_second(lambda: image_env.step(target), images)),
    ]


def pick_place_rows(images: int) -> list[tuple[str, float]]:
    """Each camera of PickPlace, one in 50 environments in turn, and control steps with image observations."""
    environments = [PickPlace() for _ in range(NUM_ENVIRONMENTS)]
    for seed, env in enumerate(environments):
        env.reset(seed=seed)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    renderers = [OffscreenRenderer(env.model, **size) for env in environments]

    def render_all() -> None:
        for env, renderer in zip(environments, renderers, strict=True):
            renderer.render(env.data, camera="front")

    rows = [
        (
            f"PickPlace {name}",
            calls_per_second(lambda name=name: renderers[0].render(environments[0].data, camera=name), images),
        )
        for name in CAMERAS
    ]
    rows.append(
        (
            f"PickPlace front of {NUM_ENVIRONMENTS} in turn",
            NUM_ENVIRONMENTS * calls_per_second(render_all, images // NUM_ENVIRONMENTS),
        )
    )
    image_env = PickPlace(observation="image")
    image_env.reset(seed=0)
    action = np.append(image_env.joint_targets(), 0.07)
    rows.append(("PickPlace control steps with images", calls_per_second(lambda: image_env.step(action), images // 4)))
    for resource in (*renderers, image_env):
        resource.close()
    return rows


def recorded_error(path: Path, frames: int = 1000) -> float:
    """Mean absolute difference, of 255, between recorded frames and images rendered from their states."""
    recorded: Any = zarr.open_group(str(path), mode="r")
    states = np.asarray(recorded["data/state"])
    env = PushT(observation="image")
    errors = []
    for start in np.random.default_rng(0).integers(0, len(states) - 50, frames // 50):
        for state, image in zip(states[start : start + 50], recorded["data/img"][start : start + 50], strict=True):
            rendered = env.reset(options={"state": state})[0]["image"]
            errors.append(np.abs(rendered - image).mean())
    return float(np.mean(errors))


def main(images: int, dataset: Path | None) -> None:
    """Print the table."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    table = Table("image, 96 x 96", "per second", title=f"one core, MuJoCo {mujoco.__version__}")
    for name, rate in (*pusht_rows(images), *pick_place_rows(images)):
        table.add_row(name, f"{rate:,.0f}")
    console = Console()
    console.print(table)
    console.print(f"rendered with MUJOCO_GL={os.environ.get('MUJOCO_GL')}")
    if dataset is not None:
        console.print(f"Push-T against 1,000 recorded frames: {recorded_error(dataset):.3f} of 255")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--dataset", type=Path)
    arguments = parser.parse_args()
    main(arguments.images, arguments.dataset)
