"""Gymnasium spaces that follow from specifications, and actions checked against them."""

from __future__ import annotations

import math

import numpy as np
from gymnasium.spaces import Box, Dict

from flowchunk.datasets.errors import SimulationError
from flowchunk.datasets.specs import ActionSpec, ObservationField, ObservationSpec
from flowchunk.envs.arguments import finite_numbers


def observation_space(spec: ObservationSpec, *, low: float, high: float) -> Dict:
    """The space of the specification: images uint8 in [0, 255]; angles that wrap in [0, 2π); other values in [low, high].

    Values are float32, in the units of the specification.
    """
    return Dict({key: _box(field, low, high) for key, field in spec.fields.items()})


def action_space(spec: ActionSpec) -> Box:
    """The space (D,) float32 with the bounds of the specification; infinite for dimensions without bounds."""
    low, high = _bounds(spec)
    return Box(np.array(low, np.float32), np.array(high, np.float32))


def checked_action(action: object, spec: ActionSpec, space: Box) -> np.ndarray:
    """The action as float64 (D,), clipped to the bounds of ``space``.

    Raises SimulationError if it is not one finite number for each dimension of the specification.
    """
    return finite_numbers(action, spec.names, "action", SimulationError).clip(space.low, space.high)


def within_bounds(action: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """The action (D,), clipped to the bounds of the specification itself, which those of a space exceed by rounding."""
    low, high = _bounds(spec)
    return np.clip(action, low, high)


def _bounds(spec: ActionSpec) -> tuple[list[float], list[float]]:
    low = [-math.inf if dimension.low is None else dimension.low for dimension in spec.dimensions]
    high = [math.inf if dimension.high is None else dimension.high for dimension in spec.dimensions]
    return low, high


def _box(field: ObservationField, low: float, high: float) -> Box:
    if field.is_image:
        return Box(0, 255, field.shape, np.uint8)
    lowest, highest = np.full(field.size, low, np.float32), np.full(field.size, high, np.float32)
    lowest[list(field.wraps)], highest[list(field.wraps)] = 0.0, 2 * math.pi
    return Box(lowest.reshape(field.shape), highest.reshape(field.shape), dtype=np.float32)
