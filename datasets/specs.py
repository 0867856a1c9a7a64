"""What the numbers mean: specifications of observations and actions, stored with data sets and checkpoints.

When a policy is used with a data set or an environment, their specifications are compared. A difference is an error that
shows both sides, because an unnoticed one (another unit, another rotation convention) makes the robot move wrongly.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from math import prod
from typing import Any, Literal

from flowchunk.datasets.errors import ConfigurationError, SpecMismatchError

Reference = Literal["absolute", "delta", "relative"]
Quantity = Literal["position", "displacement", "velocity", "effort"]
CONTINUOUS_ROTATIONS = ("rotation_6d", "matrix")  # all others jump somewhere


@dataclass(frozen=True)
class ObservationField:
    """One key of the observation.

    shape: of one frame, without time and batch. names, units: one per dimension, in flattened (C) order; empty for fields
    without them. wraps: flattened indices of angles in radians that wrap at 2π; encoders replace them by cosine and sine.
    camera: the name of the camera if this is an image, which is uint8 RGB from 0 to 255 of shape (height, width, 3). crop:
    the (height, width) of an image that a policy uses, at random positions in training and centered otherwise; the whole
    image by default. It describes how an image is used, not what it is, so it is ignored when fields are compared.
    Raises SpecMismatchError if these contradict each other.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    wraps: tuple[int, ...] = ()
    camera: str | None = None
    crop: tuple[int, ...] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        self._check_image()
        for label, values in (("names", self.names), ("units", self.units)):
            if values and len(values) != self.size:
                raise SpecMismatchError(
                    f"an observation field of shape {self.shape} has {self.size} dimensions, "
                    f"but {len(values)} {label} were given: {values}"
                )
        if any(not 0 <= index < self.size for index in self.wraps):
            raise SpecMismatchError(f"wraps={self.wraps} points outside the {self.size} dimensions of {self.shape}")

    @property
    def size(self) -> int:
        """The number of values in one frame."""
        return prod(self.shape)

    @property
    def is_image(self) -> bool:
        """Whether this is a camera's image."""
        return self.camera is not None

    def _check_image(self) -> None:
        if not self.is_image and self.crop is None:
            return
        if not self.is_image or len(self.shape) != 3 or self.shape[2] != 3:
            raise SpecMismatchError(
                f"camera={self.camera!r}, crop={self.crop}, shape={self.shape}: an image has a camera and the shape "
                "(height, width, 3), and only images have a crop"
            )
        if self.crop is not None and not (
            len(self.crop) == 2 and all(0 < part <= whole for part, whole in zip(self.crop, self.shape, strict=False))
        ):
            raise SpecMismatchError(
                f"crop={self.crop} must be (height, width) in pixels and fit into images of {self.shape[:2]}"
            )


