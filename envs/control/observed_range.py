"""Where the training data were, so that an observation far from it is noticed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

UNKNOWN = "unknown"


@dataclass(frozen=True)
class ObservedRange:
    """Per key of the observation: low and high, of the value's shape, indices of angles that wrap, and units, flat."""

    low: Mapping[str, np.ndarray]
    high: Mapping[str, np.ndarray]
    wraps: Mapping[str, tuple[int, ...]]
    units: Mapping[str, tuple[str, ...]]

    def far_outside(self, observation: Mapping[str, np.ndarray], margin: float) -> str | None:
        """The first value that lies more than ``margin`` scales outside, in words; None if no value does.

        A value's scale is its own range, but at least the median range of the key's values in the same unit: what hardly
        moved in training, such as an object's height, is not far outside after a millimetre.
        """
        for key, low in self.low.items():
            value, high = np.asarray(observation[key], np.float64), self.high[key]
            slack = margin * self._scale[key]
            is_far = ((value < low - slack) | (value > high + slack)) & (high > low)
            is_far.reshape(-1)[list(self.wraps[key])] = False
            if is_far.any():
                index = int(np.flatnonzero(is_far)[0])
                return (
                    f"{key}[{index}] is {value.reshape(-1)[index]:.4g}, but was {low.reshape(-1)[index]:.4g} to "
                    f"{high.reshape(-1)[index]:.4g} in training"
                )
        return None

    @cached_property
    def _scale(self) -> dict[str, np.ndarray]:
        return {key: _scale(self.high[key] - low, self.units[key]) for key, low in self.low.items()}


def _scale(ranges: np.ndarray, units: tuple[str, ...]) -> np.ndarray:
    """Of each value; those of unknown units stand alone."""
    flat = ranges.reshape(-1)
    moving = {unit: [size for size, one in zip(flat, units, strict=True) if one == unit and size > 0] for unit in units}
    typical = [0.0 if unit == UNKNOWN or not moving[unit] else float(np.median(moving[unit])) for unit in units]
    return np.maximum(flat, typical).reshape(ranges.shape)
