"""What is remembered of a run."""

from __future__ import annotations

import numpy as np
import pytest

from flowchunk.envs.control.messages import Event, Tick, Timing
from flowchunk.envs.control.run_log import EVENTS_KEPT, RunLog
from flowchunk.policy.execution.executor import Placement


def placement(delay: int, *, is_first: bool = False, is_late: bool = False) -> Placement:
    return Placement(0, delay, is_first, is_late, np.zeros(2))


def test_durations_are_summed_up_per_stage_in_milliseconds() -> None:
    log = RunLog()
    timings = tuple(Timing(late=number / 1000, observe=0.0, limit=0.0, command=0.001) for number in range(101))
    log.add_tick(Tick(0.0, {}, {}, None, True, timings, missed=3))
    found = log.percentiles()
    assert found["command_late"] == pytest.approx({"count": 101, "p50": 50, "p95": 95, "p99": 99, "max": 100})
    assert found["command"]["p50"] == pytest.approx(1)
    assert "observe" not in found, "it never ran"
    assert (log.num_commands, log.missed) == (101, 3)


def test_commands_keep_their_order_and_boundaries_their_place() -> None:
    log = RunLog()
    log.add_placement(placement(0, is_first=True))
    log.add_command(0.0, np.array([1.0, 2.0]))
    log.add_placement(placement(2, is_late=True))
    log.add_command(0.1, np.array([3.0, 4.0]))
    np.testing.assert_array_equal(log.commands(), [[1, 2], [3, 4]])
    assert list(log.boundaries) == [1]
    assert log.delays == {2: 1}, "the first chunk is waited for, and does not count"
    assert log.late_chunks == 1


def test_all_events_are_counted_and_the_first_thousand_kept() -> None:
    log = RunLog()
    log.add_events(Event(0.0, "velocity", "x") for _ in range(EVENTS_KEPT + 5))
    assert log.interventions == {"velocity": EVENTS_KEPT + 5}
    assert len(log.events) == EVENTS_KEPT


def test_an_empty_log_can_be_reported() -> None:
    log = RunLog()
    assert log.commands().shape == (0, 1)
    assert log.percentiles() == {}
