"""The process between control loop and robot: it owns the robot, keeps the commands safe, and holds when anything fails.

It imports neither torch nor a simulator, and waits for nobody: commands go out at their deadlines, from the newest plan. If
the loop ends, however it ends, its end of the pipe closes, and the robot holds.
"""

from __future__ import annotations

import fcntl
import hashlib
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from flowchunk.datasets.errors import FlowchunkError, RobotError
from flowchunk.datasets.specs import ActionSpec, ObservationSpec
from flowchunk.envs.control.clock import Deadlines
from flowchunk.envs.control.command_stream import CommandStream
from flowchunk.envs.control.limiter import MotionLimits
from flowchunk.envs.control.messages import (
    Approach,
    Close,
    Event,
    Failed,
    Halt,
    Play,
    Reset,
    RobotReady,
    Stop,
    Tick,
    Timing,
    Wait,
)
from flowchunk.envs.control.realtime import RealTimeOptions, apply_measures
from flowchunk.envs.robots.matching import SpecMatch
from flowchunk.envs.robots.robot import Reading, ResettableRobot, Robot

OUTSTANDING_TICKS = 2  # that the loop has not answered; more would fill the pipe and block
TRIAL_TICKS = 25
ANSWER_SHARE = 0.3  # of a period: how long a command at the chunk's own rate waits for the loop's answer


@dataclass(frozen=True)
class ObservedRange:
    """Where the training data were, per key: low and high, of the value's shape, and indices of angles that wrap."""

    low: Mapping[str, np.ndarray]
    high: Mapping[str, np.ndarray]
    wraps: Mapping[str, tuple[int, ...]]

    def far_outside(self, observation: Mapping[str, np.ndarray], margin: float) -> str | None:
        """The first value that lies more than ``margin`` ranges outside, in words; None if there is none."""
        for key, low in self.low.items():
            value, high = np.asarray(observation[key], np.float64), self.high[key]
            slack = margin * (high - low)
            is_far = ((value < low - slack) | (value > high + slack)) & (high > low)
            is_far.reshape(-1)[list(self.wraps[key])] = False
            if is_far.any():
                index = int(np.flatnonzero(is_far)[0])
                return (
                    f"{key}[{index}] is {value.reshape(-1)[index]:.4g}, but was {low.reshape(-1)[index]:.4g} to "
                    f"{high.reshape(-1)[index]:.4g} in training"
                )
        return None


@dataclass(frozen=True)
class WatchdogOptions:
    """What the watchdog needs to know; picklable.

    limits: in the policy's order. margin: by how many of its ranges an observed value may leave the training data.
    sensor_timeout: s, the oldest that a measurement may be. stop_file: the robot stops when it exists. dry_run: observe, but
    command nothing.
    """

    observation_spec: ObservationSpec
    action_spec: ActionSpec
    rate: float | None
    limits: MotionLimits
    observed: ObservedRange
    margin: float
    sensor_timeout: float
    ramp: float
    stop_file: Path
    dry_run: bool = False
    realtime: RealTimeOptions = field(default_factory=RealTimeOptions)


def run_watchdog(connection: Connection, make_robot: Callable[[], Robot], options: WatchdogOptions) -> None:
    """The process: connect the robot, serve the loop, hold at the end. Faults are reported, and never leave it moving."""
    stop_signal: list[str] = []
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the loop's: it stops the robot in an orderly way
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda received, _: stop_signal.append(signal.Signals(received).name))
    try:
        robot = make_robot()
        with only_loop(robot.name):
            robot.connect()
            try:
                Watchdog(connection, robot, options, stop_signal).run()
            finally:
                robot.close()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the loop is gone; the robot holds
    except (FlowchunkError, OSError, ValueError) as error:
        with suppress(OSError):
            connection.send(Failed(type(error).__name__, str(error)))


