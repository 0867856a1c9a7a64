"""Actions as absolute targets, as deltas between them, or relative to what is observed. Every change has an inverse.

Angles that wrap are in radians; their differences and sums are wrapped to (-π, π].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flowchunk.datasets.description import UNKNOWN
from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.observed_values import ObservedValue, find_observed_value
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationSpec, Reference

Array = NDArray[np.float64]


def wrap_angles(angles: Array) -> Array:
    """The same angles in (-π, π], up to rounding; those in it are unchanged."""
    is_inside = (angles > -np.pi) & (angles <= np.pi)
    return np.where(is_inside, angles, np.pi - (np.pi - angles) % (2 * np.pi))


def to_delta(actions: Array, anchor: Array, wraps: NDArray[np.bool_]) -> Array:
    """Delta k is action k minus action k - 1, and delta 0 is action 0 minus the anchor.

    actions: (T, D) absolute, of one episode. anchor: (D,) the position from which it starts. wraps: (D,).
    """
    return _wrapped(np.diff(actions, axis=0, prepend=anchor[None]), wraps)


def from_delta(deltas: Array, anchor: Array, wraps: NDArray[np.bool_]) -> Array:
    """The inverse of ``to_delta`` with the same anchor: absolute actions (T, D); angles that wrap in (-π, π]."""
    return _wrapped(np.cumsum(np.concatenate([anchor[None], deltas]), axis=0)[1:], wraps)


def to_relative(actions: Array, observed: Array, wraps: NDArray[np.bool_]) -> Array:
    """Absolute actions (T, D) minus what was observed at the same time step, (T, D)."""
    return _wrapped(actions - observed, wraps)


def from_relative(actions: Array, observed: Array, wraps: NDArray[np.bool_]) -> Array:
    """The inverse of ``to_relative``: absolute actions (T, D); angles that wrap in (-π, π]."""
    return _wrapped(observed + actions, wraps)


@dataclass(frozen=True)
class ReferenceChange:
    """Actions with other references; create it with ``ReferenceChange.find``.

    before, after: the reference of each dimension. observed: the observed value of the same quantity, or None. wraps: whether
    a dimension is an angle that wraps, as the observed value is.
    """

    before: tuple[Reference, ...]
    after: tuple[Reference, ...]
    observed: tuple[ObservedValue | None, ...]
    wraps: tuple[bool, ...]

    @classmethod
    def find(
        cls,
        observation_spec: ObservationSpec,
        action_spec: ActionSpec,
        after: Sequence[Reference],
        relative_to: Sequence[str | None] | None = None,
    ) -> ReferenceChange:
        """The change of each dimension to the reference in ``after``.

        relative_to: for each dimension the observed value, as KEY.NAME, or None; by default the value of the same name.
        Raises ConfigurationError for rotations, whose difference is not that of their numbers; for a change that needs an
        observed value if it is absent, all but the one from absolute to delta; and for one in another unit.
        """
        if relative_to is not None and len(relative_to) != action_spec.size:
            raise ConfigurationError(
                f"relative_to has {len(relative_to)} entries for {action_spec.size} action dimensions"
            )
        entries = [None] * action_spec.size if relative_to is None else relative_to
        before = tuple(dimension.reference for dimension in action_spec.dimensions)
        observed: list[ObservedValue | None] = []
        for dimension, target, entry in zip(action_spec.dimensions, after, entries, strict=True):
            is_changed = dimension.reference != target
            by_name = relative_to is None
            found = _observed_value(dimension, entry, observation_spec, by_name=by_name) if is_changed else None
            if is_changed:
                _require_possible(dimension, target, found, observation_spec)
            observed.append(found)
        fields = observation_spec.fields
        wraps = tuple(one is not None and one.index in fields[one.key].wraps for one in observed)
        return cls(before, tuple(after), tuple(observed), wraps)

    def change_spec(self, action_spec: ActionSpec) -> ActionSpec:
        """The specification of the changed actions; changed dimensions have no bounds."""
        dimensions = (
            one if one.reference == after else replace(one, reference=after, low=None, high=None)
            for one, after in zip(action_spec.dimensions, self.after, strict=True)
        )
        return replace(action_spec, dimensions=tuple(dimensions))

    def change(self, actions: np.ndarray, observations: Mapping[str, np.ndarray]) -> Array:
        """The changed actions (T, D) of one episode; dimensions whose reference stays are the same.

        observations: {key: (T, …)}. The anchor of deltas is the observed value at the first time step. Without one, it is
        the first action, so that the first delta is 0; absolute actions then follow only from that action.
        """
        given = np.asarray(actions, np.float64)
        observed = self._observed(given, observations)
        wraps, before, after = np.array(self.wraps), np.array(self.before), np.array(self.after)
        absolute = np.select(
            [before == "delta", before == "relative"],
            [from_delta(given, observed[0], wraps), from_relative(given, observed, wraps)],
            given,
        )
        changed = np.select(
            [after == "delta", after == "relative"],
            [to_delta(absolute, observed[0], wraps), to_relative(absolute, observed, wraps)],
            absolute,
        )
        return np.where(before == after, given, changed)

    def _observed(self, actions: Array, observations: Mapping[str, np.ndarray]) -> Array:
        """(T, D) the observed values; the actions themselves in dimensions without one."""
        columns = [
            actions[:, dimension] if one is None else observations[one.key].reshape(len(actions), -1)[:, one.index]
            for dimension, one in enumerate(self.observed)
        ]
        return np.stack(columns, axis=1).astype(np.float64)


def _wrapped(values: Array, wraps: NDArray[np.bool_]) -> Array:
    return np.where(wraps, wrap_angles(values), values)


def _observed_value(
    dimension: ActionDimension, entry: str | None, observation_spec: ObservationSpec, *, by_name: bool
) -> ObservedValue | None:
    fields = observation_spec.values
    if entry is not None:
        return find_observed_value(entry, fields, option="relative_to")
    same = [key for key, field in fields.items() if dimension.name in field.names] if by_name else []
    if len(same) > 1:
        raise ConfigurationError(
            f"{dimension.name} is observed in {', '.join(same)}; say which it is by relative_to=[KEY.NAME, …], an entry for "
            "each action dimension"
        )
    return ObservedValue(same[0], fields[same[0]].names.index(dimension.name)) if same else None


def _require_possible(
    dimension: ActionDimension, target: Reference, observed: ObservedValue | None, observation_spec: ObservationSpec
) -> None:
    change = f"{dimension.name} cannot be changed from {dimension.reference} to {target}"
    if dimension.rotation is not None:
        raise ConfigurationError(
            f"reference: {change}, because it is part of a rotation ({dimension.rotation}), whose difference is not that of "
            f"its numbers; give one reference for each dimension, and {dimension.reference} for this one"
        )
    if observed is None and (dimension.reference, target) != ("absolute", "delta"):
        raise ConfigurationError(
            f"reference: {change} without an observed value of the same quantity, and none is known; give it by "
            "relative_to=[KEY.NAME, …], an entry for each action dimension"
        )
    units = observation_spec.fields[observed.key].units if observed is not None else ()
    unit = units[observed.index] if observed is not None and units else UNKNOWN
    if UNKNOWN not in (unit, dimension.unit) and unit != dimension.unit:
        raise ConfigurationError(
            f"reference: {change} by a value in another unit: it is in {dimension.unit}, the observed one in {unit}"
        )
