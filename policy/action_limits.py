"""How fast the demonstrations moved: the limits that a robot is held to unless somebody says otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from flowchunk.datasets.specs import ActionSpec


@dataclass(frozen=True)
class ActionLimits:
    """The largest velocity and acceleration of each action dimension, (D,), in its unit per second and per second².

    Of positions these are differences between consecutive targets. Displacements, velocities and efforts are themselves what
    moves: for them ``velocity`` bounds the value (of displacements, times the rate) and ``acceleration`` its change.
    """

    velocity: np.ndarray
    acceleration: np.ndarray

    @classmethod
    def of_episodes(cls, episodes: Iterable[np.ndarray], spec: ActionSpec) -> Self:
        """The largest of any episode's actions (T, D)."""
        velocity, acceleration = np.zeros(spec.size), np.zeros(spec.size)
        for actions in episodes:
            moved, changed = motion(np.asarray(actions, np.float64), spec)
            velocity = np.maximum(velocity, np.abs(moved).max(axis=0, initial=0))
            acceleration = np.maximum(acceleration, np.abs(changed).max(axis=0, initial=0))
        return cls(velocity, acceleration)

    def to_json(self) -> dict[str, Any]:
        """A value that ``json.dumps`` accepts and ``from_json`` reads."""
        return {"velocity": self.velocity.tolist(), "acceleration": self.acceleration.tolist()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The limits that ``to_json`` described."""
        return cls(np.asarray(value["velocity"], float), np.asarray(value["acceleration"], float))


def is_position(spec: ActionSpec) -> np.ndarray:
    """(D,) booleans: whether a dimension is a position, whose differences are what moves."""
    return np.array([dimension.quantity == "position" for dimension in spec.dimensions])


def motion(actions: np.ndarray, spec: ActionSpec) -> tuple[np.ndarray, np.ndarray]:
    """Velocity and acceleration (T, D) of an episode's actions (T, D), which starts at rest, per second and per second²."""
    hz = spec.control_hz
    rate = np.array([1.0 if dimension.quantity in ("velocity", "effort") else hz for dimension in spec.dimensions])
    velocity = np.where(is_position(spec), np.diff(actions, axis=0, prepend=actions[:1]), actions) * rate
    return velocity, np.diff(velocity, axis=0, prepend=velocity[:1]) * hz
