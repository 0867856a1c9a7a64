"""The original Push-T (pymunk, ``gym_pusht``) under the interface of its twin, to check one against the other.

Needs the extra: ``pip install 'flowchunk[pusht-original]'``.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from flowchunk.datasets.errors import ConfigurationError, SimulationError
from flowchunk.envs.tasks.pusht import (
    ACTION_SPEC,
    IMAGE_SIZE,
    OBSERVATION_SPECS,
    PLANE_SIZE,
    SUCCESS_COVERAGE,
    finite_numbers,
    observation_box,
)


class PushTOriginal(gym.Env[dict[str, np.ndarray], np.ndarray]):
    """``gym_pusht``'s environment with the twin's observations "state" and "image", action (2,) px, and info.

    Raises SimulationError where the extra is not installed, ConfigurationError for another observation.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 -- Gymnasium's way

    def __init__(self, *, observation: str = "state", render_mode: str | None = None, render_size: int = 512) -> None:
        if observation not in ("state", "image"):
            raise ConfigurationError(
                f"observation: expected one of ['state', 'image'], got {observation!r}; choose one of these"
            )
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
        spaces = {key: observation_box(field) for key, field in self.observation_spec.fields.items()}
        self.observation_space = gym.spaces.Dict(spaces)  # type: ignore[assignment]  # typed by its spaces
        self.action_space = gym.spaces.Box(0.0, PLANE_SIZE, (2,), np.float32)
        self._score, self._has_succeeded = 0.0, False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode where ``gym_pusht`` starts it for this seed."""
        super().reset(seed=seed)
        seen, _ = self._env.reset(seed=seed, options=options)
        self._score, self._has_succeeded = 0.0, False
        return self._observation(seen), self._judge(self._env._get_coverage())

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """As the twin's step: reward = coverage / 0.95 clipped to [0, 1], terminated above 0.95."""
        target = finite_numbers(action, ("target_x", "target_y"), "action", SimulationError).clip(0.0, PLANE_SIZE)
        seen, reward, terminated, truncated, info = self._env.step(target)
        return (
            self._observation(seen),
            float(reward),
            bool(terminated),
            truncated,
            self._judge(info["coverage"]),
        )

    def render(self) -> np.ndarray | None:
        """The original's image, uint8 (render_size, render_size, 3)."""
        return np.asarray(self._env.render()) if self.render_mode == "rgb_array" else None

    def chunk_to_pixels(self, chunk: np.ndarray) -> np.ndarray:
        """A chunk (H, 2) in px of the plane as coordinates (H, 2) of the image."""
        return np.asarray(chunk * self.render_size / PLANE_SIZE)

    def _observation(self, seen: Any) -> dict[str, np.ndarray]:
        if "state" in self.observation_spec.fields:
            return {"state": seen.astype(np.float32)}
        return {"image": seen["pixels"], "agent_position": seen["agent_pos"].astype(np.float32)}

    def _judge(self, coverage: float) -> dict[str, Any]:
        self._score = max(self._score, min(coverage / SUCCESS_COVERAGE, 1.0))
        self._has_succeeded |= coverage > SUCCESS_COVERAGE
        return {"coverage": float(coverage), "is_success": self._has_succeeded, "score": float(self._score)}
