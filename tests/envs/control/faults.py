"""A watchdog in its process, driven as a control loop would, with a robot that fails on demand."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowchunk.envs.control.limiter import MotionLimits
from flowchunk.envs.control.messages import Approach, Close, Halt, Measure, Play, Reset, RobotReady, Tick, Wait
from flowchunk.envs.control.observed_range import ObservedRange
from flowchunk.envs.control.processes import Helper
from flowchunk.envs.control.watchdog import WatchdogOptions, run_watchdog
from flowchunk.envs.robots.making import make_robot
from tests.envs.control.faulty_arm import CONTROL_HZ, arm_specs

PERIOD = 1 / CONTROL_HZ
SLACK = 0.5  # s, for a machine that does other things too


def watchdog_options(folder: Path, **changes: Any) -> WatchdogOptions:
    """For a policy of the arm, whose joints were within 1 rad in training, and moved at up to 1 rad/s."""
    observation_spec, action_spec = arm_specs()
    wide, one = np.full(3, np.inf), np.ones(3)
    options = WatchdogOptions(
        observation_spec=observation_spec,
        action_spec=action_spec,
        rate=None,
        limits=MotionLimits(-wide, wide, one, wide, np.ones(3, bool)),
        observed=ObservedRange({"joints": -one}, {"joints": one}, {"joints": ()}, {"joints": ("rad",) * one.size}),
        margin=0.5,
        sensor_timeout=0.3,
        ramp=0.25,
        stop_file=folder / "STOP",
    )
    return replace(options, **changes)


@dataclass
class Watched:
    """A watchdog and its robot, driven as a control loop would."""

    helper: Helper
    folder: Path
    ready: RobotReady

    def fail(self, fault: str) -> None:
        """Let the driver fail from now on; an empty text mends it."""
        (self.folder / "fault.new").write_text(fault)
        (self.folder / "fault.new").replace(self.folder / "fault")

    def begin(self) -> Tick:
        self.helper.send(Reset(7))
        return self.tick(after=time.monotonic())

    def tick(self, *, after: float = -np.inf) -> Tick:
        while True:
            tick: Tick = self.helper.wait_for(Tick, 5.0)
            if tick.time >= after or tick.stopped is not None:
                return tick
            self.helper.send(Wait())

    def play(self, tick: Tick, *targets: float) -> None:
        """A plan for all joints, the first target due now."""
        self.helper.send(Play(tick.time, np.repeat(np.array(targets)[:, None], 3, axis=1)))

    def play_each(self, tick: Tick, targets: Sequence[float]) -> None:
        """A plan that stays at a target for each joint, in the policy's order."""
        self.helper.send(Play(tick.time, np.repeat(np.array(targets)[None], 4, axis=0)))

    def approach(self, target: float) -> None:
        self.helper.send(Approach(np.full(3, target)))

    def move(self, steps: int, *, speed: float = 0.2) -> tuple[Tick, list[Tick]]:
        """Renew a plan of constant speed at each step; the newest tick, not answered, and those before it."""
        ticks, tick = [], self.begin()
        for step in range(steps):
            self.play(tick, *(speed * PERIOD * (step + np.arange(8))))
            ticks.append(tick)
            if (tick := self.tick()).stopped is not None:
                break
        return tick, ticks

    def until_stopped(self) -> str:
        """Answer ticks until the watchdog stops the robot; returns why."""
        end = time.monotonic() + 5.0
        while (tick := self.tick()).stopped is None:
            assert time.monotonic() < end, "it was not stopped"
            self.play(tick, *[float(self.commands()[-1]["values"]["shoulder"])] * 4)
        return tick.stopped

    def halt(self) -> Tick:
        self.helper.send(Halt())
        return self.tick(after=time.monotonic())

    def log(self, *events: str) -> list[dict[str, Any]]:
        return read_log(self.folder / "log", *events)

    def commands(self) -> list[dict[str, Any]]:
        return self.log("command")


@contextmanager
def watched(
    folder: Path, *, robot: str = "FaultyArm", arm: Mapping[str, Any] | None = None, **changes: Any
) -> Iterator[Watched]:
    """A watchdog with a robot that is ready: a class in ``faulty_arm`` and its options. changes: of the watchdog's."""
    make = partial(make_robot, f"faulty_arm:{robot}", {"folder": str(folder), **(arm or {})})
    helper = Helper("watchdog", run_watchdog, make, watchdog_options(folder, **changes))
    with importable_drivers(), helper:
        helper.send(Measure())
        yield Watched(helper, folder, helper.wait_for(RobotReady, 30.0))
        helper.send(Close())


@contextmanager
def importable_drivers() -> Iterator[None]:
    """The folder of the driver is searched for modules, in processes that start meanwhile, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        yield


def shoulders(run: Watched, *, after: float = -np.inf) -> np.ndarray:
    """The commands of one joint since then."""
    return np.array([line["values"]["shoulder"] for line in run.commands() if line["time"] > after])


def read_log(file: Path, *events: str) -> list[dict[str, Any]]:
    """The lines of a robot's log that are complete; of these events if any are given."""
    if not file.exists():
        return []
    lines = [json.loads(line) for line in file.read_text().split("\n")[:-1]]
    return [line for line in lines if not events or line["event"] in events]
