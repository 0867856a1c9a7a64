"""How many episodes tell two policies apart."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from scipy import stats

MOST_EPISODES = 1_000_000


def episodes_per_arm(p: float, difference: float, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """Episodes of each of two policies with success rates p and p + difference, on different seeds.

    For the two-sided test of two proportions (Fleiss, Levin & Paik 2003, without the correction for continuity), which then
    finds the difference with a probability of ``power``. Raises ValueError for rates that are none.
    """
    q = _other_rate(p, difference, power=power, alpha=alpha)
    pooled, apart = 2 * (p + q) / 2 * (1 - (p + q) / 2), p * (1 - p) + q * (1 - q)
    normal = NormalDist()
    z_alpha, z_power = normal.inv_cdf(1 - alpha / 2), normal.inv_cdf(power)
    return math.ceil(((z_alpha * math.sqrt(pooled) + z_power * math.sqrt(apart)) / difference) ** 2)


def paired_episodes(
    p: float, difference: float, *, correlation: float = 0.0, power: float = 0.8, alpha: float = 0.05
) -> int:
    """Episodes of each of two policies on the same seeds, from which McNemar's exact test keeps the power.

    correlation: of the two successes in an episode, higher the more the episode decides. The number is exact: with n
    episodes or more the test finds the difference with a probability of at least ``power``. Raises ValueError for rates that
    are none, a correlation that such rates cannot have, and more than a million episodes.
    """
    q = _other_rate(p, difference, power=power, alpha=alpha)
    lowest, highest = correlation_range(p, q)
    if not lowest <= correlation <= highest:
        raise ValueError(
            f"success rates {p:g} and {q:g} cannot have a correlation of {correlation:g}; it is between {lowest:.2f} and "
            f"{highest:.2f}"
        )
    both = p * q + correlation * math.sqrt(p * (1 - p) * q * (1 - q))
    only_a, only_b = max(0.0, p - both), max(0.0, q - both)
    return _last_without_power(only_a, only_b, power=power, alpha=alpha) + 1


def mcnemar_power(episodes: int, only_a: float, only_b: float, *, alpha: float = 0.05) -> float:
    """The probability that McNemar's exact test finds a difference in so many paired episodes.

    only_a, only_b: the probabilities that only that policy succeeds.
    """
    discordant = only_a + only_b
    low, high = (int(stats.binom.ppf(tail, episodes, discordant)) for tail in (1e-9, 1 - 1e-9))
    decisive = np.arange(low, high + 1)
    # The most of the rarer kind that is significant among so many: twice its tail is at most alpha; -1: there is none.
    most = stats.binom.ppf(alpha / 2, decisive, 0.5)
    most = np.where(2 * stats.binom.cdf(most, decisive, 0.5) > alpha, most - 1, most)
    share = only_a / discordant
    found = stats.binom.cdf(most, decisive, share) + stats.binom.cdf(most, decisive, 1 - share)
    return float(stats.binom.pmf(decisive, episodes, discordant) @ found)


def correlation_range(p: float, q: float) -> tuple[float, float]:
    """The lowest and highest correlation that two outcomes with these rates of success can have."""
    scale = math.sqrt(p * (1 - p) * q * (1 - q))
    if scale == 0:  # one of them never varies
        return 0.0, 0.0
    return (max(0.0, p + q - 1) - p * q) / scale, (min(p, q) - p * q) / scale


def _last_without_power(only_a: float, only_b: float, *, power: float, alpha: float) -> int:
    """The largest number of episodes whose power is too low. The power of an exact test is a saw: it falls in places."""
    normal = NormalDist()
    z_alpha, z_power = normal.inv_cdf(1 - alpha / 2), normal.inv_cdf(power)
    discordant, squared = only_a + only_b, (only_a - only_b) ** 2
    estimate = (z_alpha * math.sqrt(discordant) + z_power * math.sqrt(max(0.0, discordant - squared))) ** 2 / squared
    highest = math.ceil(1.3 * estimate + 40 / discordant)  # Connor's (1987), with room for what exactness costs
    if highest > MOST_EPISODES:
        raise ValueError(f"about {estimate:,.0f} episodes would be needed; ask for a larger difference")
    step, reached = max(1, highest // 200), highest
    while reached > 0 and mcnemar_power(reached, only_a, only_b, alpha=alpha) >= power:
        reached -= step
    reached = min(highest, reached + step)
    while reached > 0 and mcnemar_power(reached, only_a, only_b, alpha=alpha) >= power:
        reached -= 1
    return reached


def _other_rate(p: float, difference: float, *, power: float, alpha: float) -> float:
    """Raise ValueError unless these describe a test, and return the other rate."""
    q = p + difference
    if not (0 <= p <= 1 and -1e-9 <= q <= 1 + 1e-9) or difference == 0:
        raise ValueError(f"p={p:g} and p + difference={q:g} must lie in [0, 1] and differ")
    if not alpha < power < 1 or not 0 < alpha < 1:
        raise ValueError(f"power={power:g} must lie between alpha={alpha:g} and 1, and alpha above 0")
    return min(1.0, max(0.0, q))
