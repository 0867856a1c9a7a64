"""Match what a policy observes and commands with what a robot measures and does, by names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from flowchunk.datasets.errors import RobotError, SpecMismatchError
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from flowchunk.envs.robots.observation_sources import Source, find_sources
from flowchunk.envs.robots.robot import Reading, Robot

COMPARED = ("unit", "coordinate_frame", "reference", "rotation")


@dataclass(frozen=True)
class SpecMatch:
    """How a robot's readings become a policy's observations, and a policy's actions the robot's commands.

    sources: for each key of the policy's observation, in its order, where its values are found. robot_fields: what the robot
    measures. order: (D,) for each dimension of the robot's action, the place of that dimension in the policy's. low, high:
    (D,) the narrower of the policy's and the robot's bounds, in the robot's order; infinite if neither has any.
    """

    sources: Mapping[str, Source]
    robot_fields: Mapping[str, ObservationField]
    order: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, observation_spec: ObservationSpec, action_spec: ActionSpec, robot: Robot) -> Self:
        """Match a policy's specs with those of a robot, which is connected.

        Values match by key and names, or else by names that may lie in any of the robot's fields; values without names by key
        and shape; images by key, or else by a camera that only one image has. Units and ``wraps`` must agree. Actions match
        by name: unit, coordinate frame, reference and rotation must agree, and every dimension of the robot must be
        commanded. ``control_hz`` is not compared.

        Raises SpecMismatchError with both sides where they differ, for bounds without overlap, and for images that the
        driver declares to be of other channels than RGB.
        """
        sources = find_sources(observation_spec, robot)
        order = _action_order(action_spec, robot)
        dimensions = [
            (action_spec.dimensions[place], d) for place, d in zip(order, robot.action_spec.dimensions, strict=True)
        ]
        bounds = np.array([_narrower(wanted, found, robot) for wanted, found in dimensions]).reshape(-1, 2)
        return cls(sources, robot.observation_spec.fields, order, bounds[:, 0], bounds[:, 1])

    def observation(self, reading: Reading) -> dict[str, np.ndarray]:
        """What the policy observes, {key: array}: values as float32, images uint8 (height, width, 3).

        Raises RobotError that names the key if the reading lacks it, or it has not the shape and type that the robot
        declares. Values that are not finite are passed on.
        """
        used = {key for source in self.sources.values() for key in source.robot_keys}
        checked = {key: _checked(key, field, reading) for key, field in self.robot_fields.items() if key in used}
        return {key: source.gather(checked) for key, source in self.sources.items()}

    def action(self, policy_action: np.ndarray) -> np.ndarray:
        """The robot's action for one of the policy, or for a chunk of them: (…, D) in both. Raises SpecMismatchError."""
        return self._with_size(policy_action, "the policy")[..., self.order]

    def policy_action(self, robot_action: np.ndarray) -> np.ndarray:
        """The inverse of ``action``: the policy's action (…, D) for one of the robot. Raises SpecMismatchError."""
        return self._with_size(robot_action, "the robot")[..., np.argsort(self.order)]

    def times(self, reading: Reading) -> dict[str, float]:
        """{key of the policy: when it was measured}, -inf if never; of several sensors, the oldest measurement counts."""
        return {
            key: min(reading.times.get(name, -np.inf) for name in source.robot_keys)
            for key, source in self.sources.items()
        }

    def stale_keys(self, reading: Reading, now: float, max_age: float) -> dict[str, float]:
        """{key of the policy: age in seconds} of observations older than ``max_age``, or younger than now by as much.

        now: seconds of ``time.monotonic()``. Such times do not belong to this clock, or it was changed.
        """
        ages = {key: now - time for key, time in self.times(reading).items()}
        return {key: age for key, age in ages.items() if not abs(age) <= max_age}

    def _with_size(self, action: np.ndarray, origin: str) -> np.ndarray:
        numbers = np.asarray(action, dtype=np.float64)
        if numbers.ndim == 0 or numbers.shape[-1] != len(self.order):
            raise SpecMismatchError(
                f"an action of {origin}: expected {len(self.order)} numbers, got shape {numbers.shape}; "
                "pass actions with one number for each dimension of its specification"
            )
        return numbers


def _action_order(policy: ActionSpec, robot: Robot) -> np.ndarray:
    """(D,) for each of the robot's dimensions, its place in the policy's action. Raises SpecMismatchError."""
    found = robot.action_spec
    for spec, owner in ((policy, "the policy"), (found, f"the robot {robot.name}")):
        if len(set(spec.names)) < spec.size:
            raise SpecMismatchError(
                f"the actions of {owner} have the names {list(spec.names)}, of which some are equal; give each its own name"
            )
    if missing := [name for name in policy.names if name not in found.names]:
        raise SpecMismatchError(
            f"the policy commands {missing}, but the robot {robot.name} only has {list(found.names)}; use a policy that was "
            "trained for this robot, or give the driver's action_spec the names of the data set"
        )
    if missing := [name for name in found.names if name not in policy.names]:
        raise SpecMismatchError(
            f"the robot {robot.name} needs commands for {missing}, but the policy only gives {list(policy.names)}; let the "
            "driver hold these by itself and leave them out of its action_spec, or train with them"
        )
    return np.array([policy.names.index(name) for name in found.names], dtype=np.intp)


def _narrower(wanted: ActionDimension, found: ActionDimension, robot: Robot) -> tuple[float, float]:
    """The bounds that both keep. Raises SpecMismatchError if the dimensions mean different things."""
    for attribute in COMPARED:
        if getattr(wanted, attribute) != getattr(found, attribute):
            raise SpecMismatchError(
                f"action {wanted.name!r}: the policy has {attribute}={getattr(wanted, attribute)!r}, but the robot "
                f"{robot.name} has {attribute}={getattr(found, attribute)!r}; convert it in the driver, or correct the "
                "specification that is wrong"
            )
    low = max(-np.inf if dimension.low is None else dimension.low for dimension in (wanted, found))
    high = min(np.inf if dimension.high is None else dimension.high for dimension in (wanted, found))
    if not low <= high:
        raise SpecMismatchError(
            f"action {wanted.name!r}: the policy's bounds are {wanted.low} to {wanted.high}, but those of the robot "
            f"{robot.name} {found.low} to {found.high}, without overlap; correct the bounds or the unit of one of them"
        )
    return low, high


def _checked(key: str, field: ObservationField, reading: Reading) -> np.ndarray:
    """One key of a reading, of the shape and type that the robot declares. Raises RobotError."""
    if key not in reading.values:
        raise RobotError(
            f"the robot's reading has no {key!r}, only {sorted(reading.values)}; let its driver return every key of its "
            "observation_spec at each call"
        )
    values = np.asarray(reading.values[key])
    if values.shape != field.shape:
        raise RobotError(
            f"{key!r}: expected the shape {field.shape} of the robot's observation_spec, got {values.shape}; correct the "
            f"{'resolution of the camera' if field.is_image else 'driver'} or the specification"
        )
    if field.is_image and values.dtype != np.uint8:
        raise RobotError(
            f"{key!r}: expected an image of uint8 from 0 to 255, got {values.dtype}; convert it in the robot's driver"
        )
    if values.dtype.kind not in "biuf":
        raise RobotError(f"{key!r}: expected numbers, got {values.dtype}; correct the robot's driver")
    return values
