"""Where evaluated episodes began: seeds decide, so their start states are found again by resetting the environment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from flowchunk.datasets.errors import FlowchunkError, SimulationError
from flowchunk.datasets.specs import ObservationSpec
from flowchunk.envs.contract import observation_spec_of
from flowchunk.envs.simulation import environment_maker

ROBOT_PARTS = ("agent", "end_effector", "gripper", "hand")  # objects say more about an episode than the robot does
AXES = "axis"  # x_axis_x is a part of a rotation, not a place


@dataclass(frozen=True)
class StartStates:
    """Where something is at the start of each episode.

    name: of what is there. unit: of the coordinates. points: (N, 2). angles: (N,) in radians, if there are any.
    """

    name: str
    unit: str
    points: np.ndarray
    angles: np.ndarray | None


@dataclass(frozen=True)
class Place:
    """A pair of coordinates in an observation: key, and the indices of x, y and, if there is one, the angle."""

    name: str
    key: str
    unit: str
    x: int
    y: int
    angle: int | None


def find_start_states(env_id: str, env: Mapping[str, Any], seeds: Sequence[int]) -> StartStates | None:
    """The start states of episodes with these seeds; None if no observed place differs between them.

    env: the arguments of the environment. If it can be asked for its state instead of images, it is. Raises SimulationError
    or ConfigurationError if the environment cannot be made.
    """
    with_state = {**env, "observation": "state"} if "observation" in env else dict(env)
    try:
        return _reset_all(environment_maker(env_id, with_state)(), seeds)
    except FlowchunkError:
        if with_state == env:
            raise
    return _reset_all(environment_maker(env_id, env)(), seeds)


def _reset_all(env: gymnasium.Env[Any, Any], seeds: Sequence[int]) -> StartStates | None:
    try:
        places = sorted(places_in(observation_spec_of(env)), key=lambda place: place.name in ROBOT_PARTS)
        if not places:
            return None
        observations = [env.reset(seed=seed)[0] for seed in seeds]
    except FlowchunkError:
        raise
    except Exception as error:  # of someone else's environment
        raise SimulationError(f"the environment cannot be reset: {error}") from error
    finally:
        env.close()
    for place in places:
        states = np.stack([observation[place.key] for observation in observations])
        points = states[:, [place.x, place.y]]
        if np.ptp(points, axis=0).any():
            return StartStates(place.name, place.unit, points, None if place.angle is None else states[:, place.angle])
    return None


def places_in(spec: ObservationSpec) -> Iterator[Place]:
    """Every x with its y in an observation's names: ``block_x`` and ``block_y``, also with ``block_angle``."""
    for key, field in spec.values.items():
        index = {name: number for number, name in enumerate(field.names or ())}
        for name, x in index.items():
            stem = name.removesuffix("x")
            if stem != name and f"{stem}y" in index and AXES not in stem:
                unit = field.units[x] if field.units else ""
                yield Place(stem.rstrip("_.") or key, key, unit, x, index[f"{stem}y"], index.get(f"{stem}angle"))
