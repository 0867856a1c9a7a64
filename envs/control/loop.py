"""The control loop: at each control step observe, execute chunks, and ask for the next; it never waits for the network."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flowchunk.datasets.errors import RobotError
from flowchunk.datasets.specs import ActionSpec
from flowchunk.envs.control.messages import (
    Approach,
    Halt,
    Play,
    Prediction,
    PredictionRequest,
    Reset,
    Stop,
    Tick,
    Wait,
)
from flowchunk.envs.control.processes import Helper, with_messages
from flowchunk.envs.control.run_log import RunLog
from flowchunk.envs.robots.holding import holding_action
from flowchunk.policy.execution.executor import ChunkExecution, ChunkExecutor, ChunkRequest
from flowchunk.policy.execution.history import ObservationHistory

ANSWER_SHARE = 0.3  # of a control period: how long a step waits for a chunk that is expected within it
SILENCE = 1.0  # s without a word from the watchdog after which the robot counts as lost
CHECKING_PERIOD = 0.01  # s, in which the end of the inference process is noticed
RESETTING_TIME = 60.0  # s that a robot may take to start an episode


@dataclass(frozen=True)
class EpisodeEnd:
    """Why an episode ended ("time", what ``check`` said, or "stopped" with the reason), and the outcome if it is known."""

    cause: str
    reason: str = ""
    outcome: Mapping[str, float | bool] = field(default_factory=dict)


@dataclass
class Recording:
    """The observations and commands of an episode, one per control step."""

    observations: dict[str, list[np.ndarray]] = field(default_factory=dict)
    actions: list[np.ndarray] = field(default_factory=list)

    def add(self, observation: Mapping[str, np.ndarray], action: np.ndarray) -> None:
        """A control step."""
        for key, value in observation.items():
            self.observations.setdefault(key, []).append(value)
        self.actions.append(action)


@dataclass
class ControlLoop:
    """Runs episodes on a robot, between the watchdog and the inference process.

    expected_seconds: that a prediction takes; chunks that are expected within a fraction of a control period are waited for,
    so that they are executed at once, as in simulation. check: called at every control step; a text ends the episode.
    """

    watchdog: Helper
    inference: Helper
    execution: ChunkExecution
    action_spec: ActionSpec
    log: RunLog
    expected_seconds: float
    is_robot_placed: bool = True
    check: Callable[[Tick], str | None] = lambda tick: None

    def __post_init__(self) -> None:
        self.control_hz = self.action_spec.control_hz
        self._executor = ChunkExecutor(
            self.execution, hold=lambda last: holding_action(self.action_spec, measured=None, last=last)
        )
        self._history = ObservationHistory(self.execution.observation_steps, period=1 / self.control_hz)
        self._request: tuple[int, ChunkRequest, float] | None = None
        self._number = 0
        self._seed = 0
        self._commanded: Tick | None = None
        self._arrived: deque[Prediction] = deque()

    @property
    def delay(self) -> int:
        """Control steps that a prediction takes at present."""
        return self._executor.delay

    def run_episode(self, *, seed: int, seconds: float, recording: Recording | None = None) -> EpisodeEnd:
        """One episode: start, approach the first target, and execute chunks until something ends it. The robot then holds.

        seed: of a simulated robot's start, and of the noise. Raises RobotError if watchdog or inference are gone.
        """
        try:
            return self._run_episode(seed, seconds, recording)
        except BaseException as error:
            self.watchdog.send(Stop(f"the control loop ended: {error or type(error).__name__}"))
            raise

    def _run_episode(self, seed: int, seconds: float, recording: Recording | None) -> EpisodeEnd:
        self._seed = seed
        self.watchdog.send(Reset(seed))
        tick = self._next_tick(after=time.monotonic(), silence=RESETTING_TIME)
        end = self._ended(tick)
        if self.is_robot_placed and end is None:
            tick, end = self._approach(tick)
        self._begin(tick)
        self.log.episode_starts.append(len(self.log.times))
        started = tick.time
        while end is None:
            end = self._step(tick, recording)
            if end is None and tick.time - started >= seconds - 0.5 / self.control_hz:
                end = EpisodeEnd("time")
            if end is None:
                tick = self._next_tick()
        return self._finish(end)

    # Steps.

    def _begin(self, tick: Tick) -> None:
        """Forget all that was planned, and start from this observation.

        The chunk of an earlier request may still come; it is recognized by its number, and dropped.
        """
        self._executor.reset()
        self._commanded = self._request = None
        if tick.observation:
            self._history.start(tick.observation, tick.times)

    def _ended(self, tick: Tick) -> EpisodeEnd | None:
        """The end of the episode, if the watchdog has stopped the robot, or the user ends it."""
        if tick.stopped is not None:
            return EpisodeEnd("stopped", tick.stopped)
        cause = self.check(tick)
        return None if cause is None else EpisodeEnd(cause)

    def _step(self, tick: Tick, recording: Recording | None) -> EpisodeEnd | None:
        """Answer one tick; the end of the episode, if it is one."""
        began = time.monotonic()
        if tick.stopped is not None:
            return self._ended(tick)
        self._record_step_before(tick, recording)
        self._history.append(tick.observation, tick.times)
        self._take_prediction(0.0)
        self._ask(tick)
        if self._request is not None and self.expected_seconds < ANSWER_SHARE / self.control_hz:
            self._take_prediction(ANSWER_SHARE / self.control_hz)
        upcoming = self._executor.upcoming()
        action = self._executor.next_action()
        if action is None:  # the first chunk is being predicted
            self.watchdog.send(Wait())
        else:
            self.watchdog.send(Play(tick.time, upcoming if len(upcoming) else action[None]))
            self.log.held_steps += not len(upcoming)
            self._commanded = tick
        self.log.durations["loop"].append(time.monotonic() - began)
        return self._ended(tick)  # last, because it may update a display

    def _record_step_before(self, tick: Tick, recording: Recording | None) -> None:
        """What was commanded in the step before this tick, after all limits."""
        before, self._commanded = self._commanded, None
        if before is None or tick.target is None:
            return
        self.log.add_command(before.time, tick.target)
        if recording is not None:
            recording.add(before.observation, tick.target)

    def _ask(self, tick: Tick) -> None:
        """Request the next chunk if it is time, and if there is a real observation for each of its steps."""
        if self._executor.is_waiting:
            return
        window = self._history.window()
        if window is None:
            self.log.postponed += 1
            return
        request = self._executor.request()
        if request is None:
            return
        self._number += 1
        self.log.padded_prefixes += request.is_padded
        noise = np.random.SeedSequence([self._seed, self._number]).generate_state(1)[0]
        self.inference.send(PredictionRequest(self._number, window, request.prefix, request.tail, int(noise)))
        self._request = (self._number, request, time.monotonic())

    def _take_prediction(self, timeout: float) -> None:
        """Take the requested chunk over if it is there, or comes within ``timeout`` (s). Raises what failed in inference."""
        end = time.monotonic() + timeout
        while True:
            left = end - time.monotonic() if self._request is not None else 0.0
            message = self._arrived.popleft() if self._arrived else self.inference.receive(max(0.0, left))
            if message is None:
                return
            if self._request is not None and message.number == self._request[0]:
                _, _, asked = self._request
                self._request = None
                self.log.durations["inference"].append(message.seconds)
                self.log.durations["request_to_chunk"].append(time.monotonic() - asked)
                self.log.add_placement(self._executor.receive(message.chunk))
                return

    def _approach(self, tick: Tick) -> tuple[Tick, EpisodeEnd | None]:
        """Predict from where the robot is, and move slowly to the first target; the tick in which it is reached."""
        self._begin(tick)
        self._ask(tick)
        end = None
        while end is None and self._request is not None:
            self.watchdog.send(Wait())
            tick = self._next_tick()
            self._take_prediction(0.0)
            end = self._ended(tick)
        if end is None and (target := self._executor.next_action()) is not None:
            self.watchdog.send(Approach(target))
            while end is None and not tick.has_arrived:
                tick = self._next_tick()
                self.watchdog.send(Wait())
                end = self._ended(tick)
        return tick, end

    def _next_tick(self, *, after: float = -np.inf, silence: float = SILENCE) -> Tick:
        """The next control step, or the newest if several have come, none that was due before ``after``.

        Raises RobotError if the robot stays silent for so long (s), or if inference has ended meanwhile.
        """
        tick: Tick | None = None
        end = time.monotonic() + silence + 2 / self.control_hz
        while tick is None or tick.time < after or self.watchdog.connection.poll():
            message = self._next_message(end)
            if message is None:
                raise RobotError(
                    f"the robot has not answered for {silence:g} s; its own timeout has to hold it: check its connection"
                )
            if isinstance(message, Tick):
                tick = message
                self.log.add_tick(tick)
                if tick.stopped is not None:
                    break
                if tick.time < after:
                    self.watchdog.send(Wait())
        return tick

    def _next_message(self, end: float) -> Any:
        """The watchdog's next message, None if there is none until ``end``; that of inference is kept for its time."""
        while (left := end - time.monotonic()) > 0:
            ready = with_messages([self.watchdog, self.inference], min(left, CHECKING_PERIOD))
            if self.watchdog in ready:
                return self.watchdog.receive()
            if self.inference in ready:
                self._arrived.append(self.inference.receive())
            self.inference.check()
        return None

    def _finish(self, end: EpisodeEnd) -> EpisodeEnd:
        """Hold, and ask what the robot knows of the outcome."""
        if end.cause == "stopped":
            return end
        self.watchdog.send(Halt())
        tick = self._next_tick(after=time.monotonic())
        if tick.stopped is not None:
            return EpisodeEnd("stopped", tick.stopped)
        return EpisodeEnd(end.cause, end.reason, tick.outcome)
