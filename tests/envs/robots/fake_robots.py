"""Robots for tests that need no hardware and no physics."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from flowchunk.envs.robots.robot import Reading

JOINTS = ("shoulder", "elbow", "wrist")


def arm_field(names: tuple[str, ...] = JOINTS, unit: str = "rad") -> ObservationField:
    return ObservationField((len(names),), names, (unit,) * len(names))


def image_field(camera: str, shape: tuple[int, ...] = (4, 6, 3)) -> ObservationField:
    return ObservationField(shape, camera=camera)


def arm_actions(names: tuple[str, ...] = JOINTS, low: float | None = -1.0, high: float | None = 1.0) -> ActionSpec:
    return ActionSpec(tuple(ActionDimension(name, "rad", "joint", low=low, high=high) for name in names), control_hz=50)


@dataclass
class Arm:
    """An arm that is where it was commanded to be; its measurements are what ``values`` says, or zeros."""

    observation_spec: ObservationSpec = field(default_factory=lambda: ObservationSpec({"joints": arm_field()}))
    action_spec: ActionSpec = field(default_factory=arm_actions)
    image_channels: Mapping[str, str] = field(default_factory=dict)
    name: str = "arm:test"
    command_hz: float = 50.0
    position: np.ndarray = field(default_factory=lambda: np.zeros(3))

    def connect(self) -> None:
        self.position = np.zeros(3)

    def observe(self) -> Reading:
        images = {key: np.zeros(image.shape, np.uint8) for key, image in self.observation_spec.images.items()}
        values = {key: self.position.copy() for key in self.observation_spec.values}
        return Reading({**values, **images}, dict.fromkeys(self.observation_spec.fields, time.monotonic()))

    def command(self, action: np.ndarray) -> None:
        self.position = np.array(action, dtype=float)

    def hold(self) -> np.ndarray:
        return self.position.copy()

    def close(self) -> None:
        pass
