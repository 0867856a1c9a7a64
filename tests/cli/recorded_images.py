"""Random pushing, recorded with images from above."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np

from flowchunk.datasets.recorder import StoreWriter

LENGTHS = (24, 10, 20)


def record_images(path: Path) -> Path:
    """Write a store of three episodes; returns its path."""
    env = gymnasium.make("flowchunk.envs:flowchunk/PushT-v1", observation="image")
    env.action_space.seed(0)
    spec, actions = env.get_wrapper_attr("observation_spec"), env.get_wrapper_attr("action_spec")
    with StoreWriter(path, observation_spec=spec, action_spec=actions) as writer:
        for seed, length in enumerate(LENGTHS):
            frames, done = [env.reset(seed=seed)[0]], []
            for _ in range(length):
                done.append(env.action_space.sample())
                frames.append(env.step(done[-1])[0])
            writer.add_episode({key: np.stack([f[key] for f in frames[:-1]]) for key in frames[0]}, np.stack(done))
    env.close()
    return path
