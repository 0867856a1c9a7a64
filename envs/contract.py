"""What an environment has to bring, and errors that say so where one does not.

Every environment: a Dict observation space, a Box action space, and in the ``info`` of each step ``score``, a number,
the best so far in [0, 1], and ``is_success``. To compare it with policies and data sets: ``observation_spec`` and
``action_spec``. To film it: ``render_mode="rgb_array"`` and ``chunk_to_pixels``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import gymnasium

from flowchunk.datasets.errors import SimulationError
from flowchunk.datasets.specs import ActionSpec, ObservationSpec

PURPOSES = {
    "observation_spec": "an ObservationSpec of flowchunk.datasets.specs, which names every observation and its units",
    "action_spec": "an ActionSpec of flowchunk.datasets.specs, which names every action and its unit",
    "chunk_to_pixels": "a method that takes a chunk (H, D) to coordinates (H, 2) in the rendered picture, for videos",
}
OUTCOME = ("score", "is_success")


def observation_spec_of(env: gymnasium.Env[Any, Any]) -> ObservationSpec:
    """What the environment observes. Raises SimulationError where it does not say."""
    spec: ObservationSpec = required(env, "observation_spec")
    return spec


def action_spec_of(env: gymnasium.Env[Any, Any]) -> ActionSpec:
    """What the environment's actions are. Raises SimulationError where it does not say."""
    spec: ActionSpec = required(env, "action_spec")
    return spec


def specs_of(env: gymnasium.Env[Any, Any]) -> tuple[ObservationSpec, ActionSpec]:
    """What the environment observes and what its actions are. Raises SimulationError where it does not say."""
    return observation_spec_of(env), action_spec_of(env)


def required(env: gymnasium.Env[Any, Any], name: Literal["observation_spec", "action_spec", "chunk_to_pixels"]) -> Any:
    """An attribute of the environment or of one that it wraps. Raises SimulationError where there is none."""
    if not env.has_wrapper_attr(name):
        raise SimulationError(f"expected the environment {env} to have {name}, got none; give it {PURPOSES[name]}")
    return env.get_wrapper_attr(name)


def with_outcome(info: Mapping[str, Any]) -> dict[str, Any]:
    """The info of a step with its outcome as a float and a bool, whatever numbers the environment gave.

    Vector environments make one array for each key, typed by the first value that arrives: behind an int 0.7 becomes 0.
    Keys that are not there stay away. Raises SimulationError for a score that is no number.
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
            f"{ {key: info[key] for key in OUTCOME if key in info} }; mend the environment's step"
        ) from error
    return outcome


def require_outcome(info: Mapping[str, Any]) -> None:
    """Raise SimulationError, naming what is missing, unless the info of an episode's last step tells how it went."""
    if missing := [key for key in OUTCOME if key not in info]:
        raise SimulationError(
            f"expected {' and '.join(map(repr, OUTCOME))} in the info of each step, got {sorted(info)} without "
            f"{' and '.join(map(repr, missing))}; let the environment's step report them (score: the best so far, in [0, 1])"
        )
