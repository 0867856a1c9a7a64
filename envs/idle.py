"""Slots of a vector environment that have no episode left."""

from __future__ import annotations

from typing import Any

import gymnasium

from flowchunk.datasets.errors import SimulationError


class IdleAfterEpisodes(gymnasium.Wrapper[Any, Any, Any, Any]):
    """After ``reset(options={"idle": True})`` actions have no effect until the next reset, and cost nothing.

    A vector environment steps all of its slots, whether or not they have an episode to run.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self._is_idle = False
        self._observation: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; or idle, with ``options={"idle": True}``. Raises SimulationError for idling before the first."""
        options = dict(options or {})
        self._is_idle = bool(options.pop("idle", False))
        if self._is_idle:
            if self._observation is None:
                raise SimulationError("an environment can only idle after its first episode; reset it without idle")
            return self._observation, {}
        self._observation, info = self.env.reset(seed=seed, options=options or None)
        return self._observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """A step of the environment, or none."""
        if self._is_idle:
            return self._observation, 0.0, False, False, {}
        self._observation, reward, terminated, truncated, info = self.env.step(action)
        return self._observation, reward, terminated, truncated, info
