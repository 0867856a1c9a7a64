"""What follows from a data set's arrays about their meaning, where no specifications are stored."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from flowchunk.datasets.episode_source import ArrayInfo, Description
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec, Reference

UNKNOWN = "unknown"
SMALLEST_FLOAT_IMAGE = 16  # height and width; smaller arrays of floats with three columns are rather points in space
BOOKKEEPING = re.compile(
    r"(.*[./])?(timestamp|frame_index|episode_index|index|task_index|rewards?|dones?|success|terminated|truncated)"
    r"|next\..*|annotation\..*"
)
"""Names of arrays that describe the recording and not what a robot observes."""


def is_image_array(shape: Sequence[int], dtype: np.dtype) -> bool:
    """Whether arrays of this shape at each time step hold RGB images."""
    if len(shape) != 3 or shape[2] != 3:
        return False
    return dtype == np.uint8 or (dtype.kind == "f" and min(shape[:2]) >= SMALLEST_FLOAT_IMAGE)


def describe_specs(observation_spec: ObservationSpec, action_spec: ActionSpec) -> Description:
    """The description of a data set with stored specifications."""
    names = (*observation_spec.fields, "action", "control_hz")
    return Description(
        observations=observation_spec.fields,
        actions=action_spec.dimensions,
        control_hz=action_spec.control_hz,
        origins=dict.fromkeys(names, "stored"),
    )


def describe_arrays(
    arrays: Mapping[str, ArrayInfo],
    action: str,
    *,
    origin: str,
    key_of: Callable[[str], str] = lambda name: name,
    names: Mapping[str, Sequence[str]] | None = None,
    control_hz: float | None = None,
    references: Sequence[Reference] | None = None,
    notes: Sequence[str] = (),
) -> Description:
    """A description by names and shapes. action: the array of actions, which may be missing.

    key_of: the key for an array's name. names: of the dimensions, by array. references: of each of the actions; assumed to
    be absolute if None. Arrays that are neither vectors nor RGB images are left out, with a note.
    """
    known, origins, observations, keys = names or {}, {}, {}, {}
    left_out = []
    for name, info in arrays.items():
        if name == action or BOOKKEEPING.fullmatch(name):
            continue
        if len(info.shape) > 2 and not info.is_image:
            left_out.append(f"{name} {info.shape} {info.dtype}")
            continue
        key = key_of(name)
        camera = key if info.is_image else None
        labels = () if info.is_image else fitting_names(known.get(name, ()), info)
        observations[key] = ObservationField(info.shape, names=labels, camera=camera)
        origins[key] = origin
        if key != name:
            keys[key] = name
    if left_out:
        notes = (*notes, f"left out, neither vectors nor RGB images (height, width, 3): {', '.join(left_out)}")
    actions = None
    if action in arrays:
        actions = _dimensions(arrays[action], known.get(action, ()), references)
        kinds = "absolute is assumed" if references is None else f"{'/'.join(dict.fromkeys(references))}, by the format"
        origins["action"] = f"{origin}; {kinds}"
        if action != "action":
            keys["action"] = action
    if control_hz is not None:
        origins["control_hz"] = origin
    return Description(observations, actions, control_hz, keys, origins, tuple(notes))


def fitting_names(names: Sequence[str], info: ArrayInfo) -> tuple[str, ...]:
    """The names if there is one for each dimension, and they differ; otherwise none."""
    size = int(np.prod(info.shape))
    return tuple(map(str, names)) if len(names) == size == len(set(names)) else ()


def _dimensions(
    info: ArrayInfo, names: Sequence[str], references: Sequence[Reference] | None
) -> tuple[ActionDimension, ...]:
    labels = fitting_names(names, info) or [f"action_{index}" for index in range(int(np.prod(info.shape)))]
    return tuple(
        ActionDimension(label, UNKNOWN, UNKNOWN, reference)
        for label, reference in zip(labels, references or ["absolute"] * len(labels), strict=True)
    )
