"""One chunk from two cameras (the CPU size of pickplace_image, 4 evaluations, batch 1): how long it takes.

usage: python benchmarks/image_latency.py [--calls 300]

The weights are drawn, not trained: the time is the same. On one thread, where networks this
small are fastest. Target: p95 at most 30 ms.
"""

from __future__ import annotations

import argparse

import numpy as np

from flowchunk.cli.latency import latency_ms
from flowchunk.cli.options import read_options
from flowchunk.cli.simulation import environment_maker
from flowchunk.cli.train import policy_config
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.normalizer import Normalizer, Scaling


def main(calls: int) -> None:
    """Print the percentiles."""
    options = read_options("train", ["task=pickplace_image", "dataset.path=none"])
    env = environment_maker(options["task"]["env_id"], options["env"])()
    spec = env.get_wrapper_attr("observation_spec").cropped(tuple(options["vision"]["crop"]))
    actions = env.get_wrapper_attr("action_spec")
    observation, _ = env.reset(seed=0)
    env.close()
    sizes = {**{key: field.shape for key, field in spec.values.items()}, "action": (actions.size,)}
    rows = {key: np.random.default_rng(0).normal(size=(100, *shape)) for key, shape in sizes.items()}
    scalings = {key: Scaling.fit("min_max", [values]) for key, values in rows.items()}
    policy = ChunkPolicy(policy_config(options, spec), spec, actions, Normalizer(scalings)).eval()
    steps = policy.config.observation_steps
    batch = {key: np.stack([value] * steps)[None] for key, value in observation.items()}
    times = latency_ms(lambda seed: policy.predict_chunk(batch, nfe=4, seed=seed), calls=calls)
    print(f"two cameras, 4 evaluations: p50 {times['p50']:.1f} ms, p95 {times['p95']:.1f} ms (target: p95 <= 30)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=300)
    main(parser.parse_args().calls)
