"""Environments as users define them: complete, or with something missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from flowchunk.policy.execution.executor import ChunkExecution

HORIZON = 2


class Reach(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """A point on a line, in episodes of two steps. outcomes: the info of each step, chosen by the episode's seed."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - Gymnasium's declaration
    observation_spec = ObservationSpec({"state": ObservationField((1,), ("x",), ("m",))})
    action_spec = ActionSpec((ActionDimension("x", "m", "world", low=-1.0, high=1.0),), control_hz=10)

    def __init__(
        self,
        outcomes: Sequence[Mapping[str, Any]] = ({"score": 1.0, "is_success": True},),
        render_mode: str | None = None,
    ) -> None:
        self.observation_space: Any = Dict({"state": Box(-9.0, 9.0, (1,), np.float32)})
        self.action_space = Box(-1.0, 1.0, (1,), np.float32)
        self.outcomes, self.render_mode = outcomes, render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self.options, self.x, self.steps = options, np.zeros(1, np.float32), 0
        self.outcome = self.outcomes[(seed or 0) % len(self.outcomes)]
        return {"state": self.x}, {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self.x, self.steps = self.x + action, self.steps + 1
        return {"state": self.x}, 0.0, self.steps == HORIZON, False, dict(self.outcome)

    def render(self) -> Any:
        return np.zeros((64, 64, 3), np.uint8)


class Still:
    """A policy that does not move."""

    observation_spec, action_spec = Reach.observation_spec, Reach.action_spec
    execution = ChunkExecution(observation_steps=1, horizon=HORIZON, n_action_steps=HORIZON)

    def predict_chunk(
        self,
        observation: Mapping[str, np.ndarray],
        *,
        nfe: int | None = None,
        seed: int | Sequence[int] | None = None,
        prefix: np.ndarray | None = None,
        tail: np.ndarray | None = None,
    ) -> np.ndarray:
        return np.zeros((len(next(iter(observation.values()))), HORIZON, 1), np.float32)
