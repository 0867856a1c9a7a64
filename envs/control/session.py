"""A robot, a policy and the loop between them: started, checked before the first command, and closed in every case."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.envs.control.inference import InferenceOptions, run_inference
from flowchunk.envs.control.loop import ANSWER_SHARE, ControlLoop
from flowchunk.envs.control.messages import Close, InferenceReady, Measure, RobotReady, Tick
from flowchunk.envs.control.processes import Helper, with_messages
from flowchunk.envs.control.run_log import RunLog
from flowchunk.envs.control.watchdog import WatchdogOptions, run_watchdog
from flowchunk.envs.robots.robot import Robot
from flowchunk.policy.execution.executor import ChunkExecution
from flowchunk.policy.execution.strategies import STRATEGIES

STARTING_TIME = 120.0  # s, for loading a policy, or a robot that has to be started
USUAL = 90  # percentile: a machine that is busy now and then can hold a rate, one that is always late cannot
SPARE = 0.0005  # s of each command period that is left for the commands themselves


@dataclass(frozen=True)
class Preflight:
    """What was measured before the first command.

    sampling: as it is used, see ``InferenceReady``. inference_ms, observe_ms, late_ms: percentiles. highest_rate: commands
    per second that this machine can hold. delay: control steps that a prediction takes.
    """

    robot: RobotReady
    execution: ChunkExecution
    sampling: Mapping[str, Any]
    inference_ms: Mapping[str, float]
    observe_ms: Mapping[str, float]
    late_ms: Mapping[str, float]
    highest_rate: float
    delay: int


class ControlSession:
    """Start watchdog and inference; use it as a context manager.

    execution: changes of the policy's own, such as ``{"n_action_steps": 4, "strategy": "real_time"}``. Without a strategy it
    is real_time if the policy can continue committed actions for long enough, otherwise asynchronous, and synchronous if
    chunks are executed to their end.
    """

    def __init__(
        self,
        make_robot: Callable[[], Robot],
        inference: InferenceOptions,
        watchdog: WatchdogOptions,
        execution: Mapping[str, Any],
    ) -> None:
        self._inference_options, self._watchdog_options = inference, watchdog
        self._changes = dict(execution)
        self.inference = Helper("inference", run_inference, inference, closing_time=0.0)
        self.watchdog = Helper("watchdog", run_watchdog, make_robot, watchdog)
        self.log = RunLog()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.inference)
            stack.enter_context(self.watchdog)
            stack.callback(self.watchdog.send, Close())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def preflight(self) -> Preflight:
        """Wait until both are ready, and check that what is asked for can be. Raises ConfigurationError if it cannot."""
        while self.watchdog in with_messages([self.inference, self.watchdog], STARTING_TIME):
            self.watchdog.receive()  # raises why the robot cannot be driven, which is known long before a network is loaded
        ready: InferenceReady = self.inference.wait_for(InferenceReady, STARTING_TIME)
        self.watchdog.send(Measure())  # not earlier: loading a network would disturb it
        robot: RobotReady = self.watchdog.wait_for(RobotReady, STARTING_TIME)
        control_hz = self._watchdog_options.action_spec.control_hz
        seconds = float(np.percentile(ready.seconds, 95))
        delay = 0 if seconds < ANSWER_SHARE / control_hz else math.ceil(seconds * control_hz)
        observe, late = (float(np.percentile(found, USUAL)) for found in (robot.observe_seconds, robot.lateness))
        needed = observe + late + SPARE
        if needed > 1 / robot.command_hz:
            raise ConfigurationError(
                f"rate={robot.command_hz:g}: only about {1 / needed:.0f} commands per second are possible: "
                f"it takes {1000 * observe:.1f} ms to read it, and deadlines are met {1000 * late:.1f} ms late; give a lower "
                f"rate, of at least {control_hz:g}, or stop what else the machine does"
            )
        self._expected_seconds = seconds
        method = self._inference_options.sampling.get("prefix_method")
        execution = choose_execution(ready.execution, self._changes, delay, prefix_method=method)
        execution.check_actions(self._watchdog_options.action_spec)
        return Preflight(
            robot,
            execution,
            ready.sampling,
            _percentiles(ready.seconds),
            _percentiles(robot.observe_seconds),
            _percentiles(robot.lateness),
            1 / needed,
            delay,
        )

    def loop(self, preflight: Preflight, *, check: Callable[[Tick], str | None]) -> ControlLoop:
        """The loop that runs episodes. check: see ``ControlLoop``."""
        return ControlLoop(
            self.watchdog,
            self.inference,
            preflight.execution,
            self._watchdog_options.action_spec,
            self.log,
            self._expected_seconds,
            is_robot_placed=preflight.robot.held is not None,
            check=check,
        )


def choose_execution(
    own: ChunkExecution, changes: Mapping[str, Any], delay: int, *, prefix_method: str | None = None
) -> ChunkExecution:
    """The policy's execution with the given changes, and a strategy that the delay admits.

    Raises ConfigurationError if none does, if the given one does not, or if it has no use for the prefix_method.
    """
    chosen = _with_strategy(own, {name: value for name, value in changes.items() if value is not None}, delay)
    if prefix_method is not None and not STRATEGIES[chosen.strategy].commits:
        raise ConfigurationError(
            f"prefix_method={prefix_method} is for strategy=real_time, but strategy={chosen.strategy} is used, as the policy "
            "cannot continue committed actions, or the delay does not admit it; leave it out, or give another one"
        )
    return chosen


def _with_strategy(own: ChunkExecution, given: Mapping[str, Any], delay: int) -> ChunkExecution:
    if "strategy" in given:
        return replace(own, **given, delay=delay)
    candidates = ["real_time"] if own.longest_prefix else []
    for strategy in [*candidates, "asynchronous"]:
        try:
            return replace(own, **given, strategy=strategy, delay=delay)
        except ConfigurationError:
            continue
    return replace(own, **given, strategy="synchronous", delay=delay)


def _percentiles(seconds: np.ndarray) -> dict[str, float]:
    p50, p95, p99 = np.percentile(1000 * seconds, [50, 95, 99]).tolist()
    return {"p50": p50, "p95": p95, "p99": p99}
