"""The original Push-T (pymunk, ``gym_pusht``) with the interface of its MuJoCo twin, to compare the two.

Needs the extra: ``pip install 'flowchunk[pusht-original]'``.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from flowchunk.datasets.errors import SimulationError
from flowchunk.envs.arguments import require_one_of
from flowchunk.envs.episode_outcome import EpisodeOutcome
from flowchunk.envs.spaces import action_space, checked_action
from flowchunk.envs.tasks.pusht import (
    ACTION_SPEC,
    GOAL_POSE,
    IMAGE_SIZE,
    OBSERVATION_SPECS,
    PLANE_SIZE,
    RECORDED_SPEC,
    SUCCESS_COVERAGE,
    pusht_observation_space,
)


class PushTOriginal(gym.Env[dict[str, Any], np.ndarray]):
    """``gym_pusht``'s environment with the twin's observations "state" and "image", action (2,) px, and info.

    Raises SimulationError if the extra is not installed, ConfigurationError for an unknown observation.
    """

    observation_space: gym.spaces.Dict
    action_space: gym.spaces.Box
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 -- Gymnasium's declaration

    def __init__(self, *, observation: str = "state", render_mode: str | None = None, render_size: int = 512) -> None:
        require_one_of("observation", observation, ("state", "image"))
        try:
            from gym_pusht.envs.pusht import PushTEnv
        except ImportError as error:
            raise SimulationError(
                f"the original Push-T is not installed ({error}): pip install 'flowchunk[pusht-original]'"
            ) from error
        self._env = PushTEnv(
            obs_type="state" if observation == "state" else "pixels_agent_pos",
            observation_width=IMAGE_SIZE,
            observation_height=IMAGE_SIZE,
            visualization_width=render_size,
            visualization_height=render_size,
        )
        self.render_mode, self.render_size = render_mode, render_size
        self.observation_spec, self.action_spec = OBSERVATION_SPECS[observation], ACTION_SPEC
        self.recorded_spec = RECORDED_SPEC
        self.observation_space = pusht_observation_space(self.observation_spec)
        self.action_space = action_space(self.action_spec)
        self.landmarks = {"goal": GOAL_POSE}
        self._outcome = EpisodeOutcome()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode as ``gym_pusht`` does for this seed."""
        super().reset(seed=seed)
        original, _ = self._env.reset(seed=seed, options=options)
        self._outcome = EpisodeOutcome()
        return self._observation(original), self._update_score(self._env._get_coverage())

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Like the twin's ``step``: reward = coverage / 0.95 clipped to [0, 1], terminated above 0.95."""
        target = checked_action(action, self.action_spec, self.action_space)
        original, reward, terminated, truncated, info = self._env.step(target)
        return (
            self._observation(original),
            float(reward),
            bool(terminated),
            truncated,
            self._update_score(info["coverage"]),
        )

    def hold_action(self) -> np.ndarray:
        """The action (2,) that keeps the agent where it is, px."""
        return np.array(self._env.agent.position).clip(0.0, PLANE_SIZE)

    def render(self) -> np.ndarray | None:
        """The original's image, uint8 (render_size, render_size, 3), in mode "rgb_array"; None otherwise."""
        return np.asarray(self._env.render()) if self.render_mode == "rgb_array" else None

    def chunk_to_pixels(self, chunk: np.ndarray) -> np.ndarray:
        """Convert a chunk of actions (H, 2), px of the plane, to pixel coordinates (H, 2) in the rendered image."""
        return np.asarray(chunk * self.render_size / PLANE_SIZE)

    def _observation(self, original: Any) -> dict[str, np.ndarray]:
        if "state" in self.observation_spec.fields:
            return {"state": original.astype(np.float32)}
        return {"image": original["pixels"], "agent_position": original["agent_pos"].astype(np.float32)}

    def _update_score(self, coverage: float) -> dict[str, Any]:
        self._outcome.update(min(coverage / SUCCESS_COVERAGE, 1.0), is_success=coverage > SUCCESS_COVERAGE)
        return {"coverage": float(coverage), **self._outcome.as_info()}
