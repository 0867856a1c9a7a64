"""Pictures a second, on one core, of every camera that a policy can see through; and how close Push-T's are to recorded ones.

usage: python benchmarks/rendering.py [--pictures 2000] [--dataset pusht_cchi_v7_replay.zarr]

Targets: Push-T at least 1,500, PickPlace at least 400 a camera on a software EGL; at most 1.0 of 255 from the recorded
frames in the mean. Each figure is the median of five runs.
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

SIDE_BY_SIDE = 50
RUNS = 5


def a_second(draw: Callable[[], object], pictures: int) -> float:
    """How often ``draw`` runs in a second: the median of five runs of ``pictures`` in all."""
    rates = []
    for _ in range(RUNS):
        started = time.perf_counter()
        for _ in range(pictures // RUNS):
            draw()
        rates.append(pictures // RUNS / (time.perf_counter() - started))
    return float(np.median(rates))


def pusht_rows(pictures: int) -> list[tuple[str, float]]:
    """Push-T's picture, and control steps that observe one."""
    env = PushT(render_mode="rgb_array", render_size=IMAGE_SIZE)
    seeing = PushT(observation="image")
    for one in (env, seeing):
        one.reset(seed=0)
    target = np.array([256.0, 256.0])
    return [
        ("PushT top", a_second(env.render, pictures)),
        ("PushT control steps that see", a_second(lambda: seeing.step(target), pictures)),
    ]


def pick_place_rows(pictures: int) -> list[tuple[str, float]]:
    """Each of PickPlace's cameras alone, in 50 environments in turn, and control steps that observe both."""
    environments = [PickPlace() for _ in range(SIDE_BY_SIDE)]
    for seed, env in enumerate(environments):
        env.reset(seed=seed)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    renderers = [OffscreenRenderer(env.model, **size) for env in environments]

    def draw_all() -> None:
        for env, renderer in zip(environments, renderers, strict=True):
            renderer.render(env.data, camera="front")

    rows = [
        (
            f"PickPlace {name}",
            a_second(lambda name=name: renderers[0].render(environments[0].data, camera=name), pictures),
        )
        for name in CAMERAS
    ]
    rows.append(
        (f"PickPlace front of {SIDE_BY_SIDE} in turn", SIDE_BY_SIDE * a_second(draw_all, pictures // SIDE_BY_SIDE))
    )
    seeing = PickPlace(observation="image")
    seeing.reset(seed=0)
    action = np.append(seeing.joint_targets(), 0.07)
    rows.append(("PickPlace control steps that see both", a_second(lambda: seeing.step(action), pictures // 4)))
    for one in (*renderers, seeing):
        one.close()
    return rows


def recorded_error(path: Path, frames: int = 1000) -> float:
    """Mean absolute difference, of 255, of recorded frames and pictures drawn from their states."""
    recorded: Any = zarr.open_group(str(path), mode="r")
    states = np.asarray(recorded["data/state"])
    env = PushT(observation="image")
    errors = []
    for start in np.random.default_rng(0).integers(0, len(states) - 50, frames // 50):
        for state, picture in zip(states[start : start + 50], recorded["data/img"][start : start + 50], strict=True):
            drawn = env.reset(options={"state": state})[0]["image"]
            errors.append(np.abs(drawn - picture).mean())
    return float(np.mean(errors))


def main(pictures: int, dataset: Path | None) -> None:
    """Print the table."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    table = Table("picture, 96 x 96", "a second", title=f"one core, MuJoCo {mujoco.__version__}")
    for name, rate in (*pusht_rows(pictures), *pick_place_rows(pictures)):
        table.add_row(name, f"{rate:,.0f}")
    console = Console()
    console.print(table)
    console.print(f"drawn with MUJOCO_GL={os.environ.get('MUJOCO_GL')}")
    if dataset is not None:
        console.print(f"Push-T against 1,000 recorded frames: {recorded_error(dataset):.3f} of 255")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--dataset", type=Path)
    arguments = parser.parse_args()
    main(arguments.pictures, arguments.dataset)
