"""Deadlines: on one grid, whatever happens in between, and never in a burst."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from flowchunk.envs.control.clock import Deadlines


def on_grid(deadlines: Deadlines, times: list[float]) -> np.ndarray:
    """The numbers of these deadlines, which must be whole ones of the grid that begins at the first."""
    numbers = (np.array(times) - deadlines.start) / deadlines.period
    np.testing.assert_allclose(numbers, numbers.round(), atol=1e-6)
    return numbers.round().astype(int)


def test_lateness_does_not_add_up() -> None:
    """However busy the machine: deadlines stay on their grid, and each is waited for once or counted as missed."""
    deadlines, found = Deadlines(200.0), []
    for _ in range(20):
        deadline, late = deadlines.wait()
        found.append(deadline)
        assert late >= 0
        time.sleep(0.002)
    numbers = on_grid(deadlines, found)
    assert numbers[0] == 0 or deadlines.missed
    assert (np.diff(numbers) >= 1).all()
    assert numbers[-1] + 1 == len(found) + deadlines.missed


def test_after_a_stall_deadlines_are_skipped_and_counted() -> None:
    deadlines = Deadlines(100.0)
    first, _ = deadlines.wait()
    time.sleep(0.055)
    began = time.monotonic()
    found = [deadlines.wait()[0] for _ in range(4)]
    numbers = on_grid(deadlines, [first, *found])
    assert deadlines.missed >= 4
    assert numbers[1] >= 5, "the deadlines of the stall are not caught up with"
    assert (np.diff(numbers[1:]) >= 1).all()
    assert time.monotonic() - began > 0.015, "a burst of late ticks"


def test_a_changed_time_of_day_moves_no_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    def jumped(*_: Any) -> float:
        raise AssertionError("the time of day was asked for")

    monkeypatch.setattr(time, "time", jumped)
    deadlines = Deadlines(100.0)
    late = [deadlines.wait()[1] for _ in range(3)]
    assert max(late) < 1.0
