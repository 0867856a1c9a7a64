"""Check a robot before a policy moves it: that a driver keeps the contract of ``Robot``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flowchunk.datasets.errors import RobotError
from flowchunk.datasets.specs import ActionSpec, ObservationSpec
from flowchunk.envs.robots.robot import Reading, Robot

METHODS = ("connect", "observe", "command", "hold", "close")
MAX_AGE = 1.0  # s


@dataclass(frozen=True)
class RobotCheck:
    """What a check has measured: seconds that ``observe`` takes, typically and at most, and {key: seconds} how old the last
    reading was."""

    observe_seconds: float
    slowest_seconds: float
    age: Mapping[str, float]


def check_robot(robot: Robot, *, seconds: float = 1.0) -> RobotCheck:
    """Connect to a robot, hold it, and read it for some seconds; then close it. It should not move.

    Checks that its members are there, that readings have the keys, shapes and types of ``observation_spec``, that every
    sensor brings new measurements whose times are those of ``time.monotonic()``, that nine readings in ten take less than a
    command period, and that ``hold`` returns an action (D,) within the bounds of ``action_spec``.

    Raises RobotError that says what to correct in the driver.
    """
    if missing := [name for name in METHODS if not callable(getattr(robot, name, None))]:
        raise RobotError(
            f"{type(robot).__name__} has no {missing}; give the driver every method of flowchunk.envs.robots.Robot"
        )
    robot.connect()
    try:
        _require_members(robot)
        check = _check_readings(robot, _check_hold(robot), seconds)
        _check_hold(robot)
    finally:
        robot.close()
    robot.close()  # may be called more than once
    return check


def _require_members(robot: Robot) -> None:
    kinds = {"observation_spec": ObservationSpec, "action_spec": ActionSpec, "name": str}
    for name, kind in kinds.items():
        if not isinstance(found := getattr(robot, name, None), kind):
            raise RobotError(f"{type(robot).__name__}.{name}: expected an object of {kind.__name__}, got {found!r}")
    if not (isinstance(robot.command_hz, int | float) and 0 < robot.command_hz < np.inf):
        raise RobotError(f"{robot.name}: expected command_hz above 0, got {robot.command_hz!r}")


def _check_hold(robot: Robot) -> np.ndarray:
    action = np.asarray(robot.hold())
    spec = robot.action_spec
    if action.shape != (spec.size,) or action.dtype.kind not in "fiu" or not np.isfinite(action).all():
        raise RobotError(
            f"{robot.name}.hold(): expected {spec.size} finite numbers for {list(spec.names)}, got {action!r}; return the "
            "action that keeps the robot where it is"
        )
    for dimension, value in zip(spec.dimensions, action.tolist(), strict=True):
        low = -np.inf if dimension.low is None else dimension.low
        high = np.inf if dimension.high is None else dimension.high
        if not low <= value <= high:
            raise RobotError(
                f"{robot.name}.hold(): {dimension.name!r} is {value:g} {dimension.unit}, outside its bounds {low:g} to "
                f"{high:g}; correct the bounds or the unit in action_spec, or clip what is returned"
            )
    return action


def _check_readings(robot: Robot, held: np.ndarray, seconds: float) -> RobotCheck:
    """Read, and command to stay, once in each command period, as a control loop does."""
    period, durations = 1 / robot.command_hz, []
    first = previous = robot.observe()
    end = time.monotonic() + seconds
    while (start := time.monotonic()) < end:
        reading = robot.observe()
        durations.append(time.monotonic() - start)
        _check_reading(robot, reading, previous)
        robot.command(held)
        previous = reading
        time.sleep(max(0.0, start + period - time.monotonic()))
    if stuck := [key for key in robot.observation_spec.fields if previous.times[key] == first.times[key]]:
        raise RobotError(
            f"{robot.name}: nothing new from {stuck} in {seconds:g} s; check these sensors, and that the driver gives each "
            "measurement its time"
        )
    typical, slow, slowest = np.quantile(durations, (0.5, 0.9, 1.0)).tolist()
    if slow > period:
        raise RobotError(
            f"{robot.name}.observe() took {slow * 1000:.1f} ms and more, longer than a period of {robot.command_hz:g} "
            "commands per second; read slow sensors in a thread of the driver and return the newest, or lower command_hz"
        )
    now = time.monotonic()
    return RobotCheck(typical, slowest, {key: now - moment for key, moment in previous.times.items()})


def _check_reading(robot: Robot, reading: Reading, previous: Reading) -> None:
    now = time.monotonic()
    for key, field in robot.observation_spec.fields.items():
        if key not in reading.values or key not in reading.times:
            raise RobotError(
                f"{robot.name}.observe(): expected {key!r} in values and times, got {sorted(reading.values)} and "
                f"{sorted(reading.times)}; return every key at each call"
            )
        values = np.asarray(reading.values[key])
        expected = "uint8" if field.is_image else "numbers"
        if values.shape != field.shape or (
            values.dtype != np.uint8 if field.is_image else values.dtype.kind not in "biuf"
        ):
            raise RobotError(
                f"{robot.name}.observe(): {key!r}: expected {expected} of shape {field.shape}, got {values.dtype} of shape "
                f"{values.shape}; correct the driver or its observation_spec"
            )
        if not np.isfinite(values).all():
            raise RobotError(f"{robot.name}.observe(): {key!r} is not finite: {values}; leave out failed measurements")
        if reading.times[key] < previous.times.get(key, -np.inf):
            raise RobotError(f"{robot.name}.observe(): the time of {key!r} went back; take it from time.monotonic()")
        if not -0.01 < (age := now - reading.times[key]) < MAX_AGE:
            raise RobotError(
                f"{robot.name}.observe(): {key!r} is {age:.3f} s old by its time; take times from time.monotonic() of this "
                "computer, when the measurement is made"
            )
