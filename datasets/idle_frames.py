"""Time steps in which a demonstrator did nothing: at the start and the end of episodes, they only teach a policy to wait."""

from __future__ import annotations

import numpy as np

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.specs import ActionSpec

_UNCLEAR_REST = ("rotation_6d", "quaternion_xyzw", "quaternion_wxyz")  # no motion is not zero in these


def active_frames(actions: np.ndarray, tolerances: np.ndarray, is_delta: np.ndarray) -> slice:
    """The time steps from the first motion of an episode to its last, and an idle one at each end if there is one.

    A time step is idle if no dimension of its action differs from the previous action by more than its tolerance; in delta
    dimensions, from 0. actions: (T, D); tolerances, is_delta: (D,). An episode without motion keeps one time step.
    """
    change = np.diff(actions, axis=0, prepend=actions[:1])
    change[:, is_delta] = actions[:, is_delta]
    moves = np.flatnonzero((np.abs(change) > tolerances).any(axis=1))
    if not len(moves):
        return slice(0, 1)
    return slice(max(0, int(moves[0]) - 1), min(int(moves[-1]) + 2, len(actions)))


def delta_dimensions(action_spec: ActionSpec) -> np.ndarray:
    """(D,) whether a dimension is the difference to the previous one, so that 0 is no motion.

    Raises ConfigurationError for rotations in which no motion is not 0.
    """
    for dimension in action_spec.dimensions:
        if dimension.reference == "delta" and dimension.rotation in _UNCLEAR_REST:
            raise ConfigurationError(
                f"trim_idle: {dimension.name} is part of a delta rotation as {dimension.rotation}, in which no motion is "
                "not 0; convert it first: rotation=axis_angle in an edit of its own"
            )
    return np.array([dimension.reference == "delta" for dimension in action_spec.dimensions])
