"""A way for messages that takes time and loses some of them, the same ones for the same seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class LossyChannel:
    """When each message arrives: after ``delay`` seconds and up to ``jitter`` more, unless it is lost.

    drop: the probability of losing a message. seed: two channels with the same seed treat their n-th messages alike.
    """

    def __init__(
        self, *, delay: float = 0.0, jitter: float = 0.0, drop: float = 0.0, seed: Sequence[int] = (0,)
    ) -> None:
        self._delay, self._jitter, self._drop = delay, jitter, drop
        self._generator = np.random.default_rng(seed)

    def travel_time(self) -> float | None:
        """Seconds that the next message takes; None if it is lost."""
        lateness, luck = self._generator.random(2).tolist()
        return None if luck < self._drop else self._delay + lateness * self._jitter
