"""The cost of a chunk that continues the old one, by each prefix method, against a plain chunk.

usage: python benchmarks/prefix_cost.py [CHECKPOINT ...] [--calls 200] [--nfe 4]

Without checkpoints, new policies of Push-T's states with each network: weights do not change the time. Plain chunks and
those of all methods alternate in one process, on one thread, at batch size 1, and the ratio is the median of the ratios
within each round. Targets: trained at most 1.05, guided at most 1.3, noise_inversion at most 3.1.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from trainer_overhead import SIZES

from flowchunk.envs.tasks.pusht import ACTION_SPEC, OBSERVATION_SPECS
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.evaluation.latency import interleaved_ms, synthetic_observation
from flowchunk.policy.networks import NETWORKS
from flowchunk.policy.normalizer import Normalizer, Scaling
from flowchunk.policy.policy_config import PolicyConfig

COMMITTED, PLANNED = 4, 4
TARGETS = {"trained": 1.05, "guided": 1.3, "noise_inversion": 3.1}


def new_policies() -> Iterator[tuple[str, ChunkPolicy]]:
    """A policy of each network, which takes prefixes."""
    rows = np.random.default_rng(0).random((1000, 5))
    scalings = {key: Scaling.fit("min_max", [512 * rows[:, :size]]) for key, size in SIZES}
    for network in NETWORKS:
        config = PolicyConfig(network=network, prefix_max=COMMITTED)
        policy = ChunkPolicy(config, OBSERVATION_SPECS["state"], ACTION_SPEC, Normalizer(scalings))
        yield network, policy.eval()


def measure(name: str, policy: ChunkPolicy, *, nfe: int, calls: int) -> None:
    """Print the ratio of every method."""
    observation = synthetic_observation(policy)
    old = policy.predict_chunk(observation, nfe=nfe, seed=0)
    given = {"prefix": old[:, :COMMITTED], "tail": old[:, COMMITTED : COMMITTED + PLANNED]}
    chunks = {"plain": partial(chunk, policy, observation, nfe)}
    for method in policy.prefix_methods:
        chunks[method] = partial(chunk, policy.with_sampling(prefix_method=method), observation, nfe, **given)
    times = interleaved_ms(chunks, rounds=calls)
    print(f"{name}, {nfe} evaluations: plain {np.median(times['plain']):.2f} ms", end="")
    for method in policy.prefix_methods:
        ratio = np.median(times[method] / times["plain"])
        target = f" (target <= {TARGETS[method]})" if method in TARGETS else ""
        print(f", {method} {ratio:.2f} x{target}", end="")
    print(flush=True)


def chunk(policy: ChunkPolicy, observation: dict[str, np.ndarray], nfe: int, seed: int, **given: Any) -> np.ndarray:
    """What is measured."""
    return policy.predict_chunk(observation, nfe=nfe, seed=seed, **given)


def main(checkpoints: list[Path], *, nfe: int, calls: int) -> None:
    """Measure the checkpoints, or new policies."""
    policies = ((str(path), ChunkPolicy.load(path)) for path in checkpoints) if checkpoints else new_policies()
    for name, policy in policies:
        measure(name, policy, nfe=nfe, calls=calls)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--nfe", type=int, default=4)
    arguments = parser.parse_args()
    main(arguments.checkpoints, nfe=arguments.nfe, calls=arguments.calls)
