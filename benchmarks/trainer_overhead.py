"""The trainer's step compared with only forward, backward and optimizer step of the same network and batch size.

usage: python benchmarks/trainer_overhead.py [--steps 60]

Both alternate in one process, so that other load on the machine affects both. Target: a ratio of at most 1.10.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from flowchunk.datasets.windows import Windows
from flowchunk.envs.tasks.pusht import ACTION_SPEC, OBSERVATION_SPECS
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.normalizer import Normalizer, Scaling
from flowchunk.policy.policy_config import PolicyConfig
from flowchunk.policy.training.config import TrainingConfig
from flowchunk.policy.training.trainer import Trainer


def push_t_policy() -> ChunkPolicy:
    """A policy with the default network on Push-T's states, untrained."""
    scalings = {
        key: Scaling.fit("min_max", [512 * np.random.default_rng(0).random((1000, size))]) for key, size in SIZES
    }
    return ChunkPolicy(PolicyConfig(), OBSERVATION_SPECS["state"], ACTION_SPEC, Normalizer(scalings))


SIZES = (("state", 5), ("action", 2))


def main(steps: int) -> None:
    """Print both times and their ratio."""
    policy, frames = push_t_policy(), torch.arange(25_000)
    states, actions = 512 * torch.rand(25_000, 5), 512 * torch.rand(25_000, 2)
    windows = Windows({"state": states}, actions, frames, frames * 0, frames * 0 + 24_999, 2, 16)
    config = TrainingConfig(steps=10**6, checkpoint_every=10**6, evaluate_every=10**6)
    with tempfile.TemporaryDirectory() as folder:
        accelerator = Accelerator(cpu=True)
        trainer = Trainer(policy, windows, config, output_dir=Path(folder), accelerator=accelerator)
        bare_network = push_t_policy().network
        optimizer = torch.optim.AdamW(bare_network.parameters(), fused=True)
        x, t, condition, target = (
            torch.randn(256, 16, 2),
            torch.rand(256),
            torch.randn(256, 12),
            torch.randn(256, 16, 2),
        )

        def bare_step() -> None:
            ((bare_network(x, t, condition) - target) ** 2).mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        times: dict[str, list[float]] = {"trainer": [], "bare": []}
        for step in range(steps + 5):
            for name, function in (("trainer", trainer.train_step), ("bare", bare_step)):
                started = time.perf_counter()
                function()
                if step >= 5:
                    times[name].append(time.perf_counter() - started)
    trainer_ms, bare_ms = (1000 * float(np.median(times[name])) for name in ("trainer", "bare"))
    print(
        f"trainer {trainer_ms:.1f} ms, bare {bare_ms:.1f} ms per step: ratio {trainer_ms / bare_ms:.3f} (target <= 1.10)"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    main(parser.parse_args().steps)
