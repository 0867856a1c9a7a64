"""A robot as the watchdog drives it: in the policy's order, and whatever its driver raises is a RobotError."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np

from flowchunk.datasets.errors import FlowchunkError, RobotError
from flowchunk.datasets.specs import ActionSpec, ObservationSpec
from flowchunk.envs.robots.matching import SpecMatch
from flowchunk.envs.robots.robot import ResettableRobot, Robot


@dataclass(frozen=True)
class Observed:
    """values, times: with the policy's keys. lost: {key: age in seconds} of sensors that count as lost."""

    values: Mapping[str, np.ndarray]
    times: Mapping[str, float]
    lost: Mapping[str, float]


class DrivenRobot:
    """A connected robot. With ``dry_run`` it is only observed: never commanded, held or reset.

    sensor_timeout: s, the oldest that a measurement may be. Raises SpecMismatchError if it does not fit the policy.
    """

    def __init__(
        self,
        robot: Robot,
        observation_spec: ObservationSpec,
        action_spec: ActionSpec,
        *,
        sensor_timeout: float,
        dry_run: bool,
    ) -> None:
        self._robot, self._sensor_timeout, self._dry_run = robot, sensor_timeout, dry_run
        self.name = robot.name
        self._match = SpecMatch.of(observation_spec, action_spec, robot)
        self.low, self.high = (self._match.policy_action(bound) for bound in (self._match.low, self._match.high))
        self.can_reset = isinstance(robot, ResettableRobot)
        self._is_lockstep = bool(getattr(robot, "is_lockstep", False))

    def observe(self) -> Observed:
        """The newest measurements. Raises RobotError."""
        with robot_errors(self.name, "be read"):
            reading = self._robot.observe()
        values, times = self._match.observation(reading), self._match.times(reading)
        if self._is_lockstep:  # nothing is newer than its last step
            return Observed(values, times, {})
        return Observed(values, times, self._match.stale_keys(reading, time.monotonic(), self._sensor_timeout))

    def command(self, action: np.ndarray) -> None:
        """Send an action (D,). Raises RobotError."""
        if not self._dry_run:
            with robot_errors(self.name, "be commanded"):
                self._robot.command(self._match.action(action))

    def hold(self) -> np.ndarray | None:
        """Hold, and return the action (D,) that does it; None in a dry run. Raises RobotError."""
        if self._dry_run:
            return None
        with robot_errors(self.name, "be held"):
            return self._match.policy_action(np.asarray(self._robot.hold(), np.float64))

    def reset(self, seed: int) -> None:
        """Start an episode, if the robot can. Raises RobotError."""
        if isinstance(self._robot, ResettableRobot) and not self._dry_run:
            with robot_errors(self.name, "start an episode"):
                self._robot.reset(seed)

    def outcome(self) -> Mapping[str, float | bool]:
        """What the robot knows of the episode's outcome; nothing if it does not."""
        if not isinstance(self._robot, ResettableRobot):
            return {}
        with suppress(Exception):  # of a driver: whatever it raises, the robot is still held
            return self._robot.outcome()
        return {}


@contextmanager
def connected(robot: Robot, *, dry_run: bool) -> Iterator[None]:
    """Connect a robot; at the end hold it, whatever its ``close`` does, and close it. Raises RobotError."""
    with robot_errors(robot.name, "be connected"):
        robot.connect()
    try:
        yield
    finally:
        if not dry_run:
            with suppress(Exception):  # it is closed all the same
                robot.hold()
        with robot_errors(robot.name, "be closed"):
            robot.close()


@contextmanager
def robot_errors(name: str, verb: str) -> Iterator[None]:
    """Whatever a driver raises, as a RobotError; this package's own errors as they are."""
    try:
        yield
    except FlowchunkError:
        raise
    except Exception as error:
        raise RobotError(f"{name} cannot {verb}: {type(error).__name__}: {error}") from error
