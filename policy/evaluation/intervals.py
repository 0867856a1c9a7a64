"""Confidence intervals of success rates."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson_interval(successes: int, trials: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (low, high) of a proportion (Wilson 1927): reliable for few trials and near 0 or 1.

    Raises ValueError unless 0 <= successes <= trials and trials >= 1.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes in {trials} trials is not a proportion")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p, spread = successes / trials, z**2 / trials
    center = p + spread / 2
    half_width = z * math.sqrt(p * (1 - p) / trials + spread / trials / 4)
    return max(0.0, (center - half_width) / (1 + spread)), min(1.0, (center + half_width) / (1 + spread))
