"""How long a call takes on one thread, where a small network is fastest."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch


def latency_ms(call: Callable[[int], object], *, calls: int = 50, warm_up: int = 10) -> dict[str, float]:
    """Median and 95th percentile (ms) of ``call(number)``; the first calls are left out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = []
        for number in range(calls + warm_up):
            started = time.perf_counter()
            call(number)
            times.append(1000 * (time.perf_counter() - started))
    finally:
        torch.set_num_threads(threads)
    return {"p50": float(np.percentile(times[warm_up:], 50)), "p95": float(np.percentile(times[warm_up:], 95))}
