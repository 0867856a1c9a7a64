"""How closely flowchunk/PushT-v1 follows the original: replay the 206 human demonstrations open loop.

usage: python benchmarks/pusht_replay.py pusht_cchi_v7_replay.zarr [--physics-step 0.01]

Each replay starts from the first state of a recording. State k was recorded before action k, so the block is compared at
the last recorded state, before the last action; the best coverage is that of the whole replay.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np
import zarr
from rich.console import Console
from rich.table import Table

from flowchunk.envs.tasks.pusht import PushT


@dataclass(frozen=True)
class Recording:
    """states: (T, 5) agent x, y, block x, y in px, block angle in rad. actions: (T, 2) target x, y in px."""

    states: np.ndarray
    actions: np.ndarray


@dataclass(frozen=True)
class Replay:
    """The result of a replay: the distance of the block from its last recorded position, and the best coverage, 0 to 1."""

    block_error_px: float
    best_coverage: float


def load_recordings(path: Path) -> Iterator[Recording]:
    """The recordings in a store of the original's format."""
    group = zarr.open_group(str(path), mode="r")
    states, actions = np.asarray(group["data/state"]), np.asarray(group["data/action"])
    start = 0
    for end in np.asarray(group["meta/episode_ends"]).tolist():
        yield Recording(states[start:end], actions[start:end])
        start = end


def replay(env: PushT, recording: Recording) -> Replay:
    """Step through the actions of a recording from its first state."""
    observation, info = env.reset(options={"state": recording.states[0]})
    best_coverage = info["coverage"]
    for action in recording.actions:
        last_state = observation["state"]
        observation, _, _, _, info = env.step(action)
        best_coverage = max(best_coverage, info["coverage"])
    return Replay(math.dist(last_state[2:4], recording.states[-1, 2:4]), best_coverage)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset_path", type=Path, help="pusht_cchi_v7_replay.zarr")
    parser.add_argument("--physics-step", type=float, default=0.01, help="0.01 or 0.005 s")
    arguments = parser.parse_args()

    recordings = list(load_recordings(arguments.dataset_path))
    env = PushT(physics_step=arguments.physics_step)
    start = time.perf_counter()
    replays = [replay(env, recording) for recording in recordings]
    seconds = time.perf_counter() - start

    errors = [replay.block_error_px for replay in replays]
    steps = sum(len(recording.actions) for recording in recordings)
    table = Table("figure", "measured", "target", title=f"{len(replays)} recordings, MuJoCo {mujoco.__version__}")
    table.add_row("block position error, median", f"{np.median(errors):.3f} px", "≤ 0.4 px")
    table.add_row("block position error, 90th percentile", f"{np.quantile(errors, 0.9):.3f} px", "≤ 1.5 px")
    table.add_row("best coverage, mean", f"{np.mean([replay.best_coverage for replay in replays]):.4f}", "≥ 0.87")
    table.add_row("control steps per second, one core", f"{steps / seconds:,.0f}", "≥ 3,000")
    table.add_row("physics step", f"{arguments.physics_step:g} s", "")
    Console().print(table)


if __name__ == "__main__":
    main()
