"""Where a policy's observations are found among what a robot measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flowchunk.datasets.errors import SpecMismatchError
from flowchunk.datasets.specs import ObservationField, ObservationSpec
from flowchunk.envs.robots.robot import Robot

Place = tuple[str, int]
"""A number that a robot measures: its key, and its index in flattened order."""


@dataclass(frozen=True)
class Source:
    """What one key of a policy's observation consists of.

    shape: of the result. places: of each of its numbers among the robot's. image: the robot's key if it is an image, which is
    taken as it is; then there are no places.
    """

    shape: tuple[int, ...]
    places: tuple[Place, ...] = ()
    image: str | None = None

    @property
    def robot_keys(self) -> tuple[str, ...]:
        """The robot's keys that are needed."""
        return (self.image,) if self.image is not None else tuple(dict.fromkeys(key for key, _ in self.places))

    def gather(self, measured: Mapping[str, np.ndarray]) -> np.ndarray:
        """The observation of the policy, a copy. measured: {key of the robot: array}, which a driver may reuse afterwards.

        Images remain uint8, values become float32.
        """
        if self.image is not None:
            return measured[self.image].copy()
        numbers = [measured[key].reshape(-1)[index] for key, index in self.places]
        return np.array(numbers, dtype=np.float32).reshape(self.shape)


def find_sources(wanted: ObservationSpec, robot: Robot) -> dict[str, Source]:
    """Where each key of a policy's observation is found. Raises SpecMismatchError with both sides if it is not."""
    return {
        key: _image(key, field, robot) if field.is_image else _values(key, field, robot)
        for key, field in wanted.fields.items()
    }


def _image(key: str, wanted: ObservationField, robot: Robot) -> Source:
    images = robot.observation_spec.images
    cameras = {name: image.camera for name, image in images.items()}
    same_camera = [name for name, camera in cameras.items() if camera == wanted.camera]
    found = key if key in images else same_camera[0] if len(same_camera) == 1 else None
    if found is None:
        raise SpecMismatchError(
            f"the policy observes the image {key!r} of the camera {wanted.camera!r}, but the robot {robot.name} has the "
            f"images and cameras {cameras}; give its image that key, or one image that camera's name"
        )
    if images[found].shape != wanted.shape:
        raise SpecMismatchError(
            f"image {key!r}: the policy expects (height, width, 3) = {wanted.shape}, but {found!r} of the robot {robot.name} "
            f"has {images[found].shape}; scale the image in the driver as the training data was"
        )
    channels = getattr(robot, "image_channels", {}).get(found, "rgb")
    if channels != "rgb":
        raise SpecMismatchError(
            f"image {key!r}: the policy expects rgb, but {found!r} of the robot {robot.name} is declared as {channels!r} in "
            "image_channels; return image[..., ::-1] from the driver, and remove the declaration"
        )
    return Source(wanted.shape, image=found)


def _values(key: str, wanted: ObservationField, robot: Robot) -> Source:
    fields = robot.observation_spec.values
    if not wanted.names:
        return _unnamed(key, wanted, robot)
    if len(set(wanted.names)) < wanted.size:
        raise SpecMismatchError(
            f"observation {key!r} of the policy has the names {list(wanted.names)}, of which some are equal; give each its "
            "own: dataset.names"
        )
    if key in fields and sorted(fields[key].names) == sorted(wanted.names):
        places = {name: (key, index) for index, name in enumerate(fields[key].names)}
    else:
        places = _places_by_name(key, wanted, robot)
    for index, name in enumerate(wanted.names):
        _require_same(key, name, wanted, index, fields, places[name], robot)
    return Source(wanted.shape, places=tuple(places[name] for name in wanted.names))


def _unnamed(key: str, wanted: ObservationField, robot: Robot) -> Source:
    fields = robot.observation_spec.values
    if key not in fields or fields[key].shape != wanted.shape:
        found = f"has it with {fields[key].shape}" if key in fields else f"only has {_described(fields)}"
        raise SpecMismatchError(
            f"the policy observes {key!r} of shape {wanted.shape}, whose numbers have no names, but the robot {robot.name} "
            f"{found}; give the driver this key and shape, or train with names: dataset.names"
        )
    for index in range(wanted.size):
        _require_same(key, f"number {index}", wanted, index, fields, (key, index), robot)
    return Source(wanted.shape, places=tuple((key, index) for index in range(wanted.size)))


def _places_by_name(key: str, wanted: ObservationField, robot: Robot) -> dict[str, Place]:
    fields = robot.observation_spec.values
    places: dict[str, list[Place]] = {}
    for robot_key, field in fields.items():
        for index, name in enumerate(field.names):
            places.setdefault(name, []).append((robot_key, index))
    if missing := [name for name in wanted.names if name not in places]:
        raise SpecMismatchError(
            f"observation {key!r}: the policy expects {missing}, but the robot {robot.name} only measures "
            f"{_described(fields)}; give the driver's observation_spec the names of the data set"
        )
    if several := {name: [at for at, _ in places[name]] for name in wanted.names if len(places[name]) > 1}:
        raise SpecMismatchError(
            f"observation {key!r}: the robot {robot.name} measures some names in several places: {several}; give each its "
            f"own name, or all of {key!r} the policy's key and names"
        )
    return {name: places[name][0] for name in wanted.names}


def _require_same(
    key: str,
    name: str,
    wanted: ObservationField,
    index: int,
    fields: Mapping[str, ObservationField],
    place: Place,
    robot: Robot,
) -> None:
    """Raise SpecMismatchError unless a number has the same unit on both sides, and wraps on both or neither."""
    field, at = fields[place[0]], place[1]
    expected, got = _unit(wanted, index), _unit(field, at)
    if expected != got:
        raise SpecMismatchError(
            f"observation {key!r}, {name}: the policy expects the unit {expected!r}, but {place[0]!r} of the robot "
            f"{robot.name} has {got!r}; convert it in the driver, or correct the specification that is wrong "
            "(of data: dataset.units)"
        )
    if (index in wanted.wraps) != (at in field.wraps):
        owner = "the policy" if index in wanted.wraps else f"the robot {robot.name}"
        raise SpecMismatchError(
            f"observation {key!r}, {name}: only {owner} has it in wraps, as an angle that wraps at 2π; correct the "
            "specification that is wrong (of data: dataset.wraps)"
        )


def _unit(field: ObservationField, index: int) -> str | None:
    return field.units[index] if field.units else None


def _described(fields: Mapping[str, ObservationField]) -> dict[str, list[str] | tuple[int, ...]]:
    """The names of each field, or its shape if it has none."""
    return {key: list(field.names) or field.shape for key, field in fields.items()}
