"""What a run is held to: limits of motion and of observation, from the checkpoint and from what the user says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from flowchunk.datasets.errors import CheckpointError, ConfigurationError
from flowchunk.datasets.specs import ActionSpec, ObservationSpec
from flowchunk.envs.control.limiter import MotionLimits
from flowchunk.envs.control.observed_range import UNKNOWN, ObservedRange
from flowchunk.policy.action_limits import ActionLimits, is_position

MIN_SENSOR_TIMEOUT = 0.2  # s


@dataclass(frozen=True)
class SafetyOptions:
    """What keeps a robot safe; all of it is on by default.

    velocity_max, acceleration_max: of each action dimension, or one for all, in its unit per second and per second²; by
    default the largest of the demonstrations. scale: factor of the demonstrations' limits, such as 0.5 for a first run. ramp:
    fraction of the velocity limits at which the first target is approached. margin: how far outside the training data an
    observed value may be, as a fraction of its range there. sensor_timeout: s, the age at which a sensor counts as lost; by
    default three control periods, at least 0.2 s. stop_file: the robot stops when this file exists; by default STOP in the
    output directory. Raises ConfigurationError for values out of range.
    """

    velocity_max: Sequence[float] | float | None = None
    acceleration_max: Sequence[float] | float | None = None
    scale: float = 1.0
    ramp: float = 0.25
    margin: float = 0.5
    sensor_timeout: float | None = None
    stop_file: Path | None = None

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1 or not 0 < self.ramp <= 1:
            raise ConfigurationError(
                f"safety.scale={self.scale}, safety.ramp={self.ramp}: both must be above 0 and at most 1; give "
                "safety.velocity_max to move faster than the demonstrations did"
            )
        if self.margin < 0 or (self.sensor_timeout is not None and not self.sensor_timeout > 0):
            raise ConfigurationError(
                f"safety.margin={self.margin} must be at least 0, safety.sensor_timeout={self.sensor_timeout} above 0 seconds"
            )

    def motion_limits(self, spec: ActionSpec, demonstrated: ActionLimits | None) -> MotionLimits:
        """The limits of a run. Raises ConfigurationError if no velocity limit is known."""
        if demonstrated is None and self.velocity_max is None:
            raise ConfigurationError(
                "the checkpoint does not say how fast its demonstrations moved, so there is no limit to hold the robot to: "
                "give dataset.path=… of its training data, or safety.velocity_max=… in units per second"
            )
        unlimited = np.full(spec.size, np.inf)
        shown = demonstrated or ActionLimits(unlimited, unlimited)
        velocity = _per_dimension("velocity_max", self.velocity_max, self.scale * shown.velocity, spec)
        # A velocity limit of one's own is not to be undone by the acceleration of slower demonstrations.
        acceleration = unlimited if self.velocity_max is not None else self.scale * shown.acceleration
        return MotionLimits(
            np.array([-np.inf if one.low is None else one.low for one in spec.dimensions]),
            np.array([np.inf if one.high is None else one.high for one in spec.dimensions]),
            velocity,
            _per_dimension("acceleration_max", self.acceleration_max, acceleration, spec),
            is_position(spec),
        )

    def timeout(self, control_hz: float) -> float:
        """Seconds after which a sensor counts as lost."""
        return self.sensor_timeout or max(3 / control_hz, MIN_SENSOR_TIMEOUT)


@dataclass(frozen=True)
class PolicyFacts:
    """What the loop needs to know of a checkpoint, without its weights."""

    observation_spec: ObservationSpec
    action_spec: ActionSpec
    observed: ObservedRange
    action_limits: ActionLimits | None
    training: Mapping[str, Any]

    @classmethod
    def of_checkpoint(cls, path: str | Path) -> Self:
        """Read a run or checkpoint. Raises CheckpointError if it cannot be read or is no chunk policy."""
        from flowchunk.policy.checkpoint import read_description
        from flowchunk.policy.chunk_policy import KIND

        description = read_description(path)
        if description.get("kind") != KIND:
            raise CheckpointError(f"{path} is a {description.get('kind')!r}, but a {KIND!r} was expected")
        observation_spec = ObservationSpec.from_json(description["observation_spec"])
        scalings = description["normalizer"]
        keys = observation_spec.values
        limits = description.get("action_limits")
        return cls(
            observation_spec,
            ActionSpec.from_json(description["action_spec"]),
            ObservedRange(
                {key: np.asarray(scalings[key]["low"], float) for key in keys},
                {key: np.asarray(scalings[key]["high"], float) for key in keys},
                {key: one.wraps for key, one in keys.items()},
                {key: one.units or (UNKNOWN,) * one.size for key, one in keys.items()},
            ),
            None if limits is None else ActionLimits.from_json(limits),
            description.get("training", {}),
        )


def _per_dimension(
    name: str, given: Sequence[float] | float | None, default: np.ndarray, spec: ActionSpec
) -> np.ndarray:
    values = np.asarray(default if given is None else given, dtype=float)
    if values.ndim == 0:
        values = np.full(spec.size, float(values))
    if values.shape != (spec.size,) or not (values >= 0).all():
        raise ConfigurationError(
            f"safety.{name}={given}: expected a number of at least 0, or {spec.size} of them, for {list(spec.names)}"
        )
    return values
