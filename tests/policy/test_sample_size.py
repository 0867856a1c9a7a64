"""How many episodes are needed: published numbers, and simulations of the test that is then made."""

from __future__ import annotations

import numpy as np
import pytest

from flowchunk.policy.evaluation.paired import mcnemar_p
from flowchunk.policy.evaluation.sample_size import (
    correlation_range,
    episodes_per_arm,
    mcnemar_power,
    paired_episodes,
)


@pytest.mark.parametrize(
    ("p", "difference", "episodes"), [(0.6, 0.1, 356), (0.6, 0.2, 82), (0.5, 0.2, 93), (0.7, -0.1, 356)]
)
def test_unpaired_episodes(p: float, difference: float, episodes: int) -> None:
    assert episodes_per_arm(p, difference) == episodes


def test_more_power_smaller_differences_and_stricter_tests_need_more_episodes() -> None:
    for needed in (episodes_per_arm, paired_episodes):
        usual = needed(0.6, 0.2)
        assert needed(0.6, 0.2, power=0.9) > usual
        assert needed(0.6, 0.2, alpha=0.01) > usual
        assert needed(0.6, 0.15) > usual
    by_correlation = [paired_episodes(0.6, 0.2, correlation=value) for value in (-0.2, 0.0, 0.3, 0.6)]
    assert by_correlation == sorted(by_correlation, reverse=True)


@pytest.mark.parametrize(("n", "only_a", "only_b"), [(12, 0.4, 0.1), (30, 0.05, 0.2), (6, 0.9, 0.05)])
def test_power_is_the_sum_over_all_outcomes(n: int, only_a: float, only_b: float) -> None:
    expected, same = 0.0, 1 - only_a - only_b
    factorial = np.cumprod([1.0, *range(1, n + 1)])
    for i in range(n + 1):
        for j in range(n + 1 - i):
            ways = factorial[n] / (factorial[i] * factorial[j] * factorial[n - i - j])
            if mcnemar_p(i, j) <= 0.05:
                expected += ways * only_a**i * only_b**j * same ** (n - i - j)
    assert mcnemar_power(n, only_a, only_b) == pytest.approx(expected, abs=1e-7)


def test_paired_episodes_are_enough_from_there_on_and_one_fewer_is_not() -> None:
    only_a, only_b = 0.6 * 0.2, 0.8 * 0.4
    needed = paired_episodes(0.6, 0.2)
    assert mcnemar_power(needed - 1, only_a, only_b) < 0.8
    assert all(mcnemar_power(n, only_a, only_b) >= 0.8 for n in range(needed, needed + 60))


def test_the_power_is_that_of_simulated_policies() -> None:
    random, correlation = np.random.default_rng(0), 0.5
    needed = paired_episodes(0.5, 0.25, correlation=correlation)
    both = 0.5 * 0.75 + correlation * np.sqrt(0.25 * 0.1875)
    chosen = random.choice(4, size=(2000, needed), p=[both, 0.5 - both, 0.75 - both, both - 0.25])
    found = [mcnemar_p(int((trial == 1).sum()), int((trial == 2).sum())) <= 0.05 for trial in chosen]
    assert np.mean(found) == pytest.approx(0.8, abs=0.04)


def test_correlations_that_rates_can_have() -> None:
    assert correlation_range(0.5, 0.5) == pytest.approx((-1, 1))
    low, high = correlation_range(0.6, 0.8)
    assert (low, high) == pytest.approx(((0.4 - 0.48) / np.sqrt(0.24 * 0.16), 0.12 / np.sqrt(0.24 * 0.16)))
    assert correlation_range(0.5, 1.0) == (0, 0)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0.95, 0.1), {}, "must lie in"),
        ((0.5, 0.0), {}, "must lie in"),
        ((-0.1, 0.2), {}, "must lie in"),
        ((0.5, 0.1), {"power": 1.0}, "power=1"),
        ((0.5, 0.1), {"power": 0.04}, "power=0.04"),
        ((0.5, 0.1), {"alpha": 0.0}, "alpha=0"),
    ],
)
def test_what_describes_no_test_is_refused(
    arguments: tuple[float, float], options: dict[str, float], message: str
) -> None:
    for needed in (episodes_per_arm, paired_episodes):
        with pytest.raises(ValueError, match=message):
            needed(*arguments, **options)


def test_correlations_that_rates_cannot_have_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"0\.5 and 0\.9 cannot have a correlation of 0\.8; it is between -0\.33 and 0\.33"
    ):
        paired_episodes(0.5, 0.4, correlation=0.8)
    with pytest.raises(ValueError, match="ask for a larger difference"):
        paired_episodes(0.5, 0.0005)