@dataclass(frozen=True)
class ObservationSpec:
    """The keys of an observation, in order."""

    fields: Mapping[str, ObservationField]

    @property
    def images(self) -> dict[str, ObservationField]:
        """The fields that are images."""
        return {key: field for key, field in self.fields.items() if field.is_image}

    @property
    def values(self) -> dict[str, ObservationField]:
        """The fields that are not images: proprioception and the like."""
        return {key: field for key, field in self.fields.items() if not field.is_image}

    def without(self, keys: Collection[str]) -> ObservationSpec:
        """The same spec without these keys."""
        return ObservationSpec({key: field for key, field in self.fields.items() if key not in keys})

    def cropped(self, crop: tuple[int, ...] | None) -> ObservationSpec:
        """The same spec with this (height, width) crop of each image. Raises SpecMismatchError if it is too large."""
        return ObservationSpec(
            {key: replace(field, crop=crop) if field.is_image else field for key, field in self.fields.items()}
        )

    def to_json(self) -> dict[str, Any]:
        """A value that ``json.dumps`` accepts and ``from_json`` turns back into an equal spec."""
        return {key: asdict(field) for key, field in self.fields.items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ObservationSpec:
        """The spec that ``to_json`` wrote. Raises SpecMismatchError for any other value."""
        try:
            return cls({key: _field_from_json(field) for key, field in value.items()})
        except (TypeError, AttributeError) as error:
            raise SpecMismatchError(f"this is not an observation spec: {value!r} ({error})") from error


@dataclass(frozen=True)
class ActionDimension:
    """One number of an action.

    coordinate_frame: the frame in which the number is expressed ("world", "gripper", "joint", …). reference: "absolute"
    targets, "delta" from the previous target, "relative" to what is observed at the same time step. rotation:
    the representation that this number is a part of ("rotation_6d", "euler_xyz", …); None if it is not part of a rotation.
    low, high: inclusive bounds; None if unbounded.
    """

    name: str
    unit: str
    coordinate_frame: str
    reference: Reference = "absolute"
    rotation: str | None = None
    low: float | None = None
    high: float | None = None

    @property
    def quantity(self) -> Quantity:
        """Whether it is a displacement (not absolute), a velocity (in "…/s"), an effort (N, N·m), or a position."""
        if self.reference != "absolute":
            return "displacement"
        if self.unit.endswith("/s"):
            return "velocity"
        return "effort" if self.unit.replace("·", "").replace(" ", "") in ("N", "Nm") else "position"


@dataclass(frozen=True)
class ActionSpec:
    """The dimensions of an action, in order, and the rate at which actions are sent (Hz)."""

    dimensions: tuple[ActionDimension, ...]
    control_hz: float

    @property
    def size(self) -> int:
        """D, the number of values in one action."""
        return len(self.dimensions)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the dimensions."""
        return tuple(dimension.name for dimension in self.dimensions)

    def require_blendable(self, what: str) -> None:
        """Raise ConfigurationError if actions must not be averaged or interpolated, number by number.

        Absolute rotations must not, except in 6D and as matrices: numbers of two that are nearly the same may be far apart,
        such as axis-angle's at half a turn, and what lies between them is somewhere else. what: would do so, for the message.
        """
        jumping = [
            one
            for one in self.dimensions
            if one.quantity == "position" and one.rotation not in (None, *CONTINUOUS_ROTATIONS)
        ]
        if jumping:
            raise ConfigurationError(
                f"{what}: {[one.name for one in jumping]} are a rotation in {jumping[0].rotation}, whose numbers jump where "
                "the rotation does not, so that the robot would turn the long way; leave that option out, or train with "
                "rotation_6d (flowchunk data edit … rotation=rotation_6d)"
            )

    def to_json(self) -> dict[str, Any]:
        """A value that ``json.dumps`` accepts and ``from_json`` turns back into an equal spec."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ActionSpec:
        """The spec that ``to_json`` wrote. Raises SpecMismatchError for any other value."""
        try:
            dimensions = tuple(_dimension_from_json(dimension) for dimension in value["dimensions"])
            return cls(dimensions, float(value["control_hz"]))
        except (TypeError, AttributeError, KeyError, ValueError) as error:
            raise SpecMismatchError(f"this is not an action spec: {value!r} ({error})") from error


def require_same_actions(expected: ActionSpec, got: ActionSpec, *, expected_by: str, got_from: str) -> None:
    """Raise SpecMismatchError with the first dimension that differs, unless both specs are equal."""
    if expected.size != got.size:
        raise SpecMismatchError(
            f"{expected_by} has {expected.size} action dimensions {list(expected.names)}, "
            f"but {got_from} has {got.size} {list(got.names)}; use a task and a data set that belong together"
        )
    for wanted, found in zip(expected.dimensions, got.dimensions, strict=True):
        if wanted != found:
            raise SpecMismatchError(
                f"action dimension {wanted.name!r} differs: {_difference(wanted, found, expected_by, got_from)}"
            )
    if expected.control_hz != got.control_hz:
        raise SpecMismatchError(
            f"control rates differ: {expected_by} has {expected.control_hz} Hz, but {got_from} has {got.control_hz} Hz"
        )


def require_observations(expected: ObservationSpec, got: ObservationSpec, *, expected_by: str, got_from: str) -> None:
    """Raise SpecMismatchError unless ``got`` has every field of ``expected``, with an equal description (and maybe more)."""
    for key, wanted in expected.fields.items():
        if key not in got.fields:
            raise SpecMismatchError(
                f"{expected_by} needs the observation {key!r}, but {got_from} only has {sorted(got.fields)}"
            )
        if got.fields[key] != wanted:
            raise SpecMismatchError(
                f"observation {key!r} differs: {_difference(wanted, got.fields[key], expected_by, got_from)}"
            )


def _difference(expected: Any, got: Any, expected_by: str, got_from: str) -> str:
    """The first attribute in which two descriptions differ; of a tuple with an entry per dimension, the first entry."""
    name = next(f.name for f in fields(expected) if f.compare and getattr(expected, f.name) != getattr(got, f.name))
    wanted, found = getattr(expected, name), getattr(got, name)
    if isinstance(wanted, tuple) and len(wanted) == len(found) > 1 and name != "shape":
        place = next(place for place, (a, b) in enumerate(zip(wanted, found, strict=True)) if a != b)
        name, wanted, found = f"{name}[{place}]", wanted[place], found[place]
    return f"{expected_by} has {name}={wanted!r}, but {got_from} has {name}={found!r}"


def _field_from_json(value: Mapping[str, Any]) -> ObservationField:
    camera, lists = value.get("camera"), {name: entry for name, entry in value.items() if name != "camera"}
    crop = lists.pop("crop", None)
    whole = {name: tuple(entry) for name, entry in lists.items()}
    return ObservationField(**whole, camera=camera, crop=None if crop is None else tuple(crop))


def _dimension_from_json(value: Mapping[str, Any]) -> ActionDimension:
    """A stored dimension; early data sets and checkpoints call its ``coordinate_frame`` ``frame``."""
    if "frame" in value and "coordinate_frame" not in value:
        value = {"coordinate_frame" if name == "frame" else name: entry for name, entry in value.items()}
    return ActionDimension(**value)
