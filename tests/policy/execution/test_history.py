"""Observation history: the To latest real measurements, a period apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.policy.execution.history import ObservationHistory

PERIOD = 0.05


def at(time: float) -> dict[str, np.ndarray]:
    """A measurement whose value is its time."""
    return {"state": np.array([time])}


def times_in(history: ObservationHistory) -> list[float]:
    window = history.window()
    assert window is not None
    return window["state"][:, 0].tolist()


def test_the_first_observation_stands_for_those_before_it() -> None:
    history = ObservationHistory(3, period=PERIOD)
    history.start(at(7.0), 7.0)
    assert times_in(history) == [7, 7, 7]
    history.append(at(7.0 + PERIOD), 7.0 + PERIOD)
    assert times_in(history) == [7, 7, 7.05]


def test_steps_that_are_counted_follow_each_other() -> None:
    history = ObservationHistory(2)
    history.start(at(0))
    for step in range(1, 6):
        history.append(at(step), step)
        assert times_in(history) == [step - 1, step]


@given(
    rate=st.sampled_from([20.0, 30.0, 60.0, 125.0]),
    steps=st.integers(1, 4),
    count=st.integers(40, 100),
    seed=st.integers(0, 100),
)
def test_of_a_faster_sensor_the_measurements_a_period_apart_are_taken(
    rate: float, steps: int, count: int, seed: int
) -> None:
    """Each within half a period of the time that it stands for, and none twice."""
    generator, history = np.random.default_rng(seed), ObservationHistory(steps, period=PERIOD)
    times = np.arange(count) / rate + generator.uniform(0, 0.2 / rate, count)
    history.start(at(times[0]), float(times[0]))
    for time in times[1:]:
        history.append(at(time), float(time))
    taken = times_in(history)
    assert len(taken) == steps == len({*taken})
    np.testing.assert_allclose(taken, times[-1] - PERIOD * np.arange(steps)[::-1], atol=PERIOD / 2)
    assert set(taken) <= set(times)


def test_a_measurement_that_is_brought_again_is_not_a_new_one() -> None:
    history = ObservationHistory(2, period=PERIOD)
    history.start(at(0), 0)
    history.append(at(1), PERIOD)
    history.append({"state": np.array([9.0])}, PERIOD)
    history.append({"state": np.array([9.0])}, PERIOD / 2)  # a clock that jumps back
    assert times_in(history) == [0, 1]


def test_a_missing_measurement_is_missing_and_not_replaced_by_another_one() -> None:
    history = ObservationHistory(3, period=PERIOD)
    history.start(at(0), 0)
    for step in (1, 2, 3, 5):
        history.append(at(step), step * PERIOD)
    assert history.missing() == ["state"]
    assert history.window() is None
    history.append(at(6), 6 * PERIOD)
    assert history.window() is None  # it would need step 4
    history.append(at(7), 7 * PERIOD)
    assert times_in(history) == [5, 6, 7]


def test_every_key_has_its_own_times() -> None:
    history = ObservationHistory(2, period=PERIOD)
    history.start({"fast": np.array([0.0]), "slow": np.array([0.0])}, 0)
    history.append({"fast": np.array([1.0]), "slow": np.array([1.0])}, {"fast": PERIOD, "slow": PERIOD * 0.8})
    window = history.window()
    assert window is not None
    assert {key: value[:, 0].tolist() for key, value in window.items()} == {"fast": [0, 1], "slow": [0, 1]}
    history.append({"fast": np.array([2.0]), "slow": np.array([1.0])}, {"fast": 2 * PERIOD, "slow": PERIOD * 0.8})
    window = history.window()
    assert window is not None, "a sensor that brought nothing new still has its window"
    assert window["slow"][:, 0].tolist() == [0, 1]


def test_it_remembers_no_more_than_it_needs() -> None:
    history = ObservationHistory(2, period=1.0)
    history.start(at(0))
    for number in range(1, 1000):
        history.append(at(number / 10), number / 10)
    assert len(history._frames["state"]) < 20


@pytest.mark.parametrize(("steps", "period"), [(0, 1.0), (1, 0.0), (1, -1.0), (1, float("inf")), (1, float("nan"))])
def test_sizes_that_cannot_be_are_refused(steps: int, period: float) -> None:
    with pytest.raises(ConfigurationError, match="at least 1 step and a positive period"):
        ObservationHistory(steps, period=period)
