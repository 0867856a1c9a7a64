"""Tests of two policies that may be looked at after every episode, and stopped as soon as they are sure.

Testing again and again with a test for a fixed number of episodes raises false alarms: from 5 % to 35 %. An e-process does
not: under the null hypothesis its expectation is at most 1 at every time, so it ever reaches 1/alpha with a probability of
at most alpha (Ville's inequality).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PRIOR = 0.18
"""Successes, and as many failures, that an arm's estimate begins with (Turner, Ly & Grünwald 2024)."""
HIGHEST_STAKE = 0.5


@dataclass(frozen=True)
class SequentialTest:
    """The course of a test: e_values (n,) after each pair, and whether it ever reached 1/alpha.

    stopped_after: the number of pairs at which it first did, None if it never did. sign: of the difference a - b there, 0
    if it never did.
    """

    e_values: np.ndarray
    stopped_after: int | None
    sign: int

    @property
    def p_value(self) -> float:
        """A p-value that is valid at any time of stopping: 1 / the largest e-value so far."""
        return float(min(1.0, 1 / self.e_values.max(initial=1.0)))


def binary_e_values(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """E-values (..., n) after each pair of successes a, b (..., n), 0 or 1: the likelihood of two rates against one.

    E ← E · p_A(a) p_B(b) / (p_0(a) p_0(b)), where p_A and p_B are estimated from the past of each arm and p_0 is their mean
    (Turner, Ly & Grünwald 2024). Its null hypothesis is one rate of success for both, of outcomes that are independent or
    positively correlated, as those on the same seeds are.
    """
    rates = [_past_rate(values) for values in (a, b)]
    mean = (rates[0] + rates[1]) / 2
    gains = sum(_log_likelihood(y, rate) - _log_likelihood(y, mean) for y, rate in zip((a, b), rates, strict=True))
    return np.exp(np.cumsum(gains, axis=-1))


def graded_e_values(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """E-values (..., n) after each pair of scores a, b (..., n) in [0, 1]: half the capital of the richer of two bettors.

    With D = a - b, one bets on D > 0: K ← K · (1 + λ D), where λ = mean(D) / mean(D²) of the past, within [0, ½]; the other
    on D < 0. Each may reach 2/alpha with a probability of alpha/2. Its null hypothesis is that D is 0 in the mean, given the
    past, whatever its distribution and the dependence of a and b (Waudby-Smith & Ramdas 2024; 2603.13616).
    """
    difference = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    total, squares = (_past_sum(values) for values in (difference, difference**2))
    stake = np.divide(total, squares, out=np.zeros_like(total), where=squares > 0)
    capitals = [
        np.cumsum(np.log1p(np.clip(side * stake, 0, HIGHEST_STAKE) * side * difference), axis=-1) for side in (1, -1)
    ]
    return np.exp(np.maximum(*capitals)) / 2


def sequential_test(a: np.ndarray, b: np.ndarray, *, alpha: float = 0.05, graded: bool = False) -> SequentialTest:
    """The test of two policies' outcomes a, b (n,) on the same episodes, in their order.

    graded: whether they are scores in [0, 1], else successes. Raises ValueError for outcomes that are not that, or not
    paired, and for alpha outside (0, 1).
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"expected pairs of outcomes, got {a.shape} and {b.shape}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha} must lie between 0 and 1")
    both = np.concatenate((a, b))
    if not (((both >= 0) & (both <= 1)) if graded else ((both == 0) | (both == 1))).all():
        raise ValueError(f"outcomes must {'lie in [0, 1]' if graded else 'be 0 or 1'}")
    e_values = (graded_e_values if graded else binary_e_values)(a, b)
    reached = np.flatnonzero(e_values >= 1 / alpha)
    if not reached.size:
        return SequentialTest(e_values, None, 0)
    stopped_after = int(reached[0]) + 1
    return SequentialTest(e_values, stopped_after, int(np.sign((a - b)[:stopped_after].sum())))


def _past_sum(values: np.ndarray) -> np.ndarray:
    return np.cumsum(values, axis=-1) - values


def _past_rate(outcomes: np.ndarray) -> np.ndarray:
    return (_past_sum(outcomes) + PRIOR) / (np.arange(outcomes.shape[-1]) + 2 * PRIOR)


def _log_likelihood(outcome: np.ndarray, rate: np.ndarray) -> np.ndarray:
    return np.log(np.where(outcome == 1, rate, 1 - rate))
