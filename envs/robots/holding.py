"""What it means to hold still, for each kind of action."""

from __future__ import annotations

from collections import Counter

import numpy as np

from flowchunk.datasets.errors import RobotError
from flowchunk.datasets.specs import ActionDimension, ActionSpec

FORCE_UNITS = ("N", "N·m", "N*m", "N m", "Nm")
NO_ROTATION = {
    "rotation_6d": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "quaternion_xyzw": (0.0, 0.0, 0.0, 1.0),
    "quaternion_wxyz": (1.0, 0.0, 0.0, 0.0),
    "matrix": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
}
"""The numbers of a step that does not turn, in representations where they are not all 0."""


def holding_action(spec: ActionSpec, *, measured: np.ndarray | None, last: np.ndarray | None) -> np.ndarray:
    """The action (D,) that keeps a robot where it is.

    measured: (D,) what the robot measures for each dimension, in the units of ``spec``, with NaN for what it does not
    measure. last: (D,) the action commanded last. Both may be None.

    - Speeds (a unit that ends in ``/s``), forces and torques (N, N·m), and actions with the reference "delta" or "relative"
      are 0; rotations of the latter are the numbers that do not turn. An arm that is driven by torques and does not
      compensate for gravity falls: its driver should hold by itself, with a position controller or its brakes.
    - Everything else is a position: the measured one, or the last command if it is not measured, within the bounds of
      ``spec``. Numbers of a rotation are taken as they are.

    Raises RobotError if a position is neither measured nor commanded.
    """
    held = np.zeros(spec.size)
    for name, values in (("measured", measured), ("last", last)):
        if values is not None and np.shape(values) != held.shape:
            raise RobotError(
                f"{name}: expected {spec.size} numbers, one for each of {list(spec.names)}, got shape {np.shape(values)}; "
                "correct the robot's driver"
            )
    places: Counter[str] = Counter()
    for index, dimension in enumerate(spec.dimensions):
        if dimension.reference != "absolute":
            numbers = NO_ROTATION.get(dimension.rotation or "", (0.0,))
            held[index] = numbers[places[dimension.rotation or ""] % len(numbers)]
            places[dimension.rotation or ""] += 1
        elif not (dimension.unit.endswith("/s") or dimension.unit in FORCE_UNITS):
            held[index] = _position(dimension, [known[index] for known in (measured, last) if known is not None])
    return held


def _position(dimension: ActionDimension, known: list[float]) -> float:
    for value in known:
        if np.isfinite(value):
            low = -np.inf if dimension.low is None else dimension.low
            high = np.inf if dimension.high is None else dimension.high
            return float(np.clip(value, low, high))
    raise RobotError(
        f"cannot hold {dimension.name!r} ({dimension.unit}): its position is not measured, and nothing was commanded yet; "
        "let the robot measure it, or implement hold() in its driver, or hold_action() in an environment"
    )
