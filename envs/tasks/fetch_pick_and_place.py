"""Fetch picks up a block and holds it at a goal, on the table or above it. Gymnasium-Robotics' environment as a task."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from flowchunk.envs.gym_task import NORMALIZED, STATE, GymTask
from flowchunk.envs.tasks.robotics_environment import make_robotics_environment


def _axes(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}_{axis}" for name in names for axis in "xyz")


FINGERS = ("right_finger", "left_finger")
FIELD = ObservationField(
    (28,),
    (
        *_axes("gripper", "block", "gripper_to_block"),
        *FINGERS,
        *_axes("block_angle", "block_velocity_to_gripper", "block_angular_velocity", "gripper_velocity"),
        *(f"{finger}_velocity" for finger in FINGERS),
        *_axes("goal"),
    ),
    (*("m",) * 11, *("rad",) * 3, *("m/step",) * 3, *("rad/step",) * 3, *("m/step",) * 5, *("m",) * 3),
    wraps=(11, 12, 13),
)
CLOSE = 0.05  # m, which counts as there
GRIPPER, BLOCK, GOAL = slice(0, 3), slice(3, 6), slice(25, 28)
ACTIONS = (
    *(ActionDimension(name, NORMALIZED, "world", reference="delta", low=-1.0, high=1.0) for name in _axes("gripper")),
    ActionDimension("finger_opening", NORMALIZED, "gripper", low=-1.0, high=1.0),
)


class FetchPickAndPlace(GymTask):
    """Bring the block to the goal, within 5 cm as soon as it is there; the score is the share of the way that it has come.

    Observation: ``state`` (28,) float32: Fetch's 25 numbers (positions in m, velocities per control step) and the desired
    goal (m); the achieved goal is the block's position, which is among them. Action: (4,) in [-1, 1], the gripper's
    displacement, of which 1 is 5 cm, and the opening of its fingers, at 25 Hz.

    render_mode: None or "rgb_array". Raises ConfigurationError without the extra ``gymnasium-robotics``.
    """

    def __init__(self, *, render_mode: str | None = None) -> None:
        task = "fetch_pick_and_place"
        super().__init__(make_robotics_environment("FetchPickAndPlace-v4", task=task, render_mode=render_mode))
        self.observation_space = gymnasium.spaces.Dict(
            {STATE: gymnasium.spaces.Box(-np.inf, np.inf, FIELD.shape, np.float32)}
        )
        self.observation_spec = ObservationSpec({STATE: FIELD})
        self.action_spec = ActionSpec(ACTIONS, self.action_spec.control_hz)
        self._way = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode."""
        observation, info = super().reset(seed=seed, options=options)
        self._way = _distance(observation[STATE])
        return observation, info

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """See ``GymTask.step``; ``info`` also holds ``distance`` in m."""
        observation, reward, terminated, truncated, info = super().step(action)
        distance = _distance(observation[STATE])
        self._outcome.update(float(np.clip(1 - distance / max(self._way, CLOSE), 0, 1)), is_success=False)
        return observation, reward, terminated, truncated, {**info, **self._outcome.as_info(), "distance": distance}

    def _observe(self, observation: Any) -> dict[str, np.ndarray]:
        return {STATE: state_of(observation).astype(np.float32)}


def state_of(observation: Any) -> np.ndarray:
    """The 28 numbers of ``FIELD`` in what Fetch observes."""
    return np.concatenate([observation["observation"], observation["desired_goal"]])


def _distance(state: np.ndarray) -> float:
    return float(np.linalg.norm(state[BLOCK] - state[GOAL]))


class FetchExpert:
    """Opens the fingers above the block, lowers them around it, closes them and carries it to the goal.

    generator: unused; it is deterministic.
    """

    HEIGHT = 0.06  # m above the block, where the fingers clear it
    CLOSING = 3  # control steps

    def __init__(self, generator: np.random.Generator) -> None:
        self._closed = 0

    def reset(self, env: Any) -> None:
        """Begin an episode in Fetch's environment."""
        self._closed = 0

    def act(self, env: Any) -> np.ndarray:
        """The action (4,) in [-1, 1] for the environment's present state."""
        state = state_of(env._get_obs())
        gripper, block, goal = state[GRIPPER], state[BLOCK], state[GOAL]
        if self._closed or np.linalg.norm(block - gripper) < 0.012:
            self._closed += 1
            target = goal if self._closed > self.CLOSING else block
            return self._towards(target - (block if self._closed > self.CLOSING else gripper), opening=-1.0)
        is_above = np.linalg.norm((block - gripper)[:2]) < 0.012
        above = np.array([0, 0, 0 if is_above else self.HEIGHT])
        return self._towards(block + above - gripper, opening=1.0)

    @staticmethod
    def _towards(way: np.ndarray, *, opening: float) -> np.ndarray:
        """way: (3,) in m."""
        return np.append(np.clip(way * 10, -1, 1), opening).astype(np.float32)
