"""Make environments from options."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator

import flowchunk.envs  # noqa: F401 -- registers the ids
from flowchunk.datasets.errors import ConfigurationError
from flowchunk.envs.gym_task import as_task

MakeEnv = Callable[..., gymnasium.Env[Any, Any]]
OURS = "flowchunk/"
ADAPTED = ("control_hz", "success_key")  # options of ``GymTask``
TIME_LIMIT = "max_episode_steps"  # an option of ``gymnasium.make``


def environment_maker(env_id: str, options: Mapping[str, Any]) -> MakeEnv:
    """A picklable function that makes the environment; it takes further options, such as ``render_mode``.

    env_id: as ``gymnasium.make`` takes it, so ``module:id`` imports the module that registers the id. Environments that know
    nothing of flowchunk become a ``GymTask``, whose options may be among these; so may ``max_episode_steps``. Raises
    ConfigurationError for an unknown id, or an option that the environment does not take.
    """
    accepted = accepted_options(env_id)
    adapted = {} if env_id.startswith(OURS) else {name: options[name] for name in ADAPTED if name in options}
    if accepted is not None:
        adapted = {name: value for name, value in adapted.items() if name not in accepted}
    options = {name: value for name, value in options.items() if name not in adapted}
    if accepted is not None and (unknown := options.keys() - {*accepted, TIME_LIMIT}):
        raise ConfigurationError(
            f"{env_id} takes no env.{' or env.'.join(sorted(unknown))}; it takes "
            f"{', '.join(f'env.{name}' for name in (*accepted, *_of_any(env_id)))}"
        )
    if env_id.startswith(OURS):
        return partial(gymnasium.make, f"flowchunk.envs:{env_id}", **options)
    return partial(_make_task, env_id, adapted, **options)


def _make_task(env_id: str, adapted: Mapping[str, Any], **options: Any) -> gymnasium.Env[Any, Any]:
    return as_task(gymnasium.make(env_id, **options), **adapted)


def accepted_options(env_id: str) -> list[str] | None:
    """Names of the options that an environment's constructor takes, None for any. Raises ConfigurationError."""
    parameters = inspect.signature(_constructor(env_id)).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return None
    named = [parameter.name for parameter in parameters if parameter.kind is not inspect.Parameter.VAR_POSITIONAL]
    return [name for name in named if name not in ("self", "render_mode")]


def inherited_options(env_id: str, trained: Mapping[str, Any]) -> dict[str, Any]:
    """Of the options that a policy was trained with, those that another environment takes and does not set itself."""
    accepted, spec = accepted_options(env_id), _spec(env_id)
    set_by_itself = {*spec.kwargs, *([] if spec.max_episode_steps is None else [TIME_LIMIT])}
    return {
        name: value
        for name, value in trained.items()
        if name not in set_by_itself and (accepted is None or name in (*accepted, *_of_any(env_id)))
    }


def _of_any(env_id: str) -> tuple[str, ...]:
    """Options that are not the environment's own."""
    return (TIME_LIMIT,) if env_id.startswith(OURS) else (*ADAPTED, TIME_LIMIT)


def _spec(env_id: str) -> EnvSpec:
    module = env_id.rpartition(":")[0]
    try:
        if module:
            importlib.import_module(module)
        return gymnasium.spec(env_id.rpartition(":")[2])
    except ImportError as error:
        raise ConfigurationError(
            f"{env_id}: {error}; the module before the colon has to be installed, or its folder in the variable PYTHONPATH"
        ) from error
    except gymnasium.error.Error as error:
        raise ConfigurationError(
            f"unknown environment {env_id!r}: {error}; give env_id=MODULE:ID with the module that registers it"
        ) from error


def _constructor(env_id: str) -> Callable[..., Any]:
    entry_point = _spec(env_id).entry_point
    try:
        return load_env_creator(entry_point) if isinstance(entry_point, str) else _called(entry_point, env_id)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"{env_id} is registered as {entry_point}, which cannot be imported: {error}"
        ) from error


def _called(entry_point: object, env_id: str) -> Callable[..., Any]:
    if not callable(entry_point):
        raise ConfigurationError(
            f"{env_id} cannot be made one at a time: it is registered for vectors of environments only"
        )
    return entry_point
