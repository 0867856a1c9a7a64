"""Where the training data were, so that an observation far from it is noticed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ObservedRange:
    """Per key of the observation: low and high, of the value's shape, and indices of angles that wrap."""

    low: Mapping[str, np.ndarray]
    high: Mapping[str, np.ndarray]
    wraps: Mapping[str, tuple[int, ...]]

    def far_outside(self, observation: Mapping[str, np.ndarray], margin: float) -> str | None:
        """The first value that lies more than ``margin`` ranges outside, in words; None if there is none."""
        for key, low in self.low.items():
            value, high = np.asarray(observation[key], np.float64), self.high[key]
            slack = margin * (high - low)
            is_far = ((value < low - slack) | (value > high + slack)) & (high > low)
            is_far.reshape(-1)[list(self.wraps[key])] = False
            if is_far.any():
                index = int(np.flatnonzero(is_far)[0])
                return (
                    f"{key}[{index}] is {value.reshape(-1)[index]:.4g}, but was {low.reshape(-1)[index]:.4g} to "
                    f"{high.reshape(-1)[index]:.4g} in training"
                )
        return None
