"""Names and units of what robosuite's environments observe, and of the actions of its controller OSC_POSE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowchunk.datasets.rotations import representation_size
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from flowchunk.envs.gym_task import NORMALIZED, UNKNOWN

OBJECT = "object"
POSITION, QUATERNION, GRIPPER = "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"
PARTS = {"pos": ("xyz", "m"), "quat": ("xyzw", "1")}
"""By the end of a sensor's name: the names of its numbers, and their unit."""


def observation_spec(inner: Any, cameras: Sequence[str], image_size: tuple[int, int]) -> ObservationSpec:
    """What robomimic's policies observe in an environment of robosuite: the objects' poses, or with cameras their images.

    inner: the environment, after a reset.
    """
    sensors = inner._observables
    active = {name: sensor for name, sensor in sensors.items() if sensor.is_enabled() and sensor.is_active()}
    of_objects = [(name, int(np.size(sensor.obs))) for name, sensor in active.items() if sensor.modality == OBJECT]
    fields = {} if cameras or not of_objects else {OBJECT: _field(of_objects)}
    for key in (POSITION, QUATERNION, GRIPPER):
        if key in active:
            fields[key] = _field([(key, int(np.size(active[key].obs)))])
    images = {f"{camera}_image": ObservationField((*image_size, 3), camera=camera) for camera in cameras}
    return ObservationSpec({**images, **fields})


def _field(sensors: Sequence[tuple[str, int]]) -> ObservationField:
    """The numbers of these sensors, one after another."""
    names, units = list[str](), list[str]()
    for name, size in sensors:
        known, unit = PARTS.get(name.rpartition("_")[2], ("", UNKNOWN))
        suffixes = list(known) if len(known) == size else [str(index) for index in range(size)]
        unit = "m" if name == GRIPPER else unit if len(known) == size else UNKNOWN
        names += [f"{name}_{suffix}" for suffix in suffixes]
        units += [unit] * size
    return ObservationField((len(names),), tuple(names), tuple(units))


def action_spec(*, is_absolute: bool, rotation: str, has_gripper: bool, control_hz: float) -> ActionSpec:
    """Displacements or poses of the end effector in the world's frame, and the motion of the gripper, 1 to close it.

    rotation: of poses, axis_angle (rad) or rotation_6d. Displacements are fractions of the controller's largest, -1 to 1.
    """
    if is_absolute:
        size, unit = representation_size(rotation), "rad" if rotation == "axis_angle" else "1"
        labels = (
            [f"end_effector_r{axis}" for axis in "xyz"]
            if size == 3
            else [f"end_effector_{rotation}_{i}" for i in range(size)]
        )
        hand = [ActionDimension(f"end_effector_{axis}", "m", "world") for axis in "xyz"]
        hand += [ActionDimension(label, unit, "world", rotation=rotation) for label in labels]
    else:
        labels = [f"end_effector_{axis}" for axis in ("x", "y", "z", "rx", "ry", "rz")]
        hand = [ActionDimension(label, NORMALIZED, "world", reference="delta", low=-1.0, high=1.0) for label in labels]
    gripper = ActionDimension("gripper_closing", NORMALIZED, "gripper", reference="delta", low=-1.0, high=1.0)
    return ActionSpec((*hand, *([gripper] if has_gripper else [])), control_hz)
