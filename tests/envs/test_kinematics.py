"""Inverse kinematics inverts forward kinematics, within the joints' ranges."""

import mujoco
import numpy as np
import pytest

from flowchunk.datasets.errors import SimulationError
from flowchunk.envs.kinematics import Kinematics, Pose
from flowchunk.envs.tasks.pick_place import JOINTS, PickPlace


@pytest.fixture(scope="module")
def env() -> PickPlace:
    env = PickPlace()
    env.reset(seed=0)
    return env


def assert_same_pose(got: Pose, expected: Pose) -> None:
    assert np.linalg.norm(got.position - expected.position) < 1e-3
    cosine = (np.trace(got.rotation @ expected.rotation.T) - 1) / 2
    assert np.arccos(np.clip(cosine, -1, 1)) < np.deg2rad(0.5)


def test_forward_agrees_with_the_simulation(env: PickPlace) -> None:
    pose = env.kinematics.forward(env.joint_positions())
    np.testing.assert_allclose(pose.position, env.end_effector_position(), atol=1e-9)
    np.testing.assert_allclose(pose.rotation, env.end_effector_rotation(), atol=1e-9)


@pytest.mark.parametrize("seed", range(50))
def test_reachable_poses_are_reached(env: PickPlace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    low, high = env.action_space.low[:6], env.action_space.high[:6]
    joints = rng.uniform(0.8 * low, 0.8 * high)
    start = np.clip(joints + rng.uniform(-0.2, 0.2, 6), low, high)
    target = env.kinematics.forward(joints)
    found = env.kinematics.inverse(target, start, max_iterations=100)
    assert_same_pose(env.kinematics.forward(found), target)
    assert (found >= low - 1e-6).all()
    assert (found <= high + 1e-6).all()


def test_out_of_reach_stays_finite_and_within_ranges(env: PickPlace) -> None:
    far = Pose(np.array([2.0, 1.0, 0.5]), np.eye(3))
    found = env.kinematics.inverse(far, env.joint_targets())
    assert np.isfinite(found).all()
    assert (found >= env.action_space.low[:6] - 1e-6).all()
    assert (found <= env.action_space.high[:6] + 1e-6).all()


@pytest.mark.parametrize("where", ["position", "rotation", "start"])
def test_values_that_are_not_finite_are_refused(env: PickPlace, where: str) -> None:
    pose, start = env.kinematics.forward(env.joint_targets()), env.joint_targets()
    {"position": pose.position, "rotation": pose.rotation, "start": start}[where][..., 0] = np.nan
    with pytest.raises(SimulationError, match="expected a finite pose"):
        env.kinematics.inverse(pose, start)


def test_already_there_changes_nothing(env: PickPlace) -> None:
    start = env.joint_targets()
    np.testing.assert_array_equal(env.kinematics.inverse(env.kinematics.forward(start), start), start)


def test_the_simulation_is_not_touched(env: PickPlace) -> None:
    before = env.data.qpos.copy()
    kinematics = Kinematics(env.model, site="end_effector", joints=JOINTS)
    kinematics.inverse(kinematics.forward(np.full(6, 0.3)), np.zeros(6))
    mujoco.mj_kinematics(env.model, env.data)
    np.testing.assert_array_equal(env.data.qpos, before)
