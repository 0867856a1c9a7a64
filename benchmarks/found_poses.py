"""Push-T's block found in the recorded images without labels, written beside them as the key that pusht_image_pose learns.

usage: python benchmarks/found_poses.py DATASET_PATH STORE

DATASET_PATH: diffusion_policy's zarr. STORE: flowchunk's, with image, agent_position, block_pose and actions. What the block
looks like, where it lies and where the goal is drawn come from the images and the pusher's recorded position; only the goal's
coordinates, from the task. The poses that are recorded, too, are compared with at the end, and used for nothing else.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np

from flowchunk.datasets import StoreWriter
from flowchunk.datasets.episode_source import EpisodeSource
from flowchunk.datasets.formats import open_dataset
from flowchunk.datasets.planar_object import PlanarObject
from flowchunk.datasets.specs import ObservationSpec
from flowchunk.envs.contract import landmarks_of, recorded_fields_of, specs_of

PIXEL = 512 / 96  # px of the plane
COVERED = 4.5  # of the image's pixels around the pusher
LEARNED_FROM = 600  # images
BLOCK = 1000  # images at a time
SOURCES = {"image": "img", "agent_position": "state[:2]", "block_pose": "state[2:]"}


def main(dataset: Path, store: Path) -> None:
    """Find, compare and write."""
    began = time.process_time()
    source = open_dataset(dataset, sources=SOURCES)
    env = gymnasium.make("flowchunk.envs:flowchunk/PushT-v1", observation="image")
    (observed, actions), recorded, goal = specs_of(env), recorded_fields_of(env), landmarks_of(env)["goal"]
    env.close()
    frames = source.num_frames
    agent = source.read("agent_position", 0, frames)
    covers = agent / PIXEL - 0.5
    chosen = np.sort(np.random.default_rng(0).choice(frames, LEARNED_FROM, replace=False))
    images = np.concatenate([_images(source, index, index + 1) for index in chosen])
    block = PlanarObject.learn(images, covers=covers[chosen], radius=COVERED)
    found = np.concatenate(
        [
            block.poses(_images(source, start, start + BLOCK), covers=covers[start : start + BLOCK], radius=COVERED)[0]
            for start in range(0, frames, BLOCK)
        ]
    )
    poses = as_block_poses(found, block.drawn_pose(), np.array(goal))
    print(f"found in {(time.process_time() - began) / 60:.1f} core-minutes")
    print_errors(poses, source.read("block_pose", 0, frames))
    with StoreWriter(
        store, observation_spec=ObservationSpec({**observed.fields, **recorded.fields}), action_spec=actions
    ) as writer:
        for start, end in zip(source.episode_starts, source.episode_ends, strict=True):
            rows = {"agent_position": agent[start:end], "block_pose": poses[start:end]}
            writer.add_episode({"image": _images(source, start, end), **rows}, source.read("action", start, end))


def as_block_poses(found: np.ndarray, drawn_goal: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Poses (N, 3) in the plane, of a place and direction of the block by which the drawn goal (3,) is at the task's goal.

    That place is sought on the block's axis of symmetry, so that mirrored images have mirrored poses.
    """
    poses, drawn = found.copy(), drawn_goal.copy()
    poses[:, :2], drawn[:2] = (poses[:, :2] + 0.5) * PIXEL, (drawn[:2] + 0.5) * PIXEL
    along = np.array([math.cos(drawn[2]), math.sin(drawn[2])])
    distance = along @ (goal[:2] - drawn[:2])
    poses[:, :2] += distance * np.stack([np.cos(poses[:, 2]), np.sin(poses[:, 2])], 1)
    poses[:, 2] += goal[2] - drawn[2]
    poses[:, 2] = np.angle(np.exp(1j * poses[:, 2]))
    return poses.astype(np.float32)


def print_errors(poses: np.ndarray, recorded: np.ndarray) -> None:
    """Against the recorded poses (N, 3)."""
    distances = np.linalg.norm(poses[:, :2] - recorded[:, :2], axis=1)
    degrees = np.degrees(np.abs(np.angle(np.exp(1j * (poses[:, 2] - recorded[:, 2])))))
    for name, values in (("px", distances), ("degrees", degrees)):
        middle, most, worst = np.quantile(values, [0.5, 0.9, 1])
        print(f"error, {name}: median {middle:.2f}, 90th percentile {most:.2f}, largest {worst:.2f}")


def _images(source: EpisodeSource, start: int, stop: int) -> np.ndarray:
    """(N, 96, 96, 3) uint8."""
    return np.rint(source.read("image", start, min(stop, source.num_frames))).astype(np.uint8)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
