"""A scripted expert for PickPlace with privileged information: the exact poses of all objects.

It follows a list of waypoints. From the last commanded pose, it plans the next one along a smooth velocity profile, and
converts it to joint targets by damped least squares. Small noise on the joint targets is corrected by the next plan, so
demonstrations contain small errors and their recovery. A waypoint ends when the *measured* state has reached it, never after
a fixed time, so that the next action depends only on the state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowchunk.datasets.rotations import rotation_6d_from_matrix
from flowchunk.envs.kinematics import Pose
from flowchunk.envs.tasks.pick_place import BINS, CONTROL_HZ, MAX_OPENING, PickPlace

_SPEED = 0.14  # m/s
_ACCELERATION = 0.45  # m/s²
_TURNING_SPEED = 1.5  # rad/s
_ALIGNED = 0.1  # rad
_SQUEEZING_OPENING = 0.015  # m; narrower than the cube, so that the difference produces the grip force
_OPENED = 0.055  # m, wide enough to have released the cube


@dataclass(frozen=True)
class Waypoint:
    """The hand's target position (3,) in meters and yaw in radians, the gripper opening (m), and when it is reached."""

    position: NDArray[np.float64]
    yaw: float
    opening: float
    is_done: Callable[[PickPlace], bool]


class PickPlaceExpert:
    """Picks up the cube and places it in a random bin.

    rng: samples the bin, variations of the path, and the noise. joint_noise: standard deviation in radians of the
    noise added to the joint targets at each step.
    """

    def __init__(self, rng: np.random.Generator, *, joint_noise: float = 0.002) -> None:
        self._rng = rng
        self._joint_noise = joint_noise
        self._waypoints: list[Waypoint] = []
        self._velocity = np.zeros(3)
        self._speed = _SPEED
        self.bin = 0

    def reset(self, env: PickPlace) -> None:
        """Choose a bin and plan the waypoints from the cube's current pose; call it after the environment's reset."""
        self.bin = int(self._rng.integers(len(BINS)))
        self._velocity = np.zeros(3)
        self._speed = _SPEED * self._rng.uniform(0.9, 1.1)
        self._waypoints = self._plan(env)

    def act(self, env: PickPlace) -> NDArray[np.float64]:
        """The next action (D,), of the environment's kind and in its units."""
        while self._waypoints[0].is_done(env):
            del self._waypoints[0]
        waypoint = self._waypoints[0]
        commanded = env.kinematics.forward(env.joint_targets())
        joints = env.kinematics.inverse(self._next_pose(commanded, waypoint), env.joint_targets())
        joints = joints + self._joint_noise * self._rng.standard_normal(joints.shape)
        if env.action_kind == "joint_position":
            return np.append(joints, waypoint.opening)
        pose = env.kinematics.forward(joints)
        return np.concatenate([pose.position, rotation_6d_from_matrix(pose.rotation), [waypoint.opening]])

    def _plan(self, env: PickPlace) -> list[Waypoint]:
        varied = self._rng.uniform
        x_axis = env.cube_rotation()[:, 0]
        yaw = _quarter_turn(np.arctan2(x_axis[1], x_axis[0]))
        grasp = env.cube_position() + varied((-0.003, -0.003, -0.002), (0.003, 0.003, 0.002))
        above = _raised(grasp, varied(0.055, 0.07))
        lifted = _raised(grasp, varied(0.065, 0.08))
        release = env.bin_position(self.bin) + varied((-0.015, -0.015, 0.060), (0.015, 0.015, 0.066))
        over_bin = _raised(release, 0.03)
        return [
            Waypoint(above, yaw, MAX_OPENING, _within(0.012, above, yaw)),
            Waypoint(grasp, yaw, MAX_OPENING, _within(0.004, grasp, yaw)),
            Waypoint(grasp, yaw, _SQUEEZING_OPENING, PickPlace.is_grasped),
            Waypoint(lifted, yaw, _SQUEEZING_OPENING, _within(0.02, lifted, yaw)),
            Waypoint(over_bin, yaw, _SQUEEZING_OPENING, _within(0.02, over_bin, yaw)),
            Waypoint(release, yaw, _SQUEEZING_OPENING, _within(0.006, release, yaw)),
            Waypoint(release, yaw, MAX_OPENING, lambda env: env.gripper_opening() > _OPENED),
            Waypoint(_raised(release, 0.06), yaw, MAX_OPENING, lambda env: False),
        ]

    def _next_pose(self, commanded: Pose, waypoint: Waypoint) -> Pose:
        """The pose one control period after the last commanded one, as far as speed and acceleration allow."""
        to_go = waypoint.position - commanded.position
        distance = np.linalg.norm(to_go) + 1e-9
        speed = min(self._speed, np.sqrt(2 * _ACCELERATION * distance), distance * CONTROL_HZ)
        change = to_go / distance * speed - self._velocity
        most = 2 * _ACCELERATION / CONTROL_HZ
        self._velocity = self._velocity + change * min(1.0, most / (np.linalg.norm(change) + 1e-9))
        yaw = _yaw_of(commanded.rotation)
        most = _TURNING_SPEED / CONTROL_HZ
        yaw += np.clip(_half_turn(waypoint.yaw - yaw), -most, most)
        return Pose(commanded.position + self._velocity / CONTROL_HZ, _pointing_down(yaw))


def _within(tolerance: float, position: NDArray[np.float64], yaw: float) -> Callable[[PickPlace], bool]:
    def is_done(env: PickPlace) -> bool:
        distance = np.linalg.norm(env.end_effector_position() - position)
        angle = abs(_half_turn(_yaw_of(env.end_effector_rotation()) - yaw))
        return bool(distance < tolerance and angle < _ALIGNED)

    return is_done


def _raised(position: NDArray[np.float64], height: float) -> NDArray[np.float64]:
    raised = position.copy()
    raised[2] += height
    return raised


def _pointing_down(yaw: float) -> NDArray[np.float64]:
    """(3, 3): the hand's x axis points down, and its fingers slide along the y axis rotated by ``yaw``."""
    cosine, sine = np.cos(yaw), np.sin(yaw)
    return np.array([[0.0, -sine, cosine], [0.0, cosine, sine], [-1.0, 0.0, 0.0]])


def _yaw_of(hand_rotation: NDArray[np.float64]) -> float:
    """The inverse of ``_pointing_down``, radians."""
    return float(np.arctan2(hand_rotation[1, 2], hand_rotation[0, 2]))


def _half_turn(angle: float) -> float:
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


def _quarter_turn(angle: float) -> float:
    """The cube's equivalent yaw in [-π/4, π/4): a cube is symmetric under quarter turns."""
    return float((angle + np.pi / 4) % (np.pi / 2) - np.pi / 4)
