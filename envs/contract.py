"""What flowchunk requires of an environment, and clear errors if it is missing.

Every environment needs a Dict observation space, a Box action space, and in the ``info`` of each step ``score``, the best
score so far in [0, 1], and ``is_success``. To be compared with policies and data sets, it needs ``observation_spec`` and
``action_spec``; to be recorded on video, ``render_mode="rgb_array"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import gymnasium

from flowchunk.datasets.errors import SimulationError
from flowchunk.datasets.specs import ActionSpec, ObservationSpec


@runtime_checkable
class TaskEnv(Protocol):
    """An environment with a task: what training, evaluation and robots require of it. ``check_task_env`` tests yours.

    Observations are dictionaries of arrays as in ``observation_spec``, actions arrays (D,) as in ``action_spec``; the info of
    each step has ``score``, the best so far in [0, 1], and ``is_success``. Optional are ``chunk_to_pixels(chunk)``, which
    draws chunks into videos, ``hold_action() -> (D,)``, the action that keeps it where it is, and
    ``start_options(source, episode)``, for replays: the options of ``reset`` with which an episode of the ``EpisodeSource``
    starts again.
    """

    observation_spec: ObservationSpec
    action_spec: ActionSpec
    observation_space: Any
    action_space: Any

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]: ...

    def step(self, action: Any, /) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]: ...


PURPOSES = {
    "observation_spec": "an ObservationSpec of flowchunk.datasets.specs, which names every observation and its units",
    "action_spec": "an ActionSpec of flowchunk.datasets.specs, which names every action and its unit",
}
OUTCOME = ("score", "is_success")


def observation_spec_of(env: gymnasium.Env[Any, Any]) -> ObservationSpec:
    """The environment's observation spec. Raises SimulationError if it has none."""
    spec: ObservationSpec = required(env, "observation_spec")
    return spec


def action_spec_of(env: gymnasium.Env[Any, Any]) -> ActionSpec:
    """The environment's action spec. Raises SimulationError if it has none."""
    spec: ActionSpec = required(env, "action_spec")
    return spec


def specs_of(env: gymnasium.Env[Any, Any]) -> tuple[ObservationSpec, ActionSpec]:
    """What the environment observes and what its actions are. Raises SimulationError where it does not say."""
    return observation_spec_of(env), action_spec_of(env)


def required(env: gymnasium.Env[Any, Any], name: Literal["observation_spec", "action_spec"]) -> Any:
    """An attribute of the environment or of one that it wraps. Raises SimulationError if there is none."""
    if not env.has_wrapper_attr(name):
        raise SimulationError(f"expected the environment {env} to have {name}, got none; give it {PURPOSES[name]}")
    return env.get_wrapper_attr(name)


def landmarks_of(env: gymnasium.Env[Any, Any]) -> dict[str, tuple[float, ...]]:
    """Poses {NAME: (x, y, angle)} of what stands still in the environment's plane, such as its goal; it may have none."""
    if not env.has_wrapper_attr("landmarks"):
        return {}
    return {name: tuple(map(float, pose)) for name, pose in env.get_wrapper_attr("landmarks").items()}


def recorded_fields_of(env: gymnasium.Env[Any, Any]) -> ObservationSpec:
    """What recordings of it may hold besides what it observes, its attribute ``recorded_spec``; often nothing.

    Raises SimulationError if it is something else.
    """
    spec = env.get_wrapper_attr("recorded_spec") if env.has_wrapper_attr("recorded_spec") else ObservationSpec({})
    if not isinstance(spec, ObservationSpec):
        raise SimulationError(f"expected recorded_spec of the environment {env} to be an ObservationSpec, got {spec!r}")
    return spec


def require_time_limit(env: gymnasium.Env[Any, Any]) -> None:
    """Raise SimulationError if a registered environment has no time limit: a policy that does not succeed never ends."""
    if env.spec is not None and env.spec.max_episode_steps is None:
        raise SimulationError(
            f"{env.spec.id} has no time limit, so an episode without success never ends; give env.max_episode_steps=N, or "
            "register it with max_episode_steps=N"
        )


def with_outcome(info: Mapping[str, Any]) -> dict[str, Any]:
    """The info of a step with ``score`` as a float and ``is_success`` as a bool, whatever their numeric types were.

    Vector environments collect each key in an array whose dtype is that of the first value: after an int, 0.7 becomes 0.
    Missing keys are not added. Raises SimulationError if the score is not a number.
    """
    outcome = dict(info)
    try:
        if "score" in outcome:
            outcome["score"] = float(outcome["score"])
        if "is_success" in outcome:
            outcome["is_success"] = bool(outcome["is_success"])
    except (TypeError, ValueError) as error:
        raise SimulationError(
            f"expected info['score'] to be a number and info['is_success'] true or false, got "
            f"{ {key: info[key] for key in OUTCOME if key in info} }; correct the environment's step"
        ) from error
    return outcome


def require_outcome(info: Mapping[str, Any]) -> None:
    """Raise SimulationError with the missing keys unless the info of an episode's last step holds its outcome."""
    if missing := [key for key in OUTCOME if key not in info]:
        raise SimulationError(
            f"expected {' and '.join(map(repr, OUTCOME))} in the info of each step, got {sorted(info)} without "
            f"{' and '.join(map(repr, missing))}; let the environment's step report them (score: the best so far, in [0, 1])"
        )
