"""Several methods at once: what the correction for their number changes, and what cannot be compared."""

from __future__ import annotations

import numpy as np
import pytest

from flowchunk.policy.evaluation.method_comparison import compare_methods, sequential_tests, undecided_pairs
from flowchunk.policy.evaluation.multiple_tests import holm
from flowchunk.policy.evaluation.paired import Outcomes


def outcomes(success: object, runs: int = 1) -> Outcomes:
    found = np.tile(np.asarray(success, dtype=bool), (runs, 1))
    return Outcomes(found, found.astype(float))


def test_sequential_tests_are_corrected_for_the_number_of_pairs() -> None:
    """After four pairs one e-value is 1/0.028: enough for two methods, and not for three."""
    two = {"good": outcomes([1] * 4), "bad": outcomes([0] * 4)}
    assert undecided_pairs(two, measure="success", alpha=0.05) == 0
    three = {**two, "random": outcomes([1, 0, 0, 1])}
    p_values = [test.p_value for test in sequential_tests(three, measure="success")]
    assert min(p_values) < 0.05 < 3 * min(p_values)
    assert undecided_pairs(three, measure="success", alpha=0.05) == 3
    comparison = compare_methods(three, sequential=True)
    assert sorted(pair.p_corrected for pair in comparison.pairs) == pytest.approx(sorted(holm(p_values)))
    assert not any(pair.is_different for pair in comparison.pairs)


def test_the_measure_decides_about_the_order() -> None:
    sure = Outcomes(np.array([[True, False, False]]), np.array([[1.0, 0.0, 0.0]]))
    close = Outcomes(np.array([[False, False, False]]), np.array([[0.9, 0.9, 0.9]]))
    by_success, by_score = (compare_methods({"close": close, "sure": sure}, measure=m) for m in ("success", "score"))
    assert [method.name for method in by_success.methods] == ["sure", "close"]
    assert [method.name for method in by_score.methods] == ["close", "sure"]
    assert by_score.pair("close", "sure").score.mean == pytest.approx(0.9 - 1 / 3)


def test_what_cannot_be_compared_is_refused() -> None:
    one, several = outcomes([1, 0]), outcomes([1, 0], runs=2)
    with pytest.raises(ValueError, match="1 method cannot be compared"):
        compare_methods({"a": one})
    with pytest.raises(ValueError, match="measure=reward: there are success, score"):
        compare_methods({"a": one, "b": one}, measure="reward")
    with pytest.raises(ValueError, match="sequential tests compare single runs, but b has several"):
        compare_methods({"a": one, "b": several}, sequential=True)
