"""How smoothly a new chunk continues the old one on Push-T, by prefix method.

usage: python benchmarks/prefix_seams.py CHECKPOINT [--episodes 20] [--delay 3]

A policy of Push-T's states acts by plain chunks. At each of the first eight seams of an episode, chunks of every method are
predicted from the same observation and noise, and given the old chunk's next actions as their prefix. The jump is the
distance between the last action of the prefix and the first one after it; plain chunks just get the prefix put in front.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

import flowchunk.envs  # noqa: F401 -- registers the ids
from flowchunk.envs.rollout import SELECTION_SEED
from flowchunk.policy.chunk_policy import ChunkPolicy

SEAMS = 8  # per episode


def seams(policy: ChunkPolicy, episodes: int) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray, int]]:
    """At each seam the observation {"state": (1, To, 5)}, what is left of the old chunk (1, H - n, 2), and a seed."""
    env = gymnasium.make("flowchunk/PushT-v1")
    steps, executed = policy.config.observation_steps, policy.config.n_action_steps
    for episode in range(episodes):
        observation, _ = env.reset(seed=SELECTION_SEED + episode)
        history = [observation["state"]] * steps
        chunk = policy.predict_chunk({"state": np.stack(history)[None]}, seed=(SEAMS + 1) * episode)
        for seam in range(1, SEAMS + 1):
            for action in chunk[0, :executed]:
                observation, _, terminated, truncated, _ = env.step(action)
                history.append(observation["state"])
            if terminated or truncated:
                break
            seed, observed = (SEAMS + 1) * episode + seam, {"state": np.stack(history[-steps:])[None]}
            yield observed, chunk[:, executed:], seed
            chunk = policy.predict_chunk(observed, seed=seed)
    env.close()


def main(checkpoint: Path, *, episodes: int, delay: int) -> None:
    """Print the jumps."""
    torch.set_num_threads(1)
    policy = ChunkPolicy.load(checkpoint)
    jumps: dict[str, list[float]] = {}
    for observation, left, seed in seams(policy, episodes):
        given: dict[str, Any] = {"prefix": left[:, :delay], "tail": left[:, delay:]}
        chunks = {"plain": policy.predict_chunk(observation, seed=seed)}
        for method in policy.prefix_methods:
            bound = policy.with_sampling(prefix_method=method)
            chunks[method] = bound.predict_chunk(observation, seed=seed, **given)
        for name, chunk in chunks.items():
            jumps.setdefault(name, []).append(float(np.linalg.norm(chunk[0, delay] - given["prefix"][0, -1])))
    for name, distances in jumps.items():
        mean, p90, largest = np.mean(distances), np.percentile(distances, 90), np.max(distances)
        print(f"{name}: jump of {mean:.1f} px, p90 {p90:.1f}, largest {largest:.1f} ({len(distances)} seams)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--delay", type=int, default=3)
    arguments = parser.parse_args()
    main(arguments.checkpoint, episodes=arguments.episodes, delay=arguments.delay)
