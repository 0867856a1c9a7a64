"""Environments that fail in one way or another, on small points on a line."""

from __future__ import annotations

import multiprocessing
import os
from typing import Any

import numpy as np

from flowchunk.datasets.errors import ConfigurationError
from tests.envs.custom_environments import Reach

FAILING = 3
"""Seeds that this divides fail."""


class Misbehaving(Reach):
    """A point on a line whose episodes with some seeds fail. fault: in which way. It counts how often it is made."""

    made = 0

    def __init__(self, fault: str = "step", *, every: int = FAILING, render_mode: str | None = None) -> None:
        super().__init__(render_mode=render_mode)
        self.fault, self.every, self.is_broken = fault, every, False
        type(self).made += 1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        assert not self.is_broken, "an environment that failed is not used again"
        self.fails = (seed or 0) % self.every == 0
        if self.fails and self.fault == "reset":
            self.is_broken = True
            raise RuntimeError("cannot be\nplaced")
        observation, info = super().reset(seed=seed, options=options)
        return self._spoiled(observation, at="nan reset"), info

    def step(self, action: np.ndarray) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        if self.fails and self.steps == 2:
            self.is_broken = True
            if self.fault == "step":
                raise ZeroDivisionError("the gripper vanished")
            if self.fault == "death":
                os._exit(7)
        return self._spoiled(observation, at="nan"), reward, terminated, truncated, info

    def _spoiled(self, observation: dict[str, np.ndarray], *, at: str) -> dict[str, np.ndarray]:
        if self.fails and self.fault == at:
            self.is_broken = True
            return {"state": np.full(1, np.nan, np.float32)}
        return observation


class OnlyHere(Reach):
    """It cannot be made in a process that another one started."""

    def __init__(self) -> None:
        super().__init__()
        if multiprocessing.parent_process() is not None:
            raise FileNotFoundError("scene.xml is missing")


class Refusing(Reach):
    """As ``OnlyHere``, with an error of ours."""

    def __init__(self) -> None:
        super().__init__()
        if multiprocessing.parent_process() is not None:
            raise ConfigurationError("only here")
