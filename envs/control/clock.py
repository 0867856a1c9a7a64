"""Absolute deadlines on the monotonic clock, which no change of the time of day moves."""

from __future__ import annotations

import time

CATCH_UP_LIMIT = 0.5  # of a period: later than that, deadlines are skipped, not caught up with in a burst


class Deadlines:
    """Deadlines a period apart, on one grid from the first to the last: lateness does not add up."""

    def __init__(self, hz: float, *, start: float | None = None) -> None:
        self.period = 1 / hz
        self.start = time.monotonic() if start is None else start
        self.number, self.missed = 0, 0

    @property
    def next(self) -> float:
        """The time of the next deadline, in seconds of ``time.monotonic()``."""
        return self.start + self.number * self.period

    def wait(self) -> tuple[float, float]:
        """Sleep until the next deadline; returns it, and how much later (s) it is now.

        After a stall, deadlines in the past are skipped and counted in ``missed``.
        """
        deadline = self.next
        if (left := deadline - time.monotonic()) > 0:
            time.sleep(left)  # clock_nanosleep with an absolute deadline, since Python 3.11
        late = time.monotonic() - deadline
        skipped = int(late / self.period + (1 - CATCH_UP_LIMIT)) if late > CATCH_UP_LIMIT * self.period else 0
        self.missed += skipped
        self.number += 1 + skipped
        return deadline + skipped * self.period, late
