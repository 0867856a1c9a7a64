"""The effect of the same starting noise for every chunk: success of a policy with it, and with new noise each time.

usage: python benchmarks/same_noise.py RUN [--episodes 100] [--seed 100000] [--nfe 4]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np

from flowchunk.envs.rollout import rollout
from flowchunk.envs.simulation import environment_maker
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.execution.policy import Policy


class SameNoise:
    """The policy, with the same seed for every chunk."""

    def __init__(self, policy: ChunkPolicy) -> None:
        self.policy, self.execution = policy, policy.execution
        self.observation_spec, self.action_spec = policy.observation_spec, policy.action_spec

    def predict_chunk(
        self, observation: Mapping[str, np.ndarray], *, nfe: int | None = None, seed: Any = None, **continued: Any
    ) -> np.ndarray:
        """Its chunks (B, H, D), every row from the same noise."""
        return self.policy.predict_chunk(observation, nfe=nfe, seed=[0] * len(seed))


def main() -> None:
    """Print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--env", default="flowchunk/PushT-v1")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=100_000)
    parser.add_argument("--nfe", type=int, default=4)
    options = parser.parse_args()
    policy = ChunkPolicy.load(options.run)
    policies: dict[str, Policy] = {"new noise for each chunk": policy, "the same noise": SameNoise(policy)}
    for name, compared in policies.items():
        result = rollout(
            compared,
            environment_maker(options.env, {}),
            policy.execution,
            episodes=options.episodes,
            seed=options.seed,
            nfe=options.nfe,
        )
        print(f"{name}: score {result.score_mean:.3f}, success {result.success_rate:.2f}")


if __name__ == "__main__":
    main()
