"""How smooth executed actions are where one chunk hands over to the next, compared with everywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Smoothness:
    """Mean Euclidean norms, in action units per second (velocity) and per second³ (jerk).

    velocity_jump: change of velocity from one control step to the next. at_boundaries: at a chunk's first executed action;
    elsewhere: at all others. NaN for a place without any.
    """

    velocity_jump_at_boundaries: float
    velocity_jump_elsewhere: float
    jerk_at_boundaries: float
    jerk_elsewhere: float
    num_boundaries: int


def smoothness(
    actions: np.ndarray, boundaries: Sequence[int], *, control_hz: float, starts: Sequence[int] = (0,)
) -> Smoothness:
    """Of actions (T, D), of which a new chunk's first is at each of the ``boundaries``, in episodes that begin at ``starts``.

    Differences across the start of an episode do not count.
    """
    actions = np.asarray(actions, np.float64)
    jumps = np.linalg.norm(np.diff(actions, n=2, axis=0), axis=-1) * control_hz  # at step 2, 3, …
    jerks = np.linalg.norm(np.diff(actions, n=3, axis=0), axis=-1) * control_hz**3  # at step 3, 4, …
    is_boundary = np.isin(np.arange(len(actions)), np.asarray(boundaries, dtype=int))
    age = np.arange(len(actions)) - np.maximum.accumulate(
        np.where(np.isin(np.arange(len(actions)), np.asarray(starts, dtype=int)), np.arange(len(actions)), 0)
    )

    def split(values: np.ndarray, order: int) -> tuple[float, float]:
        at, usable = is_boundary[order:], age[order:] >= order
        return _mean(values[at & usable]), _mean(values[~at & usable])

    return Smoothness(*split(jumps, 2), *split(jerks, 3), int(is_boundary.sum()))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
