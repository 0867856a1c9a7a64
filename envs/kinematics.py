"""Forward kinematics of an arm, and inverse kinematics by damped least squares.

Each iteration solves Δq = Jᵀ (J Jᵀ + λ²I)⁻¹ e for the six-dimensional pose error e (Wampler 1986, Nakamura & Hanafusa
1986). The damping λ keeps steps short near singular poses, where the plain pseudo-inverse explodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowchunk.datasets.errors import SimulationError
from flowchunk.envs.mujoco_import import mujoco

_DAMPING = 0.02
_LONGEST_STEP = 0.5  # rad, of any joint in one iteration: the linearization is invalid beyond
_CLOSE_ENOUGH = 1e-4  # m and rad


@dataclass(frozen=True)
class Pose:
    """A pose in the world frame: position (3,) in meters, rotation matrix (3, 3) from the body's frame to the world's."""

    position: NDArray[np.float64]
    rotation: NDArray[np.float64]


class Kinematics:
    """Forward and inverse kinematics of one site on a chain of hinge joints, computed on a scratch copy of the state."""

    def __init__(self, model: mujoco.MjModel, *, site: str, joints: Sequence[str]) -> None:
        self._model = model
        self._scratch = mujoco.MjData(model)
        self._site = model.site(site).id
        self._positions = np.array([model.joint(name).qposadr[0] for name in joints])
        self._velocities = np.array([model.joint(name).dofadr[0] for name in joints])
        self._low, self._high = np.array([model.joint(name).range for name in joints]).T
        self._jacobian = np.zeros((6, model.nv))

    def forward(self, joint_positions: ArrayLike) -> Pose:
        """The site's pose at these joint positions (J,), in radians."""
        self._scratch.qpos[self._positions] = joint_positions
        mujoco.mj_kinematics(self._model, self._scratch)
        site = self._scratch.site(self._site)
        return Pose(site.xpos.copy(), site.xmat.reshape(3, 3).copy())

    def inverse(self, target: Pose, start: ArrayLike, *, max_iterations: int = 20) -> NDArray[np.float64]:
        """Joint positions (J,) in radians, within the joints' ranges, that bring the site to ``target``.

        start: (J,), where the search begins; it tends to the solution nearest to it. If the target is out of reach, returns
        the joint positions of the last iteration, which may be centimeters away from the closest reachable pose. Raises
        SimulationError for a target or start that is not finite.
        """
        if not all(np.isfinite(values).all() for values in (target.position, target.rotation, start)):
            raise SimulationError(f"expected a finite pose to reach and a finite start, got {target} from {start!r}")
        joints = np.clip(np.asarray(start, dtype=np.float64), self._low, self._high)
        for _ in range(max_iterations):
            error = _pose_error(self.forward(joints), target)
            if np.abs(error).max() < _CLOSE_ENOUGH:
                break
            jacobian = self._site_jacobian()
            damped = jacobian @ jacobian.T + _DAMPING**2 * np.eye(6)
            step = jacobian.T @ np.linalg.solve(damped, error)
            step *= min(1.0, _LONGEST_STEP / np.abs(step).max())
            joints = np.clip(joints + step, self._low, self._high)
        return joints

    def _site_jacobian(self) -> NDArray[np.float64]:
        mujoco.mj_comPos(self._model, self._scratch)
        mujoco.mj_jacSite(self._model, self._scratch, self._jacobian[:3], self._jacobian[3:], self._site)
        return self._jacobian[:, self._velocities]


def _pose_error(current: Pose, target: Pose) -> NDArray[np.float64]:
    """(6,): the position error in meters, then the rotation vector in radians, both in the world frame."""
    quaternion, rotation_vector = np.empty(4), np.empty(3)
    mujoco.mju_mat2Quat(quaternion, (target.rotation @ current.rotation.T).ravel())
    mujoco.mju_quat2Vel(rotation_vector, quaternion, 1.0)
    return np.concatenate([target.position - current.position, rotation_vector])
