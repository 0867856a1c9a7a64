"""Hold still in a Gymnasium environment: by its own ``hold_action``, or by what its observation says of its position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from flowchunk.datasets.specs import ActionSpec, ObservationSpec
from flowchunk.envs.contract import specs_of
from flowchunk.envs.robots.holding import holding_action


def env_hold_action(
    env: gymnasium.Env[Any, Any], observation: Mapping[str, np.ndarray], *, last: np.ndarray | None
) -> np.ndarray:
    """The action (D,) that keeps an environment where it is.

    An environment that knows it has the method ``hold_action() -> (D,)``, as this package's tasks do. For others, positions
    are those observed under the same name and unit, or else the last action. Raises RobotError if neither is known.
    """
    if env.has_wrapper_attr("hold_action"):
        return np.array(env.get_wrapper_attr("hold_action")(), dtype=np.float64)
    observation_spec, action_spec = specs_of(env)
    return holding_action(
        action_spec, measured=measured_positions(observation_spec, action_spec, observation), last=last
    )


def measured_positions(
    observation_spec: ObservationSpec, action_spec: ActionSpec, observation: Mapping[str, np.ndarray]
) -> np.ndarray:
    """(D,) what is observed under the name and unit of each dimension of the action; NaN if nothing is."""
    found = {}
    for key, field in observation_spec.values.items():
        for name, unit, value in zip(field.names, field.units, np.ravel(observation[key]), strict=False):
            found[name, unit] = float(value)
    return np.array([found.get((dimension.name, dimension.unit), np.nan) for dimension in action_spec.dimensions])