@contextmanager
def only_loop(name: str) -> Iterator[None]:
    """Hold the lock of this robot. Raises RobotError if another process has it."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    file = Path(tempfile.gettempdir()) / f"flowchunk-robot-{digest}.lock"
    with file.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RobotError(
                f"another control loop drives the robot {name}; stop it first (it holds the lock {file})"
            ) from error
        yield


class Watchdog:
    """The state of the process."""

    def __init__(self, connection: Connection, robot: Robot, options: WatchdogOptions, stop_signal: list[str]) -> None:
        self.connection, self.robot, self.options, self.stop_signal = connection, robot, options, stop_signal
        self.match = SpecMatch.of(options.observation_spec, options.action_spec, robot)
        self.rate = options.rate or robot.command_hz
        low, high = (self.match.policy_action(bound) for bound in (self.match.low, self.match.high))
        limits = options.limits
        bounded = MotionLimits(
            np.maximum(limits.low, low),
            np.minimum(limits.high, high),
            limits.velocity,
            limits.acceleration,
            limits.is_position,
        )
        self.stream = CommandStream(options.action_spec, bounded, self.rate, options.ramp)
        self.stopped: str | None = None
        self.is_holding = True
        self.was_stale = False
        self.events: list[Event] = []
        self.timings: list[Timing] = []
        self.unanswered = 0
        self.missed = 0

    def run(self) -> None:
        """Serve the loop until it says close, or is gone."""
        self._hold()
        measures = apply_measures(self.options.realtime)
        self.connection.send(self._ready(measures))
        while not self.connection.poll(1.0):
            pass
        start = time.monotonic() + 0.01
        commands = Deadlines(self.rate, start=start)
        control = Deadlines(self.options.action_spec.control_hz, start=start)
        while self._serve(commands, control):
            pass

    def _serve(self, commands: Deadlines, control: Deadlines) -> bool:
        """One command tick; False at the end."""
        before = commands.missed
        now, late = commands.wait()
        self.missed += 0 if self.is_holding else commands.missed - before
        if not self._listen():
            return False
        self._check_stops()
        observe = 0.0
        if now >= control.next - 1e-6:
            while control.next <= now + 1e-6:
                deadline = control.next
                control.number += 1
            observe = self._observe(deadline)
            is_awaited = self.rate == self.options.action_spec.control_hz
            if is_awaited and self.connection.poll(ANSWER_SHARE * control.period) and not self._listen():
                return False
        began = time.monotonic()
        self._command(now)
        self.timings.append(Timing(late, observe, 0.0, time.monotonic() - began))
        return True

    def _ready(self, measures: Mapping[str, str]) -> RobotReady:
        observe = [self._timed_observation() for _ in range(TRIAL_TICKS)]
        trial = Deadlines(self.rate)
        late = [trial.wait()[1] for _ in range(TRIAL_TICKS)]
        return RobotReady(
            self.robot.name,
            self.robot.observation_spec,
            self.robot.action_spec,
            self.rate,
            isinstance(self.robot, ResettableRobot),
            self.stream.last,
            np.array(observe),
            np.array(late),
            measures,
        )

    def _timed_observation(self) -> float:
        began = time.monotonic()
        self.match.observation(self.robot.observe())
        return time.monotonic() - began

    # Messages of the loop.

    def _listen(self) -> bool:
        """Take all messages; False if the loop closes. Raises EOFError if it is gone."""
        while self.connection.poll():
            message = self.connection.recv()
            self.unanswered = 0
            if isinstance(message, Close):
                self._hold()
                return False
            self._take(message)
        return True

    def _take(self, message: Any) -> None:
        if isinstance(message, Stop):
            self._stop(message.reason)
        elif isinstance(message, Halt):
            self._hold()
        elif self.stopped is not None or isinstance(message, Wait):
            return
        elif isinstance(message, Reset):
            if isinstance(self.robot, ResettableRobot) and not self.options.dry_run:
                self.robot.reset(message.seed)
            self._hold()
        elif isinstance(message, Approach):
            self.stream.approach(message.target)
            self.is_holding = False
        elif isinstance(message, Play):
            self._play(message)

    def _play(self, plan: Play) -> None:
        began = time.monotonic()
        if not np.isfinite(plan.targets).all():
            self._stop("the plan has targets that are not finite")
            return
        self.stream.play(plan.start, plan.targets)
        self.is_holding = False
        for kind, dimensions in self.stream.interventions:
            names = ", ".join(self.options.action_spec.names[dimension] for dimension in dimensions)
            self.events.append(Event(began, kind, names))
        self.stream.interventions.clear()

    # The robot.

    def _observe(self, deadline: float) -> float:
        began = time.monotonic()
        try:
            reading = self.robot.observe()
            observation = self.match.observation(reading)
        except FlowchunkError as error:
            self._stop(str(error))
            self._send(Tick(deadline, {}, {}, None, True, stopped=self.stopped, events=self._take_events()))
            return time.monotonic() - began
        seconds = time.monotonic() - began
        if self.stopped is None:
            self._check_observation(observation, reading)
        timings, self.timings = tuple(self.timings), []
        self._send(
            Tick(
                deadline,
                observation,
                self.match.times(reading),
                self.stream.target,
                self.is_holding,
                timings,
                self._take_events(),
                self.missed,
                self.stream.has_arrived,
                self.stopped,
                self._outcome(),
            )
        )
        return seconds

    def _outcome(self) -> Mapping[str, float | bool]:
        """Of the episode, while the robot holds: asking may take a while."""
        if not self.is_holding or not isinstance(self.robot, ResettableRobot):
            return {}
        with suppress(RobotError):
            return self.robot.outcome()
        return {}

    def _take_events(self) -> tuple[Event, ...]:
        events, self.events = tuple(self.events), []
        return events

    def _send(self, tick: Tick) -> None:
        if self.unanswered >= OUTSTANDING_TICKS and tick.stopped is None:
            self.events = [*tick.events, *self.events]
            return
        self.unanswered += 1
        self.connection.send(tick)

    def _check_observation(self, observation: Mapping[str, np.ndarray], reading: Reading) -> None:
        for key, value in observation.items():
            if not np.isfinite(value).all():
                self._stop(f"the observation {key!r} has values that are not finite (NaN or infinite)")
        allowed = self.options.sensor_timeout
        for key, age in self.match.stale_keys(reading, time.monotonic(), allowed).items():
            self._stop(
                f"the sensor of {key!r} is lost: its last measurement is {age:.3f} s old, but at most {allowed:g} s are "
                "allowed (safety.sensor_timeout)"
            )
        if (far := self.options.observed.far_outside(observation, self.options.margin)) is not None:
            self._stop(
                f"the observation is far outside the training data: {far} (safety.margin={self.options.margin:g})"
            )

    def _check_stops(self) -> None:
        if self.stop_signal:
            self._stop(f"emergency stop by signal {self.stop_signal[0]}")
        if self.options.stop_file.exists():
            self._stop(f"emergency stop by the file {self.options.stop_file}")

    def _command(self, now: float) -> None:
        if self.is_holding:
            return
        is_stale = self.stream.is_stale(now)
        if is_stale and not self.was_stale:
            self.events.append(Event(now, "stale", "the plan was not renewed in time: holding until it is"))
        self.was_stale = is_stale
        command = self.stream.hold_still(now) if is_stale else self.stream.command(now)
        if command is None or self.options.dry_run:
            return
        try:
            self.robot.command(self.match.action(command))
        except FlowchunkError as error:
            self._stop(str(error))

    def _hold(self) -> None:
        self.is_holding = True
        held = None
        if not self.options.dry_run:
            held = self.match.policy_action(np.asarray(self.robot.hold(), np.float64))
        self.stream.hold_at(held)

    def _stop(self, reason: str) -> None:
        """Hold for good; the first reason counts."""
        if self.stopped is not None:
            return
        self.stopped = reason
        self.events.append(Event(time.monotonic(), "stop", reason))
        with suppress(FlowchunkError):  # a robot that does not answer cannot be held from here
            self._hold()
        self.is_holding = True
