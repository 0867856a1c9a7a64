"""A scripted expert for robosuite's Lift and Can with privileged information: the exact poses of gripper and object.

It follows a list of waypoints, by commands proportional to the distance from the next one, with small noise that the next
command corrects. A waypoint ends when the *measured* state has reached it, so that the next action depends only on the state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.rotations import convert_rotation
from flowchunk.envs.tasks.robomimic import ROTATIONS, Robomimic

OPEN, CLOSED = -1.0, 1.0
_GAIN = 2.0  # of the distance that is commanded at once; the controller lags behind, and sags under a load
_ALIGNED = 0.1  # rad
_AT_REST = 0.005  # m/s of the fingers that hold something
_OPENED = 0.06  # m between the fingers, wide enough to have released an object
_DOWN = np.array([0.0, 0.0, -1.0])
_NEARER = (-0.06, -0.07)  # m from the bin's middle, which the arm reaches only when it is stretched
_ABOVE_BIN = 0.2  # m above its bottom, over the walls with what the gripper holds


@dataclass(frozen=True)
class Waypoint:
    """Where the end effector goes (3,) in m, the command of the gripper, and when this is done."""

    position: NDArray[np.float64]
    gripper: float
    is_done: Callable[[Robomimic], bool]


class RobomimicExpert:
    """Lifts the cube of Lift, or brings the can of Can to its bin.

    generator: samples variations of the path and the noise. noise: standard deviation of the noise added to the displacement
    at each step, as a fraction of the largest. Raises ConfigurationError at the reset in other tasks.
    """

    def __init__(self, generator: np.random.Generator, *, noise: float = 0.05) -> None:
        self._generator, self._noise = generator, noise
        self._waypoints: list[Waypoint] = []
        self._yaw = 0.0

    def reset(self, env: Robomimic) -> None:
        """Plan the waypoints from the object's pose; call it after the environment's reset."""
        task = env.env_args["env_name"]
        if task not in ("Lift", "PickPlaceCan"):
            raise ConfigurationError(
                f"the scripted expert knows Lift and PickPlaceCan, but not {task}; record or download demonstrations"
            )
        body = env.inner.cube_body_id if task == "Lift" else env.inner.obj_body_id[_can(env).name]
        position = env.data.xpos[body].copy()
        # A can is round, so the hand need not turn, which its joints do not allow over the bin.
        turned = env.data.xmat[body].reshape(3, 3) if task == "Lift" else env.hand_pose()[1]
        self._yaw = float(np.arctan2(turned[1, 0], turned[0, 0]))
        self._waypoints = self._plan_lift(env, position) if task == "Lift" else self._plan_can(env, position)

    def act(self, env: Robomimic) -> NDArray[np.float32]:
        """The next action (D,), of the environment's kind and in its units; float32, as it is stored."""
        while self._waypoints[0].is_done(env):
            del self._waypoints[0]
        waypoint = self._waypoints[0]
        largest = np.asarray(env.env_args["env_kwargs"]["controller_configs"]["output_max"], np.float64)
        position, rotation = env.hand_pose()
        tilt = np.cross(rotation[:, 2], _DOWN)  # for small ones, the rotation that brings the hand's axis down again
        to_turn = tilt + np.array([0, 0, _yaw_error(self._yaw, rotation)])
        to_go = _GAIN * np.concatenate([waypoint.position - position, to_turn])
        moved = to_go / largest + self._noise * self._generator.standard_normal(6)
        moved = np.clip(moved, -1, 1)
        if env.action_spec.size == 7 and env.action_spec.dimensions[0].reference == "delta":
            return np.append(moved, waypoint.gripper).astype(np.float32)
        turned = convert_rotation(moved[3:] * largest[3:], "axis_angle", "matrix") @ rotation
        kind = ROTATIONS[0] if env.action_spec.size == 7 else ROTATIONS[1]
        pose = (position + moved[:3] * largest[:3], convert_rotation(turned, "matrix", kind))
        return np.concatenate([*pose, [waypoint.gripper]], dtype=np.float32)

    def _plan_grasp(self, env: Robomimic, position: NDArray[np.float64], grasped: object) -> list[Waypoint]:
        varied = self._generator.uniform
        grasp = position + varied((-0.004, -0.004, -0.004), (0.004, 0.004, 0.004))
        above = _raised(grasp, varied(0.08, 0.1))

        def is_held(env: Robomimic) -> bool:
            return bool(env.inner._check_grasp(env.inner.robots[0].gripper, grasped)) and _finger_speed(env) < _AT_REST

        return [
            Waypoint(above, OPEN, lambda env: _distance(env, above) < 0.02 and self._is_aligned(env)),
            Waypoint(grasp, OPEN, lambda env: _distance(env, grasp) < 0.012),
            Waypoint(grasp, CLOSED, is_held),
        ]

    def _plan_lift(self, env: Robomimic, position: NDArray[np.float64]) -> list[Waypoint]:
        lifted = _raised(position, self._generator.uniform(0.12, 0.15))
        return [*self._plan_grasp(env, position, env.inner.cube), Waypoint(lifted, CLOSED, lambda env: False)]

    def _plan_can(self, env: Robomimic, position: NDArray[np.float64]) -> list[Waypoint]:
        varied = self._generator.uniform
        bin_position = np.asarray(env.inner.target_bin_placements[env.inner.object_id], np.float64)
        lifted = np.array([*position[:2], bin_position[2] + _ABOVE_BIN + varied(0.05, 0.08)])
        over_bin = np.array([*(bin_position[:2] + _NEARER + varied(-0.015, 0.015, 2)), lifted[2]])
        release = over_bin - [0, 0, lifted[2] - bin_position[2] - varied(0.1, 0.12)]
        return [
            *self._plan_grasp(env, position, _can(env)),
            Waypoint(lifted, CLOSED, lambda env: _distance(env, lifted) < 0.06),
            Waypoint(over_bin, CLOSED, lambda env: _distance(env, over_bin) < 0.05),
            Waypoint(release, CLOSED, lambda env: _distance(env, release) < 0.04),
            Waypoint(release, OPEN, lambda env: _opening(env) > _OPENED),
            Waypoint(over_bin, OPEN, lambda env: False),
        ]

    def _is_aligned(self, env: Robomimic) -> bool:
        return abs(_yaw_error(self._yaw, env.hand_pose()[1])) < _ALIGNED


def _can(env: Robomimic) -> Any:
    return env.inner.objects[env.inner.object_id]


def _distance(env: Robomimic, position: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(env.hand_pose()[0] - position))


def _fingers(env: Robomimic) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions (m) and velocities (m/s) of both finger joints."""
    robot = env.inner.robots[0]
    return env.data.qpos[robot._ref_gripper_joint_pos_indexes], env.data.qvel[robot._ref_gripper_joint_vel_indexes]


def _opening(env: Robomimic) -> float:
    return float(np.abs(_fingers(env)[0]).sum())


def _finger_speed(env: Robomimic) -> float:
    return float(np.abs(_fingers(env)[1]).max())


def _yaw_error(yaw: float, rotation: NDArray[np.float64]) -> float:
    """What the hand turns to align with a box of this yaw, which quarter turns do not change; rad in [-π/4, π/4)."""
    now = np.arctan2(rotation[1, 0], rotation[0, 0])
    return float((yaw - now + np.pi / 4) % (np.pi / 2) - np.pi / 4)


def _raised(position: NDArray[np.float64], height: float) -> NDArray[np.float64]:
    return position + np.array([0, 0, height])
