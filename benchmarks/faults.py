"""Every fault of a run on the simulated robot of Push-T: what the robot did, and how long until it held.

usage: python benchmarks/faults.py RUN OUTPUT_DIR [--velocity-max V] [--repeat 3] [--only NAME ...]

RUN is a policy of Push-T. Each fault happens in the middle of an episode, at the defaults of ``flowchunk run``, in fresh
processes. All times are from the robot's own log: it holds from the last moment on at which a command or a hold changed where
it goes to. Prints a Markdown table, with the median and the longest of the repetitions, and writes OUTPUT_DIR/results.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from flowchunk.envs.control.inference import InferenceOptions
from flowchunk.envs.control.messages import Tick
from flowchunk.envs.control.safety import PolicyFacts, SafetyOptions
from flowchunk.envs.control.session import ControlSession
from flowchunk.envs.control.watchdog import WatchdogOptions
from flowchunk.envs.robots.robot import Reading
from flowchunk.envs.robots.simulated import SimulatedRobot

ENV, SEED, FAULT_STEP = "flowchunk/PushT-v1", 100_000, 25
AFTERWARDS = 2.5  # s, for which the robot is watched
SAME = 1e-6  # px: such a command does not move it


class FaultyRobot(SimulatedRobot):
    """The simulated robot with a driver that fails as soon as the file ``fault`` says how."""

    def __init__(self, env_id: str, *, fault: str, **options: Any) -> None:
        super().__init__(env_id, **options)
        self._fault = Path(fault)

    def observe(self) -> Reading:
        """The newest reading, or a faulty one."""
        reading = super().observe()
        fault = self._fault.read_text() if self._fault.exists() else ""
        while fault == "block":
            time.sleep(1)
        if fault == "raise":
            raise ConnectionError("the bus does not answer")
        if fault in ("nan", "far"):
            wrong = np.nan if fault == "nan" else 5000.0
            return Reading({key: np.full_like(value, wrong) for key, value in reading.values.items()}, reading.times)
        shift = {"old": -60.0, "ahead": 60.0}.get(fault, 0.0)
        return Reading(reading.values, {key: moment + shift for key, moment in reading.times.items()})


@dataclass(frozen=True)
class Scene:
    """What a fault is done to. folder: of the robot's log, and of the files that make driver and user act."""

    session: ControlSession
    folder: Path

    def send(self, process: str, number: int) -> None:
        """A signal to loop, inference, watchdog or robot."""
        os.kill(self.pid(process), number)

    def pid(self, process: str) -> int:
        """Of one of them."""
        if process == "loop":
            return os.getpid()
        if process == "robot":
            children = psutil.Process(self.session.watchdog.pid).children()
            return next(child.pid for child in children if ENV in child.cmdline())
        return self.session.inference.pid if process == "inference" else self.session.watchdog.pid


Act = Callable[[Scene], str | None]


def driver(fault: str) -> Act:
    """A fault of the driver."""

    def act(scene: Scene) -> None:
        (scene.folder / "fault.new").write_text(fault)
        (scene.folder / "fault.new").replace(scene.folder / "fault")

    return act


def sent(process: str, number: int) -> Act:
    """A signal to a process."""
    return lambda scene: scene.send(process, number)


def loop_fails(scene: Scene) -> str | None:
    """An exception in the middle of the loop."""
    raise ZeroDivisionError("a fault in the loop")


def touch_stop_file(scene: Scene) -> str | None:
    """The user's emergency stop."""
    (scene.folder / "STOP").touch()
    return None


FAULTS: dict[str, Act] = {
    "loop killed (kill -9)": sent("loop", signal.SIGKILL),
    "loop suspended": sent("loop", signal.SIGSTOP),
    "exception in the loop": loop_fails,
    "inference killed (kill -9)": sent("inference", signal.SIGKILL),
    "inference suspended": sent("inference", signal.SIGSTOP),
    "watchdog killed (kill -9)": sent("watchdog", signal.SIGKILL),
    "watchdog suspended": sent("watchdog", signal.SIGSTOP),
    "stop by key or Ctrl-C": lambda scene: "key",
    "stop by a signal to the watchdog": sent("watchdog", signal.SIGUSR1),
    "stop by file": touch_stop_file,
    "driver raises": driver("raise"),
    "driver blocks": driver("block"),
    "observation NaN": driver("nan"),
    "observation far outside the training data": driver("far"),
    "sensor lost": driver("old"),
    "clock of a sensor jumps ahead": driver("ahead"),
    "robot suspended, and resumed": sent("robot", signal.SIGSTOP),
    "robot killed": sent("robot", signal.SIGKILL),
}


