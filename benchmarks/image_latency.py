"""Latency of one chunk from two cameras (the CPU size of pickplace_image, 4 evaluations, batch size 1).

usage: python benchmarks/image_latency.py [--calls 300]

The weights are random, not trained: the time is the same. On one thread, where networks this small are fastest.
Target: p95 at most 30 ms.
"""

from __future__ import annotations

import argparse

import numpy as np

from flowchunk.envs.simulation import environment_maker
from flowchunk.envs.tasks.pick_place import JOINTS
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.evaluation.latency import latency_ms
from flowchunk.policy.normalizer import Normalizer, Scaling
from flowchunk.policy.policy_config import PolicyConfig

CONFIG = PolicyConfig(
    vision="small_conv",
    vision_options={"image_steps": 1},
    relative_to=(*(f"proprioception.{joint}" for joint in JOINTS), None),
)
"""As in ``configs/experiment/pickplace_image.yaml``."""


def main(calls: int) -> None:
    """Print the percentiles."""
    env = environment_maker("flowchunk/PickPlace-v1", {"observation": "image"})()
    spec = env.get_wrapper_attr("observation_spec").cropped((84, 84))
    actions = env.get_wrapper_attr("action_spec")
    observation, _ = env.reset(seed=0)
    env.close()
    sizes = {**{key: field.shape for key, field in spec.values.items()}, "action": (actions.size,)}
    rows = {key: np.random.default_rng(0).normal(size=(100, *shape)) for key, shape in sizes.items()}
    scalings = {key: Scaling.fit("min_max", [values]) for key, values in rows.items()}
    policy = ChunkPolicy(CONFIG, spec, actions, Normalizer(scalings)).eval()
    steps = policy.config.observation_steps
    batch = {key: np.stack([value] * steps)[None] for key, value in observation.items()}
    times = latency_ms(lambda seed: policy.predict_chunk(batch, nfe=4, seed=seed), calls=calls)
    print(f"two cameras, 4 evaluations: p50 {times['p50']:.1f} ms, p95 {times['p95']:.1f} ms (target: p95 <= 30)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=300)
    main(parser.parse_args().calls)
