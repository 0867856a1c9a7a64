"""Detection of unstable simulations, the same for all tasks."""

from __future__ import annotations

import numpy as np

from flowchunk.datasets.errors import SimulationError
from flowchunk.envs.mujoco_import import mujoco

_UNSTABLE = tuple(
    kind.value
    for kind in (mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC)
)


def require_stable(data: mujoco.MjData) -> None:
    """Raise SimulationError if MuJoCo has found the state unstable since the last reset, or if it is not finite.

    The model must disable MuJoCo's autoreset, which would silently return to the initial state.
    """
    was_warned = any(data.warning[kind].number for kind in _UNSTABLE)
    if was_warned or not (np.isfinite(data.qpos).all() and np.isfinite(data.qvel).all()):
        raise SimulationError(
            f"expected a finite state, got an unstable simulation at {data.time:.2f} s; reset the environment, and "
            "send targets that move more slowly"
        )
