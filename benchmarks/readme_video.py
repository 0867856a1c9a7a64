"""The animation of the README: an episode of Push-T with its predicted chunks, as a GIF at double speed.

usage: python benchmarks/readme_video.py RUN docs/images/push-t.gif [--seed 100000] [--size 400]

RUN is a run of task=pusht_state. Eight chunks are predicted for each observation; the dotted one is executed.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import torch
from PIL import Image

from flowchunk.envs.rollout import record_episode
from flowchunk.policy.chunk_policy import ChunkPolicy

ENVIRONMENT = "flowchunk.envs:flowchunk/PushT-v1"
MILLISECONDS = 50  # per step; the control frequency is 10 Hz
LAST_MILLISECONDS = 1500
COLORS = 128


def main() -> None:
    """Write the GIF."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("gif", type=Path)
    parser.add_argument("--seed", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=400)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    policy = ChunkPolicy.load(arguments.run)
    make = partial(gymnasium.make, ENVIRONMENT, render_mode="rgb_array", render_size=arguments.size)
    frames = list(record_episode(policy, make, policy.execution, seed=arguments.seed, nfe=4))
    write_gif(arguments.gif, frames)
    print(f"{len(frames)} steps in {arguments.gif}, {arguments.gif.stat().st_size / 1e3:.0f} kB")


def write_gif(path: Path, frames: list[np.ndarray]) -> None:
    """Write frames (height, width, 3), uint8, with a common palette, so that unchanged pixels take no space."""
    sample = np.concatenate(frames[:: max(1, len(frames) // 8)])
    palette = Image.fromarray(sample).quantize(COLORS, dither=Image.Dither.NONE)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [MILLISECONDS] * (len(images) - 1) + [LAST_MILLISECONDS]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=False)


if __name__ == "__main__":
    main()
