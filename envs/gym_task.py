"""Any Gymnasium environment with Box actions as a task: dictionary observations, specifications, score and success."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Space

from flowchunk.datasets.errors import ConfigurationError, SimulationError
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from flowchunk.envs.episode_outcome import EpisodeOutcome

STATE = "state"
SUCCESS_KEYS = ("is_success", "success")
UNKNOWN, NORMALIZED = "unknown", "normalized"


class GymTask(gymnasium.Wrapper[dict[str, np.ndarray], np.ndarray, Any, Any]):
    """An environment of others, as flowchunk's commands need it; see ``contract.TaskEnv``.

    A Box observation becomes ``state``; dictionaries keep their keys, nested ones joined by "_", and everything but images
    (uint8, (height, width, 3)) is float32. Numbers are named by their key and index, because nothing else is known of them.
    Success is ``info["is_success"]`` or ``info["success"]``, now or earlier in the episode; the score is ``info["score"]``,
    or 1 with success and 0 without. An episode that ends without any of these warns that it counts as failed.

    control_hz: the rate of actions; by default the environment's own, if it says so. success_key: another entry of the info.
    Raises ConfigurationError for other spaces, and if the rate is unknown.
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], *, control_hz: float | None = None, success_key: str | None = None
    ) -> None:
        super().__init__(env)
        space = env.action_space
        if not isinstance(space, Box) or len(space.shape) != 1 or not np.issubdtype(space.dtype, np.floating):
            raise ConfigurationError(
                f"{_name(env)} has the actions {space}, but policies need a Box of floating-point numbers of shape (D,); "
                "wrap it with gymnasium.ActionWrapper"
            )
        self._keys = _flat_keys(env)
        self.observation_spec = ObservationSpec({key: _field(key, box) for key, (_, box) in self._keys.items()})
        self.action_spec = ActionSpec(_dimensions(space), control_hz or _own_rate(env))
        self.observation_space: Any = Dict({key: _as_float32(box) for key, (_, box) in self._keys.items()})
        self.action_space = Box(space.low.astype(np.float32), space.high.astype(np.float32))
        self._success_keys = SUCCESS_KEYS if success_key is None else (success_key,)
        self._outcome, self._is_judged = EpisodeOutcome(), False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._outcome, self._is_judged = EpisodeOutcome(), False
        return self._observe(observation), {**info, **self._outcome.as_info()}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """A step with an action (D,), clipped to its bounds. Raises SimulationError if it is not D finite numbers."""
        numbers = np.asarray(action, dtype=np.float64)
        if numbers.shape != (self.action_spec.size,) or not np.isfinite(numbers).all():
            raise SimulationError(
                f"action: expected {self.action_spec.size} finite numbers ({', '.join(self.action_spec.names)}), got "
                f"{action!r}"
            )
        inner: Any = self.env.action_space
        clipped = np.clip(numbers, inner.low, inner.high).astype(inner.dtype)
        observation, reward, terminated, truncated, info = self.env.step(clipped)
        is_success = any(bool(info.get(key, False)) for key in self._success_keys)
        self._outcome.update(float(info.get("score", is_success)), is_success=is_success)
        self._is_judged |= any(key in info for key in (*self._success_keys, "score"))
        if (terminated or truncated) and not self._is_judged:
            self._warn_of_no_outcome(info)
        info = {**info, **self._outcome.as_info()}
        return self._observe(observation), float(reward), bool(terminated or is_success), bool(truncated), info

    def _warn_of_no_outcome(self, info: Mapping[str, Any]) -> None:
        expected = " or ".join(f"info[{key!r}]" for key in (*self._success_keys, "score"))
        warnings.warn(
            f"{_name(self.env)} ended an episode without {expected}, so that it counts as failed with the score 0; its info "
            f"has {sorted(info) or 'nothing'}: report one of these, or give env.success_key=KEY",
            stacklevel=3,
        )

    def _observe(self, observation: Any) -> dict[str, np.ndarray]:
        return {
            key: np.array(_entry(observation, path), dtype=box.dtype if _is_image(box) else np.float32)
            for key, (path, box) in self._keys.items()
        }


def as_task(env: gymnasium.Env[Any, Any], **options: Any) -> gymnasium.Env[Any, Any]:
    """The environment itself if it is a task, or else as a ``GymTask`` with these options."""
    return env if env.has_wrapper_attr("observation_spec") else GymTask(env, **options)


def _flat_keys(env: gymnasium.Env[Any, Any]) -> dict[str, tuple[tuple[str, ...], Box]]:
    """For each key of the observation the path to it, and its space. Raises ConfigurationError for spaces that are no Box."""
    found: dict[str, tuple[tuple[str, ...], Box]] = {}

    def add(path: tuple[str, ...], space: Space[Any]) -> None:
        if isinstance(space, Dict):
            for key, part in space.items():
                add((*path, key), part)
        elif isinstance(space, Box) and space.shape:
            found["_".join(path) or STATE] = (path, space)
        else:
            raise ConfigurationError(
                f"{_name(env)} observes {'.'.join(path) or 'a value'} in {space}, but policies need Boxes, or dictionaries "
                "of them; wrap it with gymnasium.ObservationWrapper"
            )

    add((), env.observation_space)
    return found


def _field(key: str, box: Box) -> ObservationField:
    if _is_image(box):
        return ObservationField(box.shape, camera=key)
    size = int(np.prod(box.shape))
    return ObservationField(box.shape, tuple(f"{key}_{index}" for index in range(size)), (UNKNOWN,) * size)


def _dimensions(space: Box) -> tuple[ActionDimension, ...]:
    bounds = zip(space.low.tolist(), space.high.tolist(), strict=True)
    return tuple(
        ActionDimension(
            f"action_{index}",
            NORMALIZED if (low, high) == (-1, 1) else UNKNOWN,
            UNKNOWN,
            low=low if np.isfinite(low) else None,
            high=high if np.isfinite(high) else None,
        )
        for index, (low, high) in enumerate(bounds)
    )


def _own_rate(env: gymnasium.Env[Any, Any]) -> float:
    """Steps per second, as the environment says. Raises ConfigurationError if it does not."""
    dt = getattr(env.unwrapped, "dt", None)
    fps = env.metadata.get("render_fps")
    rate = 1 / dt if isinstance(dt, float) and dt > 0 else fps
    if rate is None:
        raise ConfigurationError(f"{_name(env)} does not say at which rate it is controlled; give env.control_hz=HZ")
    return float(rate)


def _is_image(box: Box) -> bool:
    return box.dtype == np.uint8 and len(box.shape) == 3 and box.shape[2] == 3


def _as_float32(box: Box) -> Box:
    return box if _is_image(box) else Box(box.low.astype(np.float32), box.high.astype(np.float32))


def _entry(observation: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        observation = observation[key] if isinstance(observation, Mapping) else None
    return observation


def _name(env: gymnasium.Env[Any, Any]) -> str:
    return env.spec.id if env.spec is not None else str(env)
