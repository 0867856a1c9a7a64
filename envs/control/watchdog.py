"""The process between control loop and robot: it owns the robot, keeps the commands safe, and holds when anything fails.

It imports neither torch nor a simulator, and waits for nobody: commands go out at their deadlines, from the newest plan. If
the loop ends, however it ends, its end of the pipe closes, and the robot holds.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from flowchunk.datasets.errors import FlowchunkError, RobotError
from flowchunk.datasets.specs import ActionSpec, ObservationSpec
from flowchunk.envs.control.clock import Deadlines
from flowchunk.envs.control.command_stream import STALE_AFTER, CommandStream
from flowchunk.envs.control.driven_robot import DrivenRobot, Observed, connected
from flowchunk.envs.control.limiter import MotionLimits
from flowchunk.envs.control.liveness import is_ending
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
from flowchunk.envs.control.observed_range import ObservedRange
from flowchunk.envs.control.realtime import RealTimeOptions, apply_measures
from flowchunk.envs.control.robot_lock import only_loop
from flowchunk.envs.control.sender import Sender
from flowchunk.envs.robots.robot import Robot

OUTSTANDING_TICKS = 2  # that the loop has not answered; more would pile up
TRIAL_TICKS = 25
ANSWER_SHARE = 0.3  # of a period: how long a command at the chunk's own rate waits for the loop's answer
SENDING_TIME = 1.0  # s, for the last messages to the loop


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
    stop_signals: list[str] = []
    for number in (signal.SIGINT, signal.SIGTSTP, signal.SIGQUIT):  # keys of a terminal, for all of its processes
        signal.signal(number, signal.SIG_IGN)  # they stop the loop, and the robot is held for that
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, lambda received, _: stop_signals.append(signal.Signals(received).name))
    sender = Sender(connection)
    try:
        robot = make_robot()
        with only_loop(robot.name), connected(robot, dry_run=options.dry_run):
            Watchdog(connection, sender, robot, options, stop_signals).run()
    except EOFError:
        pass  # the loop is gone; the robot holds
    except Exception as error:  # of a driver: it may raise anything
        kind = type(error).__name__
        sender.post(Failed(kind, str(error) if isinstance(error, FlowchunkError) else f"{kind}: {error}"))
    finally:
        sender.close(SENDING_TIME)


class Watchdog:
    """The state of the process."""

    def __init__(
        self, connection: Connection, sender: Sender, robot: Robot, options: WatchdogOptions, stop_signals: list[str]
    ) -> None:
        self.connection, self.sender, self.options, self.stop_signals = connection, sender, options, stop_signals
        self.specs = (robot.observation_spec, robot.action_spec)
        self.rate = options.rate or robot.command_hz
        self.robot = DrivenRobot(
            robot,
            options.observation_spec,
            options.action_spec,
            sensor_timeout=options.sensor_timeout,
            dry_run=options.dry_run,
        )
        limits = options.limits
        bounded = MotionLimits(
            np.maximum(limits.low, self.robot.low),
            np.minimum(limits.high, self.robot.high),
            limits.velocity,
            limits.acceleration,
            limits.is_position,
        )
        self.stream = CommandStream(options.action_spec, bounded, self.rate, options.ramp)
        self.loop_pid = os.getppid()
        self.stopped: str | None = None
        self.is_holding = self.is_held = True
        self.is_in_episode = self.was_stale = False
        self.heard_at = self.limiting = 0.0
        self.events: list[Event] = []
        self.intervening: set[tuple[str, tuple[int, ...]]] = set()
        self.timings: list[Timing] = []
        self.unanswered = 0
        self.missed = 0

    def run(self) -> None:
        """Serve the loop until it says close. Raises EOFError if it is gone."""
        self.stream.hold_at(self.robot.hold())
        measures = apply_measures(self.options.realtime)
        if isinstance(self.connection.recv(), Close):
            return
        self.sender.post(self._ready(measures))
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
            observe = self._observe(deadline, is_late=late > self.options.sensor_timeout / 2)
            is_awaited = self.rate == self.options.action_spec.control_hz
            if is_awaited and self.connection.poll(ANSWER_SHARE * control.period) and not self._listen():
                return False
        began = time.monotonic()
        if self._command(now):
            self.timings.append(Timing(late, observe, self.limiting, time.monotonic() - began))
            self.limiting = 0.0
        return True

    def _ready(self, measures: Mapping[str, str]) -> RobotReady:
        observe = [self._timed_observation() for _ in range(TRIAL_TICKS)]
        trial = Deadlines(self.rate)
        late = [trial.wait()[1] for _ in range(min(2 * TRIAL_TICKS, 5 + round(self.rate)))]  # for a second at most
        return RobotReady(
            self.robot.name,
            *self.specs,
            self.rate,
            self.robot.can_reset,
            self.stream.last,
            np.array(observe),
            np.array(late),
            measures,
        )

    def _timed_observation(self) -> float:
        began = time.monotonic()
        self.robot.observe()
        return time.monotonic() - began

    # Messages of the loop.

    def _listen(self) -> bool:
        """Take all messages; False if the loop closes. Raises EOFError if it is gone."""
        if is_ending(self.loop_pid):
            raise EOFError
        while self.connection.poll():
            try:
                message = self.connection.recv()
            except OSError as error:  # killed while it was sending
                raise EOFError from error
            self.unanswered, self.heard_at = 0, time.monotonic()
            if isinstance(message, Close):
                return False
            self._take(message)
        return True

    def _take(self, message: Any) -> None:
        if isinstance(message, Stop):
            self._stop(message.reason)
        elif isinstance(message, Halt):
            self.is_in_episode = False
            self._hold()
        elif self.stopped is not None or isinstance(message, Wait):
            return
        elif isinstance(message, Reset):
            self._reset(message.seed)
        elif isinstance(message, Approach):
            self._approach(message.target)
        elif isinstance(message, Play):
            self._play(message)

    def _reset(self, seed: int) -> None:
        try:
            self.robot.reset(seed)
        except RobotError as error:
            self._stop(str(error))
            return
        self._hold()  # where it is now
        self.is_in_episode = True

    def _approach(self, target: np.ndarray) -> None:
        if not np.isfinite(target).all():
            self._stop("the first target is not finite")
            return
        self.stream.approach(target)
        if fixed := self.stream.out_of_reach():
            names = [self.options.action_spec.names[dimension] for dimension in fixed]
            self._stop(
                f"the first target cannot be approached: {names} are elsewhere and must not move, their velocity limit is 0; "
                "move them by hand, or give safety.velocity_max"
            )
            return
        self.is_holding = False

    def _play(self, plan: Play) -> None:
        began = time.monotonic()
        if not np.isfinite(plan.targets).all():
            self._stop("the plan has targets that are not finite")
            return
        self.stream.play(plan.start, plan.targets)
        self.limiting = time.monotonic() - began
        self.is_holding = False
        interventions, self.stream.interventions = self.stream.interventions, []
        for kind, dimensions in interventions:
            if (kind, dimensions) in self.intervening:
                continue  # a plan is limited again at every step: what goes on is one intervention
            names = ", ".join(self.options.action_spec.names[dimension] for dimension in dimensions)
            self.events.append(Event(began, kind, names))
        self.intervening = set(interventions)

    # The robot.

    def _observe(self, deadline: float, *, is_late: bool) -> float:
        began = time.monotonic()
        try:
            observed = self.robot.observe()
        except FlowchunkError as error:
            self._stop(str(error))
            self._send(Tick(deadline, {}, {}, None, True, missed=self.missed, stopped=self.stopped))
            return time.monotonic() - began
        seconds = time.monotonic() - began
        if self.stopped is None and self.is_in_episode:
            self._check_observation(observed, is_late=is_late)
        timings, self.timings = tuple(self.timings), []
        self._send(
            Tick(
                deadline,
                observed.values,
                observed.times,
                self.stream.target,
                self.is_holding,
                timings,
                self._take_events(),
                self.missed,
                self.stream.has_arrived,
                self.stopped,
                self.robot.outcome() if self.stopped is None else {},
            )
        )
        return seconds

    def _take_events(self) -> tuple[Event, ...]:
        events, self.events = tuple(self.events), []
        return events

    def _send(self, tick: Tick) -> None:
        if self.unanswered >= OUTSTANDING_TICKS:
            self.events = [*tick.events, *self.events]
            return
        self.unanswered += 1
        self.sender.post(tick)

    def _check_observation(self, observed: Observed, *, is_late: bool) -> None:
        """is_late: this process did not run for a while, so that what has been measured meanwhile may not have arrived."""
        for key, value in observed.values.items():
            if not np.isfinite(value).all():
                self._stop(f"the observation {key!r} has values that are not finite (NaN or infinite)")
        lost = {} if is_late else observed.lost
        for key, age in lost.items():
            self._stop(
                f"the sensor of {key!r} is lost: its last measurement is {age:.3f} s old, but at most "
                f"{self.options.sensor_timeout:g} s are allowed (safety.sensor_timeout)"
            )
        if (far := self.options.observed.far_outside(observed.values, self.options.margin)) is not None:
            self._stop(
                f"the observation is far outside the training data: {far} (safety.margin={self.options.margin:g})"
            )

    def _check_stops(self) -> None:
        if self.stop_signals:
            self._stop(f"emergency stop by signal {self.stop_signals[0]}")
        if self.options.stop_file.exists():
            self._stop(f"emergency stop by the file {self.options.stop_file}")

    def _command(self, now: float) -> bool:
        """Whether there is something to command now, and the robot took it."""
        if not self.is_held:
            self._hold()
        if self.is_holding:
            return False
        is_silent = time.monotonic() - self.heard_at > STALE_AFTER * self.stream.period
        is_stale = is_silent or self.stream.is_stale(now)
        if is_stale and not self.was_stale:
            self.events.append(Event(now, "stale", "the plan was not renewed in time: holding until it is"))
        self.was_stale = is_stale
        command = self.stream.hold_still(now) if is_stale else self.stream.command(now)
        if command is None:
            return False
        try:
            self.robot.command(command)
        except FlowchunkError as error:
            self._stop(str(error))
            return False
        return True

    def _hold(self) -> None:
        """Hold. A robot that does not is commanded nothing, and is asked again at every command tick."""
        self.is_holding, held = True, None
        try:
            held = self.robot.hold()
            self.is_held = True
        except FlowchunkError as error:
            self.is_held = False
            self._stop(str(error))
        self.stream.hold_at(held)

    def _stop(self, reason: str) -> None:
        """Hold for good; the first reason counts. The loop hears of it first, as a robot may be slow to answer."""
        if self.stopped is not None:
            return
        now, self.stopped = time.monotonic(), reason
        self.events.append(Event(now, "stop", reason))
        self._send(Tick(now, {}, {}, None, True, events=self._take_events(), missed=self.missed, stopped=reason))
        if self.is_held:  # otherwise it is being tried
            self._hold()
