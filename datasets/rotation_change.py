"""Actions whose rotations are in another representation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.rotations import convert_rotation, representation_size
from flowchunk.datasets.specs import ActionDimension, ActionSpec

DEGREES = ("deg", "degree", "degrees", "°")
MATRIX = "matrix"


@dataclass(frozen=True)
class RotationChange:
    """Rotations of actions in the representation ``target``; create it with ``RotationChange.find``.

    parts: the dimensions in order, as (first, last + 1, representation); None for those that are no rotation, and for
    rotations that are in the target's already.
    """

    parts: tuple[tuple[int, int, str | None], ...]
    target: str

    @classmethod
    def find(cls, action_spec: ActionSpec, target: str) -> RotationChange:
        """The change of all rotations of an action.

        target: see ``convert_rotation``. Raises ConfigurationError for an unknown representation, without any rotation, and
        for dimensions that are not complete rotations in radians.
        """
        representation_size(target)
        if all(dimension.rotation is None for dimension in action_spec.dimensions):
            raise ConfigurationError(
                f"rotation={target}, but no action dimension is part of a rotation; say which are, and in which "
                "representation: dataset.rotations.axis_angle=[rx,ry,rz]"
            )
        parts: list[tuple[int, int, str | None]] = []
        start = 0
        for rotation, group in groupby(action_spec.dimensions, key=lambda dimension: dimension.rotation):
            stop = start + len(list(group))
            if rotation is None or rotation == target:
                parts.append((start, stop, None))
            else:
                ends = _ends(action_spec.dimensions[start:stop], start, rotation)
                parts += [(first, last, rotation) for first, last in ends]
            start = stop
        return cls(tuple(parts), target)

    def change_spec(self, action_spec: ActionSpec) -> ActionSpec:
        """The specification of the changed actions: rotations are named left_rotation_6d_0, … in place of left_rx, ….

        They are numbered if two dimensions had the same name otherwise. They have no bounds.
        """
        changed = self._changed_spec(action_spec, is_numbered=False)
        has_distinct_names = len(set(changed.names)) == changed.size
        return changed if has_distinct_names else self._changed_spec(action_spec, is_numbered=True)

    def change(self, actions: np.ndarray) -> NDArray[np.float64]:
        """The changed actions (T, D') of actions (T, D). Raises ConfigurationError for values that are no rotation."""
        columns = [
            actions[:, start:stop] if rotation is None else self._convert(actions[:, start:stop], rotation)
            for start, stop, rotation in self.parts
        ]
        return np.concatenate(columns, axis=1, dtype=np.float64)

    def _convert(self, values: np.ndarray, rotation: str) -> NDArray[np.float64]:
        given = values.reshape(-1, 3, 3) if rotation == MATRIX else values  # row by row
        return convert_rotation(given, rotation, self.target).reshape(len(values), -1)

    def _changed_spec(self, action_spec: ActionSpec, *, is_numbered: bool) -> ActionSpec:
        dimensions: list[ActionDimension] = []
        for number, (start, stop, rotation) in enumerate(self.parts):
            part = action_spec.dimensions[start:stop]
            prefix = "" if rotation is None else _prefix(part, rotation) + f"{number}_" * is_numbered
            dimensions += part if rotation is None else self._dimensions(part[0], prefix)
        return replace(action_spec, dimensions=tuple(dimensions))

    def _dimensions(self, first: ActionDimension, prefix: str) -> list[ActionDimension]:
        unit = "rad" if _is_angles(self.target) else "1"
        described = replace(first, unit=unit, rotation=self.target, low=None, high=None)
        size = representation_size(self.target)
        return [replace(described, name=f"{prefix}{self.target}_{index}") for index in range(size)]


def _is_angles(representation: str) -> bool:
    return representation == "axis_angle" or representation.startswith("euler_")


def _ends(dimensions: Sequence[ActionDimension], start: int, rotation: str) -> list[tuple[int, int]]:
    """First dimension and the one after the last of each rotation, in a row of dimensions of the same representation."""
    size, names = representation_size(rotation), ", ".join(dimension.name for dimension in dimensions)
    if len(dimensions) % size:
        raise ConfigurationError(
            f"{names} are {len(dimensions)} dimensions in a row of rotations as {rotation}, which takes {size} for each"
        )
    ends = [(start + first, start + first + size) for first in range(0, len(dimensions), size)]
    for first, last in ends:
        part = dimensions[first - start : last - start]
        if len({(dimension.reference, dimension.coordinate_frame) for dimension in part}) > 1:
            raise ConfigurationError(f"{names}: the dimensions of a rotation differ in their reference or frame")
        if _is_angles(rotation) and any(dimension.unit in DEGREES for dimension in part):
            raise ConfigurationError(f"{names}: a rotation as {rotation} must be in radians, but is in degrees")
    return ends


def _prefix(dimensions: Sequence[ActionDimension], rotation: str) -> str:
    """What the names begin with, up to a separator: ``left_`` for left_rx, left_ry and left_rz, or left_axis_angle_0, …."""
    prefix = re.sub(r"[^_./ ]*$", "", dimensions[0].name)
    is_shared = all(dimension.name.startswith(prefix) for dimension in dimensions)
    return prefix.removesuffix(f"{rotation}_") if is_shared else ""
