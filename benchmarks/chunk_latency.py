"""Latency of ``predict_chunk`` (MLP, 4 evaluations, batch size 1) compared with four evaluations of only its network.

usage: python benchmarks/chunk_latency.py [--calls 300]

Both alternate in one process, on one thread, where a network this small is fastest. Target: a ratio of at most 1.5.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from trainer_overhead import push_t_policy


def main(calls: int) -> None:
    """Print both times and their ratio."""
    torch.set_num_threads(1)
    policy = push_t_policy().eval()
    observation = {"state": 512 * np.random.default_rng(0).random((1, 2, 5), dtype=np.float32)}
    x, t, condition = torch.randn(1, 16, 2), torch.rand(1), torch.randn(1, 12)

    @torch.inference_mode()
    def network_only() -> None:
        for _ in range(4):
            policy.network(x, t, condition)

    def chunk() -> None:
        policy.predict_chunk(observation, nfe=4, seed=0)

    times: dict[str, list[float]] = {"chunk": [], "network": []}
    for call in range(calls + 20):
        for name, function in (("chunk", chunk), ("network", network_only)):
            started = time.perf_counter()
            function()
            if call >= 20:
                times[name].append(1000 * (time.perf_counter() - started))
    chunk_ms, network_ms = (float(np.median(times[name])) for name in ("chunk", "network"))
    p95 = np.percentile(times["chunk"], 95)
    print(
        f"predict_chunk {chunk_ms:.2f} ms (p95 {p95:.2f}), four network evaluations {network_ms:.2f} ms: "
        f"ratio {chunk_ms / network_ms:.2f} (target <= 1.5)"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=300)
    main(parser.parse_args().calls)
