"""Several methods on the same episodes: each beside the best, every pair tested, and the tests corrected for their number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from flowchunk.policy.evaluation.multiple_tests import group_letters, holm
from flowchunk.policy.evaluation.paired import (
    Difference,
    Outcomes,
    score_difference,
    success_difference,
    success_interval,
)
from flowchunk.policy.evaluation.sequential import SequentialTest, sequential_test

MEASURES = ("success", "score")


@dataclass(frozen=True)
class ComparedPair:
    """A pair of methods: the differences better - worse, and the p-value of their equality, corrected for all pairs."""

    better: str
    worse: str
    success: Difference
    score: Difference
    p_corrected: float
    is_different: bool


@dataclass(frozen=True)
class ComparedMethod:
    """A method: its means, the 95 % interval of its success, and its letters: methods that share none differ."""

    name: str
    num_runs: int
    num_episodes: int
    score: float
    success: float
    success_low: float
    success_high: float
    letters: str


@dataclass(frozen=True)
class Comparison:
    """Methods in order of the measure, the best first, and all their pairs in that order, the better first.

    measure: what is tested, of ``MEASURES``. sequential: whether the tests are valid although the episodes were stopped.
    """

    measure: str
    alpha: float
    sequential: bool
    methods: tuple[ComparedMethod, ...]
    pairs: tuple[ComparedPair, ...]

    def pair(self, better: str, worse: str) -> ComparedPair:
        """The pair of these methods, which are named in their order."""
        return next(pair for pair in self.pairs if (pair.better, pair.worse) == (better, worse))


def compare_methods(
    outcomes: Mapping[str, Outcomes], *, measure: str = "success", alpha: float = 0.05, sequential: bool = False
) -> Comparison:
    """Compare methods by their outcomes on the same episodes.

    measure: "success" or "score", chosen before the results are known. alpha: the probability of any false alarm among all
    pairs. sequential: whether the evaluation was stopped because of its results, as ``undecided_pairs`` allows; the tests are
    then sequential ones. The intervals are of each number alone. Raises ValueError for fewer than two methods, other numbers
    of episodes, an unknown measure, and sequential tests of methods with several runs.
    """
    if measure not in MEASURES:
        raise ValueError(f"measure={measure}: there are {', '.join(MEASURES)}")
    if len(outcomes) < 2:
        raise ValueError(f"{len(outcomes)} method cannot be compared; give two or more")
    names = sorted(outcomes, key=lambda name: _rank(outcomes[name], measure), reverse=True)
    pairs = list(combinations(names, 2))
    differences = [
        (success_difference(outcomes[a], outcomes[b]), score_difference(outcomes[a], outcomes[b])) for a, b in pairs
    ]
    if sequential:
        tests = sequential_tests({name: outcomes[name] for name in names}, measure=measure)
        p_values = [test.p_value for test in tests]
    else:
        p_values = [of_measure[MEASURES.index(measure)].p_value for of_measure in differences]
    compared = [
        ComparedPair(a, b, success, score, p_value, p_value <= alpha)
        for (a, b), (success, score), p_value in zip(pairs, differences, holm(p_values), strict=True)
    ]
    index = {name: number for number, name in enumerate(names)}
    letters = group_letters(len(names), [(index[p.better], index[p.worse]) for p in compared if p.is_different])
    methods = [_method(name, outcomes[name], group) for name, group in zip(names, letters, strict=True)]
    return Comparison(measure, alpha, sequential, tuple(methods), tuple(compared))


def sequential_tests(outcomes: Mapping[str, Outcomes], *, measure: str) -> list[SequentialTest]:
    """The sequential test of each pair of methods, in the order of ``itertools.combinations``.

    Raises ValueError for a method with several runs, whose episodes are not one sequence.
    """
    if several := [name for name, found in outcomes.items() if found.num_runs > 1]:
        raise ValueError(f"sequential tests compare single runs, but {', '.join(several)} has several")
    values = [getattr(found, measure)[0] for found in outcomes.values()]
    return [sequential_test(a, b, graded=measure == "score") for a, b in combinations(values, 2)]


def undecided_pairs(outcomes: Mapping[str, Outcomes], *, measure: str, alpha: float) -> int:
    """How many pairs are not told apart so far; at 0 a sequential evaluation may stop. Raises ValueError as above."""
    p_values = [test.p_value for test in sequential_tests(outcomes, measure=measure)]
    return sum(p_value > alpha for p_value in holm(p_values))


def _rank(outcomes: Outcomes, measure: str) -> tuple[float, ...]:
    means = {"success": float(outcomes.success.mean()), "score": float(np.mean(outcomes.score))}
    return means[measure], means["score"], means["success"]


def _method(name: str, outcomes: Outcomes, letters: str) -> ComparedMethod:
    score, success = float(outcomes.score.mean()), float(outcomes.success.mean())
    return ComparedMethod(
        name, outcomes.num_runs, outcomes.num_episodes, score, success, *success_interval(outcomes), letters
    )
