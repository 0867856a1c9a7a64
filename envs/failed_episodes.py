"""Environments that fail in the middle of an evaluation: their episode counts as failed, and the others go on."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from flowchunk.datasets.errors import FlowchunkError, SimulationError

ERROR = "error"
"""The entry of the last step's info that says why an episode failed."""


class ErrorsAsFailures(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Ends the episode when the environment raises, or observes what is not finite, and makes it anew for the next one.

    The info of such an episode's last step holds ``error``, a score of 0 and no success, whatever was reached before. If
    ``reset`` fails, the episode ends with its first step, after an observation of zeros.

    make_env: makes the environment; what it raises at first is not caught. keys: of the observations that have to be finite.
    """

    def __init__(self, make_env: Callable[[], gymnasium.Env[Any, Any]], *, keys: Collection[str]) -> None:
        super().__init__(make_env())
        self._make_env, self._keys = make_env, keys
        self._error: str | None = None
        self._observation: dict[str, Any] = {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode, in a new environment if the last one failed."""
        try:
            if self._error is not None:
                with suppress(Exception):  # it is broken already
                    self.env.close()
                self.env = self._make_env()
                self._error = None
            observation, info = self.env.reset(seed=seed, options=options)
            self._require_finite(observation)
        except Exception as error:
            space: Any = self.observation_space
            self._error = described(error)
            self._observation = {key: np.zeros(box.shape, box.dtype) for key, box in space.items()}
            return self._observation, {}
        self._observation = observation
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """A step, which ends the episode if it fails."""
        if self._error is None:
            try:
                observation, reward, terminated, truncated, info = self.env.step(action)
                self._require_finite(observation)
            except Exception as error:
                self._error = described(error)
            else:
                self._observation = observation
                return observation, reward, terminated, truncated, info
        return self._observation, 0.0, True, False, {"score": 0.0, "is_success": False, ERROR: self._error}

    def _require_finite(self, observation: Mapping[str, Any]) -> None:
        for key in self._keys & observation.keys():
            value = np.asarray(observation[key])
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise SimulationError(f"the observation {key!r} has values that are not finite (NaN or infinite)")


def described(error: Exception) -> str:
    """An error in one line: our own as they are; others with their type and the line that raised them."""
    if isinstance(error, FlowchunkError):
        return str(error)
    raised = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(raised[-1].filename).name}, line {raised[-1].lineno})" if raised else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
