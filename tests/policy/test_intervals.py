"""Wilson's interval, against published numbers and against what an interval must be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowchunk.policy.evaluation.intervals import wilson_interval


@pytest.mark.parametrize(
    ("trials", "low", "high"), [(10, 0.49, 0.94), (50, 0.67, 0.89), (100, 0.71, 0.87), (500, 0.76, 0.83)]
)
def test_eighty_percent_success(trials: int, low: float, high: float) -> None:
    assert wilson_interval(trials * 8 // 10, trials) == pytest.approx((low, high), abs=0.005)


@given(st.integers(1, 2000), st.data())
def test_the_interval_contains_the_proportion_and_is_symmetric(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= successes / trials + 1e-12
    assert successes / trials - 1e-12 <= high <= 1
    assert low < high
    assert wilson_interval(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@given(st.integers(1, 500), st.data())
def test_more_confidence_and_fewer_trials_are_wider(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    low, high = wilson_interval(successes, trials)
    wider_low, wider_high = wilson_interval(successes, trials, confidence=0.99)
    assert wider_high - wider_low > high - low
    tenfold_low, tenfold_high = wilson_interval(10 * successes, 10 * trials)
    assert tenfold_high - tenfold_low < high - low


def test_all_or_none_is_not_certain() -> None:
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)  # z² / (n + z²)
    assert wilson_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


@pytest.mark.parametrize(("successes", "trials"), [(-1, 10), (11, 10), (0, 0), (0, -3)])
def test_numbers_that_are_no_proportion_are_refused(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} successes in {trials} trials is not a proportion"):
        wilson_interval(successes, trials)
