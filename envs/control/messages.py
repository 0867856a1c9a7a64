"""What loop, watchdog and inference tell each other, over pipes between processes of one program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flowchunk.datasets.specs import ActionSpec, ObservationSpec
from flowchunk.policy.execution.executor import ChunkExecution

# -- from the loop to the watchdog --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measure:
    """Everything else is ready, so measure how fast the robot can be read; answered by ``RobotReady``."""


@dataclass(frozen=True)
class Reset:
    """Begin an episode: a robot that can start one by itself does, with this seed."""

    seed: int


@dataclass(frozen=True)
class Approach:
    """Move slowly to the first target (D,); answered by a tick that ``has_arrived``."""

    target: np.ndarray


@dataclass(frozen=True)
class Play:
    """Targets (n, D) in the policy's order, one per control period, the first due at ``start`` (s, monotonic)."""

    start: float
    targets: np.ndarray


@dataclass(frozen=True)
class Wait:
    """The loop is alive and has nothing new: go on with the plan, or hold once it is stale."""


@dataclass(frozen=True)
class Halt:
    """Hold until the next episode."""


@dataclass(frozen=True)
class Stop:
    """Hold for good, and say why."""

    reason: str


@dataclass(frozen=True)
class Close:
    """Hold, close the robot, and end."""


# -- from the watchdog to the loop --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RobotReady:
    """The robot is connected and holds, and was measured.

    held: (D,) the action that holds it, in the policy's order; None if that is unknown. durations: seconds of each call of
    ``observe``. lateness: seconds by which idle ticks at the rate were late. measures: real-time measures, done or refused.
    """

    name: str
    observation_spec: ObservationSpec
    action_spec: ActionSpec
    command_hz: float
    can_reset: bool
    held: np.ndarray | None
    observe_seconds: np.ndarray
    lateness: np.ndarray
    measures: Mapping[str, str]


@dataclass(frozen=True)
class Event:
    """An intervention or a fault. kind: such as "velocity" or "stale". detail: what exactly."""

    time: float
    kind: str
    detail: str


@dataclass(frozen=True)
class Timing:
    """Of one command tick, in seconds: how late it came, and how long each of its stages took; 0 for those left out."""

    late: float
    observe: float
    limit: float
    command: float


@dataclass(frozen=True)
class Tick:
    """One control step.

    time: its deadline. observation: {key: value} with the policy's keys, measured at ``times``. target: (D,) that of the
    step before, after all limits, in the policy's order; None if there was none. is_holding: whether the robot is held.
    timings: of the command ticks since the last one. events: since the last one. missed: deadlines so far. has_arrived:
    whether the first target is reached. stopped: why the watchdog holds for good, if it does. outcome: of the episode, for
    robots that know it.
    """

    time: float
    observation: Mapping[str, np.ndarray]
    times: Mapping[str, float]
    target: np.ndarray | None
    is_holding: bool
    timings: tuple[Timing, ...] = ()
    events: tuple[Event, ...] = ()
    missed: int = 0
    has_arrived: bool = False
    stopped: str | None = None
    outcome: Mapping[str, float | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Failed:
    """A process cannot go on. kind: the name of the error's class."""

    kind: str
    message: str


# -- loop and inference -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InferenceReady:
    """The policy is loaded and warm.

    execution: as it is meant to be. sampling: nfe, solver, noise_scale, prefix_method and device that are used. seconds: of
    some predictions. measures: as above.
    """

    execution: ChunkExecution
    sampling: Mapping[str, Any]
    seconds: np.ndarray
    measures: Mapping[str, str]


@dataclass(frozen=True)
class PredictionRequest:
    """Predict a chunk. observation: {key: (To, …)}. prefix, tail: (d, D), (m, D), see ``ChunkRequest``."""

    number: int
    observation: Mapping[str, np.ndarray]
    prefix: np.ndarray
    tail: np.ndarray
    seed: int


@dataclass(frozen=True)
class Prediction:
    """The chunk (H, D) of a request, and the seconds that the policy took."""

    number: int
    chunk: np.ndarray
    seconds: float
