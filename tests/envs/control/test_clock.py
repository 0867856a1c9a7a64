"""Deadlines: on one grid, whatever happens in between, and never in a burst."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from flowchunk.envs.control.clock import Deadlines


def test_lateness_does_not_add_up() -> None:
    deadlines = Deadlines(200.0)
    for _ in range(20):
        deadline, late = deadlines.wait()
        time.sleep(0.002)
        assert late >= 0
    assert deadline == pytest.approx(deadlines.start + (deadlines.number - 1) / 200)
    assert time.monotonic() - deadlines.start < 25 / 200


def test_after_a_stall_deadlines_are_skipped_and_counted() -> None:
    deadlines = Deadlines(100.0)
    deadlines.wait()
    time.sleep(0.055)
    began = time.monotonic()
    found = [deadlines.wait()[0] for _ in range(4)]
    assert deadlines.missed >= 4
    assert time.monotonic() - began > 0.015, "a burst of late ticks"
    np.testing.assert_allclose(np.diff(found), 0.01, atol=1e-9)
    grid = (np.array(found) - deadlines.start) * 100
    np.testing.assert_allclose(grid, grid.round(), atol=1e-6)


def test_a_changed_time_of_day_moves_no_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    def jumped(*_: Any) -> float:
        raise AssertionError("the time of day was asked for")

    monkeypatch.setattr(time, "time", jumped)
    deadlines = Deadlines(100.0)
    late = [deadlines.wait()[1] for _ in range(3)]
    assert max(late) < 1.0
