"""What the control loop requires of a robot, real or simulated. A driver of your own is a class with these members."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from flowchunk.datasets.specs import ActionSpec, ObservationSpec


@dataclass(frozen=True)
class Reading:
    """The newest measurement of every key, and when it was made.

    values: {key: array of the shape in the observation spec}; images are uint8 RGB (height, width, 3). times: {key: seconds
    of ``time.monotonic()``}; a key whose sensor brought nothing new keeps its old value and its old time. The arrays may be
    reused in the next ``observe``, but must not change before.
    """

    values: Mapping[str, np.ndarray]
    times: Mapping[str, float]


@runtime_checkable
class Robot(Protocol):
    """A robot, or anything that moves like one. All calls come from one thread of one process, the watchdog's.

    A robot that only moves, and only measures, in ``command`` has ``is_lockstep = True``: its sensors are not lost while it
    holds, although they bring nothing new.
    """

    @property
    def name(self) -> str:
        """Of this piece of hardware, such as "so101:/dev/ttyACM0"; two control loops on one name are refused."""

    @property
    def observation_spec(self) -> ObservationSpec:
        """What it measures. Values are matched with the policy's by their names, so their order is free."""

    @property
    def action_spec(self) -> ActionSpec:
        """What its commands are. Its ``control_hz`` is only used for robots that are simulated at that rate."""

    @property
    def command_hz(self) -> float:
        """How often it wants commands; ``flowchunk run rate=…`` overrides it."""

    def connect(self) -> None:
        """Open the connection, and hold still. Raises RobotError if the robot cannot be reached or is in use."""

    def observe(self) -> Reading:
        """The newest measurements; it should not wait for new ones. Raises RobotError if the robot does not answer."""

    def command(self, action: np.ndarray) -> None:
        """Send one action (D,) in the units of ``action_spec``, without waiting for it to be carried out.

        Without a new command for some periods a robot should hold by itself: nobody else can if this computer stops.
        Raises RobotError if the robot does not answer.
        """

    def hold(self) -> np.ndarray:
        """Stop at once and stay there until the next command; returns the action (D,) that keeps it where it is.

        See ``holding.holding_action`` for what that is for positions, velocities and torques.
        """

    def close(self) -> None:
        """Hold, and close the connection; may be called more than once."""


@runtime_checkable
class ResettableRobot(Robot, Protocol):
    """A robot that starts episodes by itself and knows their outcome: simulated ones."""

    def reset(self, seed: int) -> None:
        """Start the episode of this seed, and hold."""

    def outcome(self) -> Mapping[str, float | bool]:
        """``score`` and ``is_success`` of the episode so far; it should not wait."""
