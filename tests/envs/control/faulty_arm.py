"""A driver that writes down each call, and fails as it is told to by a file."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from flowchunk.envs.robots.robot import Reading

JOINTS = ("shoulder", "elbow", "wrist")
CONTROL_HZ, RATE = 20.0, 100.0


def arm_specs(joints: tuple[str, ...] = JOINTS) -> tuple[ObservationSpec, ActionSpec]:
    field = ObservationField((len(joints),), joints, ("rad",) * len(joints))
    dimensions = tuple(ActionDimension(name, "rad", "joint", low=-2.0, high=2.0) for name in joints)
    return ObservationSpec({"joints": field}), ActionSpec(dimensions, CONTROL_HZ)


class FaultyArm:
    """An arm that is at once where it is commanded to be, and writes down each call.

    The file ``fault`` in ``folder`` holds "METHOD:FAULT": raise, block, nan, far, old, ahead, or shape. image: shape of a
    camera image that it also has.
    """

    def __init__(
        self,
        folder: str,
        *,
        joints: tuple[str, ...] = JOINTS,
        start: float = 0.0,
        image: tuple[int, int, int] | None = None,
        is_lockstep: bool = False,
        observe_seconds: float = 0.0,
    ) -> None:
        self.folder, self.is_lockstep = Path(folder), is_lockstep
        self.name, self.command_hz = f"arm:{folder}", RATE
        self.observation_spec, self.action_spec = arm_specs(joints)
        if image is not None:
            camera = ObservationField(image, camera="top")
            self.observation_spec = ObservationSpec({**self.observation_spec.fields, "image": camera})
        self._image, self._observe_seconds = image, observe_seconds
        self.position = np.full(len(joints), start)

    def connect(self) -> None:
        self._fault("connect")
        self._log("connect")

    def observe(self) -> Reading:
        fault = self._fault("observe")
        time.sleep(self._observe_seconds)
        joints = {"nan": np.full(3, np.nan), "far": np.full(3, 9.0), "shape": np.zeros(2)}.get(fault, self.position)
        now = time.monotonic() + {"old": -5.0, "ahead": 5.0}.get(fault, 0.0)
        values = {"joints": joints.copy()}
        if self._image is not None:
            values["image"] = np.zeros(self._image, np.uint8)
        return Reading(values, dict.fromkeys(values, now))

    def command(self, action: np.ndarray) -> None:
        self._fault("command")
        self.position = np.array(action, float)
        self._log("command", dict(zip(self.action_spec.names, action.tolist(), strict=True)))

    def hold(self) -> np.ndarray:
        self._fault("hold")
        self._log("hold")
        return self.position.copy()

    def close(self) -> None:
        self._log("close")

    def _fault(self, method: str) -> str:
        try:
            where, _, fault = (self.folder / "fault").read_text().partition(":")
        except FileNotFoundError:
            return ""
        if where != method:
            return ""
        if fault == "raise":
            raise KeyError("no such register")
        while fault == "block":
            time.sleep(0.01)
        return fault

    def _log(self, event: str, values: Mapping[str, float] | None = None) -> None:
        with (self.folder / "log").open("a") as log:
            log.write(json.dumps({"time": time.monotonic(), "event": event, "values": values}) + "\n")


class ResettableArm(FaultyArm):
    """One that starts episodes by itself."""

    def reset(self, seed: int) -> None:
        self._fault("reset")
        self._log("reset", {"seed": seed})

    def outcome(self) -> Mapping[str, float | bool]:
        self._fault("outcome")
        return {"score": 0.5, "is_success": False}
