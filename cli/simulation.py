"""Make environments from options, and run policies in them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium

import flowchunk.envs  # noqa: F401 -- registers the ids
from flowchunk.datasets.errors import ConfigurationError
from flowchunk.envs.rollout import ChunkExecution
from flowchunk.policy.chunk_policy import PolicyConfig

MakeEnv = Callable[..., gymnasium.Env[Any, Any]]


def environment_maker(env_id: str, options: Mapping[str, Any]) -> MakeEnv:
    """A picklable function that makes the environment; it takes further options, such as ``render_mode``.

    Raises ConfigurationError for an unknown id, or an option that the environment does not take.
    """
    try:
        entry_point = gymnasium.spec(env_id).entry_point
    except gymnasium.error.Error as error:
        raise ConfigurationError(f"unknown environment {env_id!r}: {error}") from error
    constructor = (
        gymnasium.envs.registration.load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    )
    assert callable(constructor)
    accepted = [name for name in inspect.signature(constructor).parameters if name not in ("self", "render_mode")]
    if unknown := options.keys() - set(accepted):
        raise ConfigurationError(
            f"{env_id} takes no env.{' or env.'.join(sorted(unknown))}; it takes {', '.join(f'env.{n}' for n in accepted)}"
        )
    return partial(gymnasium.make, f"flowchunk.envs:{env_id}", **options)


def execution_of(config: PolicyConfig, *, n_action_steps: int | None = None) -> ChunkExecution:
    """How a policy's chunks are executed. Raises ConfigurationError where more actions are asked for than predicted."""
    steps = config.n_action_steps if n_action_steps is None else n_action_steps
    if not 1 <= steps <= config.horizon:
        raise ConfigurationError(f"n_action_steps={steps} must be from 1 to the policy's horizon, {config.horizon}")
    return ChunkExecution(config.observation_steps, config.horizon, steps)
