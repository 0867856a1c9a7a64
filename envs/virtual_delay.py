"""Delays in virtual time: predictions take control steps, of which the simulation knows exactly how many.

So the effect of latency on a policy's score is a figure that repeats, whatever machine measures it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flowchunk.datasets.errors import ConfigurationError


@dataclass(frozen=True)
class VirtualDelay:
    """How many control steps a prediction takes.

    steps: of every prediction. jitter: up to so many more, uniform. drop: the probability, below 1, that a predicted chunk is
    lost, after which another one is requested. seed: of both; each episode's delays also depend on its own seed. The first
    chunk of an episode is waited for. Raises ConfigurationError for values out of range.
    """

    steps: int = 0
    jitter: int = 0
    drop: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 0 or self.jitter < 0 or not 0 <= self.drop < 1:
            raise ConfigurationError(
                f"delay.steps={self.steps}, delay.jitter={self.jitter}, delay.drop={self.drop}: expected steps and jitter of "
                "at least 0, and a drop probability of at least 0 and below 1"
            )

    def sample(self, generator: np.random.Generator) -> tuple[int, bool]:
        """The steps that one prediction takes, and whether its chunk is lost; a lost one takes at least one step."""
        steps = self.steps + int(generator.integers(self.jitter + 1))
        is_lost = bool(generator.random() < self.drop)
        return (max(steps, 1), True) if is_lost else (steps, False)
