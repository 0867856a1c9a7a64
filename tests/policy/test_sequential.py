"""E-processes: never larger than 1 in expectation if nothing differs, whenever they are looked at."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowchunk.policy.evaluation.sequential import binary_e_values, graded_e_values, sequential_test

rates = st.floats(0.01, 0.99)


def pairs(random: np.random.Generator, p: float, q: float, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    return (random.random(shape) < p).astype(float), (random.random(shape) < q).astype(float)


def graded(random: np.random.Generator, mean: float, shape: tuple[int, int]) -> np.ndarray:
    return random.beta(2 * mean, 2 * (1 - mean), shape)


def alarms(e_values: np.ndarray) -> float:
    return float((e_values >= 20).any(axis=-1).mean())


# The formulas


def test_the_binary_process_by_hand() -> None:
    e_values = binary_e_values(np.array([1.0, 1.0]), np.array([0.0, 0.0]))
    p_a, p_b = 1.18 / 1.36, 0.18 / 1.36  # after the first pair, which says nothing: both estimates are 1/2
    assert e_values == pytest.approx([1, p_a * (1 - p_b) / 0.25])


def test_the_graded_process_by_hand() -> None:
    a, b = np.array([0.6, 0.9, 0.1]), np.array([0.4, 0.5, 0.6])
    # D = 0.2, 0.4, -0.5; stakes 0, min(1/2, 0.2/0.04), min(1/2, 0.6/0.2); the other bettor stakes nothing
    assert graded_e_values(a, b) == pytest.approx([0.5, 0.5 * 1.2, max(0.5 * 1.2 * 0.75, 0.5)])
    assert graded_e_values(b, a) == pytest.approx(graded_e_values(a, b))


def test_a_stake_is_the_mean_over_the_mean_square() -> None:
    a, b = np.array([1.0, 0.0, 0.7, 1.0]), np.array([0.0, 0.8, 0.6, 0.0])
    differences = np.array([1.0, -0.8, 0.1])
    stake = differences.mean() / (differences.var() + differences.mean() ** 2)
    assert 0 < stake < 0.5
    gains = [1 - 0.5 * 0.8, 1 + 0.2 / 1.64 * 0.1, 1 + stake]
    assert graded_e_values(a, b)[-1] == pytest.approx(max(np.prod(gains), 1) / 2)


@given(rates, rates, rates, st.floats(0, 1))
def test_a_binary_factor_is_fair_if_outcomes_are_not_negatively_correlated(
    p: float, q: float, rate: float, together: float
) -> None:
    """The expectation of the factor p_A p_B / (p_0 p_0) under one rate, from independence to equal outcomes."""
    mean = (p + q) / 2
    apart = rate * (1 - rate) * (1 - together)
    probabilities = {(1, 1): rate - apart, (0, 0): 1 - rate - apart, (1, 0): apart, (0, 1): apart}

    def likelihood(outcome: int, success: float) -> float:
        return success if outcome else 1 - success

    expected = sum(
        weight * likelihood(a, p) * likelihood(b, q) / (likelihood(a, mean) * likelihood(b, mean))
        for (a, b), weight in probabilities.items()
    )
    assert expected <= 1 + 1e-9


# False alarms and power


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_equal_policies_are_rarely_told_apart_however_often_one_looks(p: float) -> None:
    random, shape = np.random.default_rng(0), (2000, 300)
    assert alarms(binary_e_values(*pairs(random, p, p, shape))) <= 0.05
    assert alarms(graded_e_values(graded(random, p, shape), graded(random, p, shape))) <= 0.05


def test_successes_that_depend_on_the_episode_raise_no_more_alarms() -> None:
    random = np.random.default_rng(0)
    easy = random.random((2000, 300))
    a, b = ((random.random(easy.shape) < easy).astype(float) for _ in range(2))
    assert alarms(binary_e_values(a, b)) <= 0.05


def test_different_policies_are_told_apart_and_scores_do_so_sooner() -> None:
    random, shape = np.random.default_rng(0), (500, 400)
    binary = binary_e_values(*pairs(random, 0.5, 0.7, shape)) >= 20
    scores = graded_e_values(graded(random, 0.5, shape), graded(random, 0.7, shape)) >= 20
    assert binary.any(axis=1).mean() > 0.95
    assert scores.any(axis=1).mean() > 0.99
    assert np.median(scores.argmax(axis=1)) < np.median(binary.argmax(axis=1)) / 2


# The test


@pytest.mark.parametrize("is_graded", [False, True])
def test_a_test_says_when_it_would_have_stopped_and_which_is_better(is_graded: bool) -> None:
    a, b = np.ones(30), np.zeros(30)
    found = sequential_test(a, b, graded=is_graded)
    assert found.stopped_after is not None
    assert found.e_values[found.stopped_after - 2] < 20 <= found.e_values[found.stopped_after - 1]
    assert found.sign == 1
    assert found.p_value == pytest.approx(1 / found.e_values.max())
    mirrored = sequential_test(b, a, graded=is_graded)
    assert (mirrored.sign, mirrored.stopped_after) == (-1, found.stopped_after)
    assert mirrored.e_values == pytest.approx(found.e_values)


def test_a_stricter_test_stops_later() -> None:
    a, b = np.ones(30), np.zeros(30)
    stops = [sequential_test(a, b, alpha=alpha).stopped_after for alpha in (0.1, 0.05, 0.001)]
    assert stops == sorted(stops, key=lambda stop: stop or 0)
    assert stops[0] != stops[-1]


def test_outcomes_that_never_differ_decide_nothing() -> None:
    found = sequential_test(np.ones(20), np.ones(20))
    assert (found.stopped_after, found.sign, found.p_value) == (None, 0, 1)


def test_what_happened_is_not_forgotten() -> None:
    """The p-value is that of the largest e-value, so looking longer does not take a decision back."""
    a, b = np.array([1.0] * 12 + [0.0] * 12), np.array([0.0] * 12 + [1.0] * 12)
    found = sequential_test(a, b)
    assert found.e_values[-1] < found.e_values.max()
    assert found.p_value == sequential_test(a[:12], b[:12]).p_value < 0.05


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        ([1, 0], [1], {}, "expected pairs of outcomes"),
        ([[1, 0]], [[1, 0]], {}, "expected pairs of outcomes"),
        ([0.5], [1], {}, "outcomes must be 0 or 1"),
        ([0.5], [1.5], {"graded": True}, r"outcomes must lie in \[0, 1\]"),
        ([1], [0], {"alpha": 0.0}, "alpha=0.0 must lie between 0 and 1"),
        ([1], [0], {"alpha": 1.0}, "alpha=1.0 must lie between 0 and 1"),
    ],
)
def test_what_cannot_be_tested_is_refused(a: object, b: object, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sequential_test(np.array(a), np.array(b), **options)  # type: ignore[arg-type]
