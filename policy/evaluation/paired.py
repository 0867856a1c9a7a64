"""Two methods on the same episodes: an exact test of their successes, and bootstrap intervals of their differences.

A method has one run, or several that differ only in the seed of their training. All runs are evaluated on the same
episode seeds, so a difference is taken episode by episode, which removes what makes an episode easy or hard.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats

from flowchunk.policy.evaluation.intervals import wilson_interval

RESAMPLES = 10_000
RESAMPLES_AT_ONCE = 500
"""Bounds the memory that the weights of a bootstrap take."""


@dataclass(frozen=True)
class Outcomes:
    """The episodes of a method's runs: success (S, n) bool and score (S, n) in [0, 1], one row per run.

    Column j is the same episode in all runs and methods. Raises ValueError for other shapes or scores.
    """

    success: np.ndarray
    score: np.ndarray

    def __post_init__(self) -> None:
        if self.success.ndim != 2 or self.success.shape != self.score.shape or not self.success.size:
            raise ValueError(
                f"expected success and score (runs, episodes), got {self.success.shape}, {self.score.shape}"
            )
        if not ((self.score >= 0) & (self.score <= 1)).all():
            raise ValueError(f"scores must lie in [0, 1], but reach from {self.score.min()} to {self.score.max()}")

    @property
    def num_runs(self) -> int:
        return len(self.success)

    @property
    def num_episodes(self) -> int:
        return self.success.shape[1]

    def of_first(self, episodes: int) -> Outcomes:
        """The outcomes of the first so many episodes."""
        return Outcomes(self.success[:, :episodes], self.score[:, :episodes])


@dataclass(frozen=True)
class Difference:
    """The difference of two means, a - b: its 95 % interval, and the two-sided p-value of no difference."""

    mean: float
    low: float
    high: float
    p_value: float


def mcnemar_p(only_a: int, only_b: int) -> float:
    """McNemar's exact two-sided p-value (1947): are the pairs in which only one succeeded split evenly?

    only_a, only_b: the numbers of episodes in which only that policy succeeded; the others say nothing.
    """
    return float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def success_difference(a: Outcomes, b: Outcomes, *, seed: int = 0, resamples: int = RESAMPLES) -> Difference:
    """The difference in success: McNemar's exact test and the paired bootstrap for two runs, else see ``_hierarchical``.

    The interval is that of the episodes and two more, one won by each (Bonett & Price 2012): without them, policies that
    never differed would have an interval of no width. Raises ValueError if the episodes differ in number.
    """
    x, y = _paired(a.success, b.success)
    pseudo = np.array([1.0, 0.0])
    widened = [
        np.hstack((values, np.tile(pairs, (len(values), 1)))) for values, pairs in ((x, pseudo), (y, 1 - pseudo))
    ]
    low, high, p_value = _hierarchical(*widened, seed=seed, resamples=resamples)
    mean = float(x.mean() - y.mean())
    if len(x) == len(y) == 1:
        p_value = mcnemar_p(int((x > y).sum()), int((x < y).sum()))
    return Difference(mean, min(low, mean), max(high, mean), p_value)


def score_difference(a: Outcomes, b: Outcomes, *, seed: int = 0, resamples: int = RESAMPLES) -> Difference:
    """The difference in score: a paired permutation test and the paired bootstrap for two runs, else ``_hierarchical``.

    Raises ValueError if the episodes differ in number.
    """
    x, y = _paired(a.score, b.score)
    low, high, p_value = _hierarchical(x, y, seed=seed, resamples=resamples)
    if len(x) == len(y) == 1:
        p_value = _sign_flip_p(x[0] - y[0], seed=seed, resamples=resamples)
    return Difference(float(x.mean() - y.mean()), low, high, p_value)


def success_interval(outcomes: Outcomes, *, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The 95 % interval of a method's success: Wilson's for one run; for several, the hierarchical bootstrap's."""
    if outcomes.num_runs == 1:
        return wilson_interval(int(outcomes.success.sum()), outcomes.num_episodes)
    values = outcomes.success.astype(float)
    low, high, _ = _hierarchical(values, np.zeros((1, values.shape[1])), seed=seed, resamples=resamples)
    return max(0.0, low), high


def _paired(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{a.shape[1]} and {b.shape[1]} episodes are no pairs")
    return a.astype(float), b.astype(float)


def _sign_flip_p(differences: np.ndarray, *, seed: int, resamples: int) -> float:
    """The p-value of a mean of zero: under it, either policy could have had either score of an episode."""
    if not (informative := differences[differences != 0]).size:
        return 1.0
    result = stats.permutation_test(
        (informative,),
        lambda values, axis: values.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples - 1,
        batch=RESAMPLES_AT_ONCE,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def _hierarchical(a: np.ndarray, b: np.ndarray, *, seed: int, resamples: int) -> tuple[float, float, float]:
    """Interval (low, high) and p-value of mean(a) - mean(b) by resampling training seeds, then episodes.

    a, b: (runs, episodes). Episodes are drawn once for all runs, which keeps them paired. Of S training seeds S - 1 are
    drawn, which makes the variance between them unbiased (McCarthy & Snowden 1985), and the interval is stretched by
    Student's t, because they are few. A single run says nothing of its training seed, and none is drawn.
    """
    mean = a.mean() - b.mean()
    means = np.concatenate(list(_resampled(a, b, seed=seed, resamples=resamples)))
    degrees = _degrees_of_freedom(a, b)
    stretch = stats.t.ppf(0.975, degrees) / stats.norm.ppf(0.975)
    low, high = mean + stretch * (np.quantile(means, (0.025, 0.975)) - mean)
    error = means.std()
    p_value = 2 * stats.t.sf(abs(mean) / error, degrees) if error else float(mean == 0)
    return max(-1.0, float(low)), min(1.0, float(high)), float(max(p_value, 1 / (resamples + 1)))


def _resampled(a: np.ndarray, b: np.ndarray, *, seed: int, resamples: int) -> Iterator[np.ndarray]:
    random = np.random.default_rng(seed)
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        count = min(RESAMPLES_AT_ONCE, resamples - start)
        difference = _weights(random, len(a), max(1, len(a) - 1), count) @ a
        difference -= _weights(random, len(b), max(1, len(b) - 1), count) @ b
        yield (difference * _weights(random, a.shape[1], a.shape[1], count)).sum(axis=1)


def _weights(random: np.random.Generator, size: int, drawn: int, count: int) -> np.ndarray:
    """How much of a mean each of ``size`` values is, if ``drawn`` of them are drawn with replacement: (count, size)."""
    return random.multinomial(drawn, np.full(size, 1 / size), size=count) / drawn


def _degrees_of_freedom(a: np.ndarray, b: np.ndarray) -> float:
    """Welch and Satterthwaite's, of the variances between a's runs, b's runs, and the episodes."""
    parts = [values.mean(axis=1) for values in (a, b) if len(values) > 1]
    parts.append(a.mean(axis=0) - b.mean(axis=0))
    variances = [values.var(ddof=1) / len(values) if len(values) > 1 else 0.0 for values in parts]
    weighted = sum(
        variance**2 / (len(values) - 1) for variance, values in zip(variances, parts, strict=True) if variance
    )
    return float(sum(variances) ** 2 / weighted) if weighted else np.inf
