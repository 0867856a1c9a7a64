"""Whether a simulation still makes sense: one rule for all tasks."""

from __future__ import annotations

import numpy as np

from flowchunk.datasets.errors import SimulationError
from flowchunk.envs.mujoco_import import mujoco

_UNSTABLE = tuple(
    kind.value
    for kind in (mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC)
)


def require_stable(data: mujoco.MjData) -> None:
    """Raise SimulationError where MuJoCo found the state unstable since the last reset, or it is not finite.

    The model has to turn MuJoCo's autoreset off, which would start again from the initial state without a word.
    """
    was_warned = any(data.warning[kind].number for kind in _UNSTABLE)
    if was_warned or not (np.isfinite(data.qpos).all() and np.isfinite(data.qvel).all()):
        raise SimulationError(
            f"expected a finite state, got an unstable simulation at {data.time:.2f} s; reset the environment, and "
            "send targets that move more slowly"
        )