def run_with_fault(name: str, checkpoint: Path, folder: Path, velocity_max: float | None) -> None:
    """A process: the loop of an episode with a fault. Writes when that happened, and what was said."""
    facts, safety = PolicyFacts.of_checkpoint(checkpoint), SafetyOptions(velocity_max=velocity_max)
    spec = facts.action_spec
    watchdog = WatchdogOptions(
        observation_spec=facts.observation_spec,
        action_spec=spec,
        rate=None,
        limits=safety.motion_limits(spec, facts.action_limits),
        observed=facts.observed,
        margin=safety.margin,
        sensor_timeout=safety.timeout(spec.control_hz),
        ramp=safety.ramp,
        stop_file=folder / "STOP",
    )
    robot = partial(FaultyRobot, ENV, fault=str(folder / "fault"), log=str(folder / "robot.log"))
    steps = 0

    def check(tick: Tick) -> str | None:
        nonlocal steps
        steps += 1
        if steps != FAULT_STEP:
            return None
        pids = {process: scene.pid(process) for process in ("loop", "inference", "watchdog", "robot")}
        (folder / "moment").write_text(json.dumps({"time": time.monotonic(), **pids}))
        return FAULTS[name](scene)

    with ControlSession(robot, InferenceOptions(str(checkpoint)), watchdog, {}) as session:
        scene = Scene(session, folder)
        loop = session.loop(session.preflight(), check=check)
        try:
            end = loop.run_episode(seed=SEED, seconds=60.0)
            said = f"{end.cause} {end.reason}"
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        (folder / "said").write_text(said)


def measure(name: str, checkpoint: Path, velocity_max: float | None) -> dict[str, Any]:
    """One fault: ms until the robot held, None if it was gone, why it held, and what was said."""
    folder = Path(tempfile.mkdtemp(prefix="flowchunk-fault-"))
    arguments = (name, checkpoint, folder, velocity_max)
    process = multiprocessing.get_context("spawn").Process(target=run_with_fault, args=arguments)
    process.start()
    deadline = time.monotonic() + 120
    while not (folder / "moment").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(AFTERWARDS)
    moment = json.loads((folder / "moment").read_text())
    happened = moment.pop("time")
    if name.startswith("robot suspended"):
        happened = time.monotonic()
        os.kill(moment["robot"], signal.SIGCONT)
        time.sleep(AFTERWARDS)
    lines = [json.loads(line) for line in (folder / "robot.log").read_text().split("\n")[:-1]]
    process.join(0.1)
    for pid in moment.values():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.join()
    said = folder / "said"
    return {**held(lines, happened), "said": said.read_text() if said.exists() else ""}


def held(lines: list[dict[str, Any]], happened: float) -> dict[str, Any]:
    """When the place that the robot goes to changed for the last time, and why it holds."""
    commands = [line for line in lines if line["event"] == "command"]
    changes = [
        line["time"]
        for before, line in pairwise(commands)
        if np.abs(np.subtract(line["action"], before["action"])).max() > SAME
    ]
    holds = [line for line in lines if line["event"] == "hold"]
    last = max([*changes, *(line["time"] for line in holds)])
    steps = [line for line in lines if line["event"] == "step" and line["time"] > last]
    if not steps:
        return {"ms": None, "why": "gone"}
    reasons = [line["reason"] for line in holds if line["time"] == last]
    why = f"held: {reasons[0]}" if reasons else "stayed at the last command"
    return {"ms": 1000 * max(0.0, last - happened), "why": why}


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--velocity-max", type=float, help="if the checkpoint has no limits")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(FAULTS), choices=list(FAULTS))
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    period = 1000 / PolicyFacts.of_checkpoint(options.run).action_spec.control_hz
    print(
        "| fault | what the robot did | until it held, median (longest) [ms] | control period [ms] |\n|---|---|---|---|"
    )
    results = {}
    for name in options.only:
        results[name] = [measure(name, options.run, options.velocity_max) for _ in range(options.repeat)]
        found = [one["ms"] for one in results[name] if one["ms"] is not None]
        times = f"{np.median(found):.0f} ({max(found):.0f})" if found else "-"
        what = "; ".join(dict.fromkeys(one["why"] for one in results[name]))
        print(f"| {name} | {what} | {times} | {period:.0f} |", flush=True)
    (options.output_dir / "results.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
