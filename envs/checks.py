"""Whether an environment of your own can be trained in, evaluated in and driven as a robot."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict
from gymnasium.utils.env_checker import check_env

from flowchunk.datasets.errors import SimulationError
from flowchunk.datasets.specs import ActionSpec, ObservationSpec
from flowchunk.envs.contract import (
    OUTCOME,
    TaskEnv,
    observation_spec_of,
    recorded_fields_of,
    require_outcome,
    require_time_limit,
    specs_of,
    with_outcome,
)

STEPS = 20


def check_task_env(make_env: Callable[[], gymnasium.Env[Any, Any]]) -> None:
    """Raise SimulationError with what is wrong unless environments keep the contract of ``TaskEnv``.

    make_env: makes a fresh environment each time. Checked are the time limit, and with random actions specifications against
    spaces and observations, ``score`` and ``is_success``, the same bits for the same seed whatever was done before, actions
    that are not finite, ``hold_action`` if there is one, and what Gymnasium itself checks.
    """
    env = make_env()
    try:
        require_time_limit(env)
        observation_spec, action_spec = specs_of(env)
        recorded_fields_of(env)
        _check_spaces(env, observation_spec, action_spec)
        _check_gymnasium(env)
        check_isolation(make_env)
        _check_bad_action(env, action_spec)
        _check_holding(env, action_spec)
    finally:
        env.close()


def check_isolation(make_env: Callable[[], gymnasium.Env[Any, Any]], *, before: int = 1, steps: int = STEPS) -> None:
    """Raise SimulationError unless an episode after others is that of its seed alone, bit for bit, in a new environment.

    make_env: makes a fresh environment each time. before: the number of other episodes. steps: of random actions in each.
    Observations, score and success are compared, and checked as in ``check_task_env``.
    """
    alone, used = make_env(), make_env()
    try:
        spec = observation_spec_of(alone)
        actions = _random_actions(alone, steps)
        first = _episode(alone, spec, actions, seed=0)
        for seed in range(1, before + 1):
            _episode(used, spec, actions[::-1], seed=seed)
        again = _episode(used, spec, actions, seed=0)
    finally:
        alone.close()
        used.close()
    for step, (one, other) in enumerate(zip(first, again, strict=False)):
        if different := [key for key in one if not np.array_equal(one[key], other[key])]:
            raise SimulationError(
                f"the same seed and actions gave another observation {different} at step {step} after another episode: "
                "let reset bring back all state, and draw all random numbers from self.np_random"
            )
    if len(first) != len(again):
        raise SimulationError(
            f"the same seed and actions gave an episode of {len(again) - 1} steps instead of {len(first) - 1} after another "
            "episode: let reset bring back all state"
        )


def _check_spaces(env: gymnasium.Env[Any, Any], observation_spec: ObservationSpec, action_spec: ActionSpec) -> None:
    observations, actions = env.observation_space, env.action_space
    if not isinstance(observations, Dict) or not isinstance(actions, Box):
        raise SimulationError(
            f"expected a Dict observation space and a Box action space, got {observations} and {actions}; wrap the "
            "environment"
        )
    wanted = {key: field.shape for key, field in observation_spec.fields.items()}
    if (got := {key: space.shape for key, space in observations.items()}) != wanted:
        raise SimulationError(f"observation_spec has the keys and shapes {wanted}, but the observation space {got}")
    for key in observation_spec.images:
        if observations[key].dtype != np.uint8:
            raise SimulationError(f"{key!r} is an image and must be uint8, but its space is {observations[key].dtype}")
    if actions.shape != (action_spec.size,):
        raise SimulationError(f"action_spec has {action_spec.size} dimensions, but the action space {actions.shape}")
    for index, dimension in enumerate(action_spec.dimensions):
        low = -np.inf if dimension.low is None else dimension.low
        high = np.inf if dimension.high is None else dimension.high
        if not np.allclose([actions.low[index], actions.high[index]], [low, high], rtol=1e-6):
            raise SimulationError(
                f"action {dimension.name!r}: the spec has bounds {dimension.low} to {dimension.high}, but the space "
                f"{actions.low[index]} to {actions.high[index]}"
            )


def _check_gymnasium(env: gymnasium.Env[Any, Any]) -> None:
    if not isinstance(env.unwrapped, TaskEnv):  # environments of others, of which a wrapper makes a task
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice for learning from rewards, such as symmetric action spaces
        try:
            check_env(env.unwrapped, skip_render_check=True)
        except Exception as error:  # it raises assertions and errors of all kinds
            raise SimulationError(f"Gymnasium's own check failed: {error}") from error


def _random_actions(env: gymnasium.Env[Any, Any], steps: int) -> list[np.ndarray]:
    env.action_space.seed(0)
    return [env.action_space.sample() for _ in range(steps)]


def _episode(
    env: gymnasium.Env[Any, Any], spec: ObservationSpec, actions: list[np.ndarray], *, seed: int
) -> list[dict[str, np.ndarray]]:
    """The observations of an episode with the outcomes beside them, all of them checked."""
    observation, _ = env.reset(seed=seed)
    observations, score = [_checked(observation, spec)], 0.0
    for action in actions:
        observation, _, terminated, truncated, info = env.step(action)
        observations.append(_checked(observation, spec))
        require_outcome(info)
        outcome = with_outcome(info)
        if not score <= outcome["score"] <= 1:
            raise SimulationError(
                f"expected the best score so far, from {score:g} to 1, got {outcome['score']:g}; let the score never fall "
                "within an episode"
            )
        score = outcome["score"]
        observations[-1] |= {key: np.array(outcome[key]) for key in OUTCOME}
        if terminated or truncated:
            break
    return observations


def _checked(observation: Mapping[str, np.ndarray], spec: ObservationSpec) -> dict[str, np.ndarray]:
    """A copy of an observation that matches its spec. Raises SimulationError."""
    for key, field in spec.fields.items():
        value = np.asarray(observation.get(key))
        if value.shape != field.shape:
            raise SimulationError(f"the observation {key!r} must have the shape {field.shape}, but has {value.shape}")
        if not field.is_image and not np.isfinite(value).all():
            raise SimulationError(f"the observation {key!r} has values that are not finite (NaN or infinite)")
    return {key: np.array(observation[key]) for key in spec.fields}


def _check_bad_action(env: gymnasium.Env[Any, Any], spec: ActionSpec) -> None:
    env.reset(seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            env.step(np.full(spec.size, np.nan, np.float32))
        except Exception:  # whatever it raises, it does not move
            return
    raise SimulationError(
        "an action of NaN was executed; check actions in step, for example with flowchunk.envs.spaces.checked_action"
    )


def _check_holding(env: gymnasium.Env[Any, Any], spec: ActionSpec) -> None:
    if not env.has_wrapper_attr("hold_action"):
        return
    env.reset(seed=0)
    held = np.asarray(env.get_wrapper_attr("hold_action")())
    if held.shape != (spec.size,) or not np.isfinite(held).all():
        raise SimulationError(f"hold_action must return {spec.size} finite numbers, got {held!r}")
