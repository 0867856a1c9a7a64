"""Record the episodes of any environment with specifications, whoever acts in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np

from flowchunk.datasets.recorder import StoreWriter


class RecordEpisodes(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Adds each episode to a data set when it ends, or when the next one begins.

    writer: of the environment's specifications (``specs_of(env)``), inside its ``with`` block. keep: whether an episode is
    kept, from the info of its last step, for example ``lambda info: info["is_success"]``; by default all are. task: what the
    robot is to do, stored with each episode. Steps after an episode's end are not recorded; episodes without an action leave
    no trace.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        writer: StoreWriter,
        *,
        keep: Callable[[Mapping[str, Any]], bool] = lambda info: True,
        task: str | None = None,
    ) -> None:
        super().__init__(env)
        self.writer, self.keep, self.task = writer, keep, task
        self._observations: list[Mapping[str, np.ndarray]] = []
        self._actions: list[np.ndarray] = []
        self._info: Mapping[str, Any] = {}
        self._is_over = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode, after the one before is added."""
        self._add()
        observation, info = self.env.reset(seed=seed, options=options)
        self._latest, self._is_over = observation, False
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """A step, which is recorded: action k follows observation k."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self._is_over:
            return observation, reward, terminated, truncated, info
        self._observations.append({key: np.array(value) for key, value in self._latest.items()})
        self._actions.append(np.array(action))
        self._latest, self._info, self._is_over = observation, info, bool(terminated or truncated)
        if self._is_over:
            self._add()
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        """Add the last episode, and close the environment."""
        self._add()
        super().close()

    def _add(self) -> None:
        observations, actions = self._observations, self._actions
        self._observations, self._actions = [], []
        if actions and self.keep(self._info):
            stacked = {key: np.stack([one[key] for one in observations]) for key in observations[0]}
            self.writer.add_episode(stacked, np.stack(actions), task=self.task)
