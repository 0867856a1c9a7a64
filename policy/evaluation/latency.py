"""How long calls take, in turn and on a given number of threads; and observations to measure a policy with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch

from flowchunk.policy.chunk_policy import ChunkPolicy


def latency_ms(call: Callable[[int], object], *, calls: int = 50, warm_up: int = 10) -> dict[str, float]:
    """Median and 95th percentile (ms) of ``call(number)`` on one thread, where a small network is fastest.

    The first calls are left out.
    """
    times = interleaved_ms({"call": call}, rounds=calls, warm_up=warm_up)["call"]
    return {"p50": float(np.percentile(times, 50)), "p95": float(np.percentile(times, 95))}


def interleaved_ms(
    calls: Mapping[str, Callable[[int], object]],
    *,
    rounds: int,
    warm_up: int = 10,
    threads: int = 1,
    advance: Callable[[], object] = lambda: None,
) -> dict[str, np.ndarray]:
    """Milliseconds (rounds,) of each ``call(round)``; the rounds of the warm-up are left out.

    Every round makes all calls, beginning with another each time, so that what else the machine does meets all alike.
    threads: of torch. advance: called after every round.
    """
    names = list(calls)
    times = {name: np.empty(warm_up + rounds) for name in names}
    with torch_threads(threads):
        for number in range(warm_up + rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                started = time.perf_counter()
                calls[name](number)
                times[name][number] = 1000 * (time.perf_counter() - started)
            advance()
    return {name: values[warm_up:] for name, values in times.items()}


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Inside, torch computes on this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def synthetic_observation(policy: ChunkPolicy, *, seed: int = 0) -> dict[str, np.ndarray]:
    """A random observation {key: (1, To, …)} within the range of the training data; images are noise."""
    random, steps = np.random.default_rng(seed), policy.config.observation_steps
    observation = {}
    for key, field in policy.observation_spec.fields.items():
        size = (1, steps, *field.shape)
        if field.is_image:
            observation[key] = random.integers(0, 256, size, dtype=np.uint8)
        else:
            scaling = policy.normalizer.scalings[key]
            observation[key] = random.uniform(scaling.low, scaling.high, size).astype(np.float32)
    return observation
