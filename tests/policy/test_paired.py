"""Differences of two methods: known values, what a comparison must be, and how often its intervals are right."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from flowchunk.policy.evaluation.intervals import wilson_interval
from flowchunk.policy.evaluation.paired import (
    Outcomes,
    mcnemar_p,
    score_difference,
    success_difference,
    success_interval,
)

counts = st.integers(0, 60)


def outcomes(success: object, score: object = None) -> Outcomes:
    found = np.atleast_2d(np.asarray(success, dtype=bool))
    return Outcomes(found, found.astype(float) if score is None else np.atleast_2d(np.asarray(score, dtype=float)))


def successes_of(only_a: int, only_b: int, both: int, neither: int) -> tuple[Outcomes, Outcomes]:
    a = [True] * only_a + [False] * only_b + [True] * both + [False] * neither
    b = [False] * only_a + [True] * only_b + [True] * both + [False] * neither
    return outcomes(a), outcomes(b)


# McNemar's exact test


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [(0, 0, 1), (1, 0, 1), (5, 5, 1), (5, 0, 2 / 2**5), (1, 7, 2 * 9 / 2**8), (12, 2, 2 * (1 + 14 + 91) / 2**14)],
)
def test_mcnemar_by_hand(only_a: int, only_b: int, p: float) -> None:
    assert mcnemar_p(only_a, only_b) == pytest.approx(p)


@given(counts, counts)
def test_mcnemar_is_twice_the_tail_and_the_same_for_both(only_a: int, only_b: int) -> None:
    n = only_a + only_b
    tail = sum(comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n
    assert mcnemar_p(only_a, only_b) == pytest.approx(min(1, 2 * tail))
    assert mcnemar_p(only_a, only_b) == mcnemar_p(only_b, only_a)


@given(counts, counts)
def test_a_more_uneven_split_is_less_probable(only_a: int, only_b: int) -> None:
    more, fewer = max(only_a, only_b), min(only_a, only_b)
    assert mcnemar_p(more + 1, fewer) <= mcnemar_p(more, fewer) + 1e-12


def test_episodes_on_which_both_agree_do_not_change_the_test() -> None:
    few, many = (success_difference(*successes_of(9, 1, both, both), resamples=100) for both in (2, 40))
    assert few.p_value == many.p_value == mcnemar_p(9, 1)
    assert many.mean == pytest.approx(8 / 90)


# Differences


def test_the_difference_is_of_the_means_within_its_interval() -> None:
    a, b = successes_of(20, 5, 40, 35)
    found = success_difference(a, b)
    assert found.mean == pytest.approx(0.15)
    # Bonett and Price (2012): Wald's interval with one more discordant pair of each kind
    center, error = 15 / 102, np.sqrt((27 / 102 - (15 / 102) ** 2) / 102)
    assert (found.low, found.high) == pytest.approx((center - 1.96 * error, center + 1.96 * error), abs=0.012)


def test_the_interval_of_scores_is_scipys_paired_bootstrap() -> None:
    random = np.random.default_rng(3)
    a = random.random(80)
    b = np.clip(a - 0.1 + 0.1 * random.normal(size=80), 0, 1)
    found = score_difference(outcomes(a > 0.5, a), outcomes(b > 0.5, b))
    expected = stats.bootstrap((a - b,), np.mean, method="percentile", rng=random).confidence_interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.003)
    assert found.mean == pytest.approx((a - b).mean())
    assert found.p_value == pytest.approx(1e-4, rel=1.1)


def test_pairing_removes_what_makes_episodes_hard() -> None:
    random = np.random.default_rng(0)
    hard = random.random(60)
    a, b = 0.2 + 0.8 * hard, 0.8 * hard + 0.1 * random.random(60)
    paired, unpaired = (
        score_difference(outcomes(a > 0.5, a), outcomes(b > 0.5, b[order]))
        for order in (slice(None), random.permutation(60))
    )
    assert unpaired.high - unpaired.low > 5 * (paired.high - paired.low)


def test_a_permutation_test_of_successes_is_mcnemars() -> None:
    a, b = successes_of(12, 4, 20, 10)
    assert score_difference(a, b).p_value == pytest.approx(mcnemar_p(12, 4), abs=0.01)


@pytest.mark.parametrize("runs", [(1, 1), (3, 2)])
def test_exchanged_methods_have_the_opposite_difference(runs: tuple[int, int]) -> None:
    random = np.random.default_rng(1)
    a, b = (outcomes(score > 0.4, score) for score in (random.random((size, 50)) for size in runs))
    for difference in (success_difference, score_difference):
        there, back = difference(a, b), difference(b, a)
        assert there.mean == pytest.approx(-back.mean)
        assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=0.02)
        assert there.p_value == pytest.approx(back.p_value, abs=0.02)


@pytest.mark.parametrize("runs", [1, 3])
def test_the_order_of_episodes_does_not_matter(runs: int) -> None:
    random = np.random.default_rng(2)
    a, b = random.random((runs, 40)), random.random((runs, 40))
    order = random.permutation(40)
    before, after = (
        success_difference(outcomes(x > 0.3), outcomes(y > 0.6)) for x, y in ((a, b), (a[:, order], b[:, order]))
    )
    assert after.mean == pytest.approx(before.mean)
    assert after.p_value == pytest.approx(before.p_value, abs=0.01)
    assert (after.low, after.high) == pytest.approx((before.low, before.high), abs=0.02)


def test_policies_that_never_differed_are_not_known_to_be_equal() -> None:
    a, b = successes_of(0, 0, 18, 2)
    found = success_difference(a, b)
    assert (found.mean, found.p_value) == (0, 1)
    assert found.low < -0.04
    assert found.high > 0.04
    assert score_difference(a, b).p_value == 1


def test_the_same_seed_gives_the_same_interval() -> None:
    a, b = (outcomes([1] * 30, np.random.default_rng(number).random(30)) for number in range(2))
    assert score_difference(a, b, seed=1) == score_difference(a, b, seed=1) != score_difference(a, b, seed=2)


# Several training seeds


def simulated(random: np.random.Generator, runs: int, ability: float, hard: np.ndarray, spread: float) -> Outcomes:
    """Runs that succeed where their ability, which depends on the training seed, exceeds how hard an episode is."""
    abilities = ability + spread * random.normal(size=(runs, 1))
    return outcomes(abilities + random.normal(size=(runs, hard.size)) > hard)


@pytest.mark.parametrize(("runs", "episodes", "spread"), [(1, 50, 0.0), (3, 60, 0.5), (2, 60, 0.5)])
def test_equal_methods_are_rarely_told_apart_and_intervals_cover(runs: int, episodes: int, spread: float) -> None:
    random, trials, alarms, covered = np.random.default_rng(0), 400, 0, 0
    for _ in range(trials):
        hard = random.normal(size=episodes)
        a, b = (simulated(random, runs, 0.3, hard, spread) for _ in range(2))
        found = success_difference(a, b, resamples=400)
        alarms += found.p_value <= 0.05
        covered += found.low <= 0 <= found.high
    assert alarms / trials <= 0.07
    assert covered / trials >= 0.91


def test_training_seeds_that_disagree_widen_the_interval() -> None:
    agreeing = outcomes([[1, 1, 1, 0, 0, 0] * 10] * 3)
    disagreeing = outcomes([[1] * 60, [1] * 30 + [0] * 30, [0] * 60])
    other = outcomes([[0, 0, 0, 0, 0, 1] * 10] * 3)
    narrow, wide = success_difference(agreeing, other), success_difference(disagreeing, other)
    assert narrow.mean == pytest.approx(wide.mean)
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)
    assert narrow.p_value < 0.01
    assert wide.p_value > 0.1


def test_the_variance_of_the_mean_of_few_seeds_is_not_too_small() -> None:
    """With S seeds drawn of S it would be 2/3 of the unbiased one for S = 3; the interval has Student's t of 2 degrees."""
    a = outcomes(np.zeros((3, 50)), np.tile([[0.4], [0.5], [0.6]], (1, 50)))
    b = outcomes(np.zeros((1, 50)), np.zeros((1, 50)))
    found = score_difference(a, b)
    error = 0.1 / np.sqrt(3)
    assert found.p_value == pytest.approx(2 * stats.t.sf(0.5 / error, 2), rel=0.05)
    assert found.high - found.low >= 2 * 1.96 * error
    assert score_difference(b, a).p_value == pytest.approx(found.p_value, rel=0.05)


def test_the_interval_of_one_run_is_wilsons_and_of_several_is_wider() -> None:
    random = np.random.default_rng(4)
    one = outcomes(random.random(50) < 0.6)
    assert success_interval(one) == wilson_interval(int(one.success.sum()), 50)
    several = outcomes(random.random((3, 50)) < np.array([[0.3], [0.6], [0.9]]))
    low, high = success_interval(several)
    assert 0 <= low < 0.3
    assert 0.9 < high <= 1


# What cannot be compared


def test_episodes_that_are_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 2 episodes are no pairs"):
        success_difference(outcomes([1, 0, 1]), outcomes([1, 0]))


@pytest.mark.parametrize(
    ("success", "score"),
    [(np.zeros(3), np.zeros(3)), (np.zeros((1, 3)), np.zeros((1, 2))), (np.zeros((1, 0)), np.zeros((1, 0)))],
)
def test_outcomes_of_other_shapes_are_refused(success: np.ndarray, score: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected success and score \(runs, episodes\)"):
        Outcomes(success.astype(bool), score)


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
def test_scores_outside_the_range_are_refused(score: float) -> None:
    with pytest.raises(ValueError, match=r"scores must lie in \[0, 1\]"):
        outcomes([[True]], [[score]])
