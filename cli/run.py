"""flowchunk run: drive a robot with a policy, simulated in real time or real.

usage: flowchunk run CHECKPOINT [robot=NAME] [rate=HZ] [KEY=VALUE ...]

  CHECKPOINT                     a run (its best checkpoint, otherwise its last) or a checkpoint
  robot=simulated                simulated (the task of training, in real time in a process of its own), gym,
                                 lerobot, or MODULE:CLASS, a driver of yours
  driver.KEY=VALUE               arguments of the driver
  env_id=ID  env.KEY=VALUE       another task for robot=simulated|gym than in training
  rate=HZ                        commands per second (default: the robot's own); targets are interpolated to it
  dry_run=false                  observe and predict, but command nothing
  episodes=1  seconds=30         how many, and how long each lasts at most
  until_success=true             end an episode as soon as the robot reports success
  seed=100000                    episode i of a simulated robot starts as with seed + i; also of the noise
  outcome=auto                   of an episode: robot (what it reports), ask, or none; auto: what there is
  record=PATH                    record all episodes as a data set

chunks:
  strategy=NAME                  synchronous, asynchronous, temporal_ensemble or real_time; default: real_time
                                 if the policy can continue committed actions, otherwise asynchronous
  prefix_method=NAME             how real_time continues the old chunk: trained, guided, guided_vjp,
                                 noise_inversion (default: the policy's own)
  n_action_steps=N               executed actions before the next prediction (default: the policy's own)
  reanchor_steps=0               fade the jump at a new chunk's start over so many control steps
  nfe=N  solver=NAME  noise_scale=1.0  device=cpu     as for flowchunk eval
  landmarks.NAME=[X,Y,ANGLE]     where a landmark of the policy's frame is, such as its goal (default: as in training)
  inference.threads=1            of the processor, for the network
  inference.delay_ms=0  inference.jitter_ms=0         try what a slower network would do

safety, all of it on:
  safety.velocity_max=V          units per second of all action dimensions, or [V, ...] of each;
  safety.acceleration_max=A      default of both: the largest of the demonstrations
  safety.scale=1.0               factor of the demonstrations' limits; 0.3 for a first run
  safety.ramp=0.25               fraction of the velocity limits on the way to the first action
  safety.margin=0.5              stop if a value is observed this many ranges outside the training data
  safety.sensor_timeout=S        stop if a sensor brings nothing new for so long (default: 3 control periods)
  safety.stop_file=PATH          stop when this file exists (default: OUTPUT_DIR/STOP)
  dataset.path=PATH              the training data, to compute limits that an older checkpoint lacks

real time, for the process that commands the robot; each is reported as done or refused:
  realtime.lock_memory=true  realtime.priority=80  realtime.cpu=1  realtime.timer_slack_us=1  realtime.freeze_gc=true

  output_dir=DIR                 default: RUN/robot

Keys: space or q stops and holds, s and f end the episode as a success or a failure. Ctrl-C, SIGTERM, SIGHUP
and SIGUSR1 stop, too. Whatever ends it, the robot holds.

Writes DIR/run.json and DIR/run.html; and DIR/eval.json, as flowchunk eval does, if episodes have outcomes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from flowchunk.cli.keyboard import Keyboard
from flowchunk.cli.options import fill, read_options, take_checkpoint
from flowchunk.cli.reports import print_written
from flowchunk.cli.run_console import LiveView, print_preflight, print_summary
from flowchunk.cli.run_report import RunReport
from flowchunk.cli.signals import Signals
from flowchunk.datasets.errors import ConfigurationError, DatasetError, RobotError
from flowchunk.datasets.partial_output import PartialOutput
from flowchunk.datasets.recorder import StoreWriter
from flowchunk.envs.control.inference import InferenceOptions
from flowchunk.envs.control.loop import EpisodeEnd, Recording
from flowchunk.envs.control.messages import Tick
from flowchunk.envs.control.realtime import RealTimeOptions
from flowchunk.envs.control.safety import PolicyFacts, SafetyOptions
from flowchunk.envs.control.session import ControlSession, Preflight
from flowchunk.envs.control.watchdog import WatchdogOptions
from flowchunk.envs.robots.making import checked_maker, make_robot
from flowchunk.policy.action_limits import ActionLimits
from flowchunk.policy.checkpoint import find_checkpoint, find_run

STOP_KEYS, SUCCESS_KEY, FAILURE_KEY = " q\x1b", "s", "f"
OUTCOMES = ("auto", "robot", "ask", "none")


def run(arguments: list[str]) -> None:
    """Drive a robot with command-line arguments."""
    checkpoint, overrides = take_checkpoint("run", arguments)
    drive(checkpoint, read_options("run", overrides))


def drive(checkpoint: str | Path, options: dict[str, Any]) -> Path:
    """Drive a robot with the options of ``schemas.RUN``; returns the path of ``run.json``.

    Raises RobotError if the robot had to be stopped, after the report is written.
    """
    console, directory = Console(), find_checkpoint(checkpoint)
    _check(options)
    facts = PolicyFacts.of_checkpoint(directory)
    output_dir = Path(options["output_dir"] or find_run(directory) / "robot").expanduser()
    safety = fill(SafetyOptions, options["safety"], section="safety")
    stop_file = Path(safety.stop_file or output_dir / "STOP")
    if stop_file.exists():
        raise ConfigurationError(f"{stop_file} exists, which stops the robot; remove it first")
    inference, watchdog = _process_options(directory, options, facts, safety, stop_file)
    if (output_dir / "run.json").exists():
        console.print(
            f"the report of an earlier run in {output_dir} will be replaced; to keep both, give output_dir=DIR",
            style="yellow",
            soft_wrap=True,
        )
    output_dir.mkdir(parents=True, exist_ok=True)
    execution = {name: options[name] for name in ("n_action_steps", "strategy", "reanchor_steps")}
    report = RunReport(checkpoint=str(directory), options=options, facts=facts)
    with ControlSession(_robot_maker(options, facts), inference, watchdog, execution) as session:
        preflight = session.preflight()
        report.begin(preflight, session.log)
        print_preflight(console, preflight, facts, watchdog)
        try:
            Episodes(console, session, preflight, options, facts, report).run()
        except Exception as error:
            report.fault = f"{type(error).__name__}: {error}"
            raise
        finally:
            files = report.write(output_dir)
            print_summary(console, report)
            print_written(console, *files)
    if report.stopped == "SIGINT":
        raise KeyboardInterrupt
    if report.stopped is not None:
        raise RobotError(f"the robot was stopped, and holds: {report.stopped}")
    return output_dir / "run.json"


@dataclass
class Episodes:
    """The episodes of a run, with what goes on beside them: keys, signals, console, recording."""

    console: Console
    session: ControlSession
    preflight: Preflight
    options: Mapping[str, Any]
    facts: PolicyFacts
    report: RunReport
    _signals: Signals = field(default_factory=Signals)
    _keyboard: Keyboard = field(default_factory=Keyboard)

    def run(self) -> None:
        """Run them until one is stopped."""
        with self._signals:
            try:
                with self._writer() or nullcontext() as writer:
                    self._run(writer)
            except DatasetError as error:
                if self.report.stopped is None:
                    raise
                self.console.print(f"note: {error}", markup=False, soft_wrap=True)  # the stop is what has to be said

    def _run(self, writer: StoreWriter | None) -> None:
        self._view = LiveView(self.console, self.session.log, dry_run=self.options["dry_run"])
        loop = self.session.loop(self.preflight, check=self._check)
        for number in range(self.options["episodes"]):
            seed = self.options["seed"] + number
            self._wait_for_scene(number)
            recording = None if writer is None else Recording()
            with self._keyboard, self._view:
                began = time.monotonic()
                end = loop.run_episode(seed=seed, seconds=self.options["seconds"], recording=recording)
            if writer is not None and recording is not None and recording.actions:
                _record(writer, recording)
            is_stopped = end.cause in ("stopped", "key", *self._signals.received)
            stopped = (end.reason or end.cause) if is_stopped else None
            outcome = None if is_stopped else self._outcome(end, number)
            self.report.add_episode(seed, end, outcome, time.monotonic() - began, stopped)
            if is_stopped:
                return

    def _writer(self) -> StoreWriter | None:
        if self.options["record"] is None:
            return None
        return StoreWriter(
            self.options["record"],
            observation_spec=self.facts.observation_spec.cropped(None),
            action_spec=self.facts.action_spec,
            say=lambda text: self.console.print(text, markup=False, highlight=False, soft_wrap=True),
        )

    def _wait_for_scene(self, number: int) -> None:
        """Somebody has to set up the scene before each episode of a robot that cannot do it by itself."""
        if not self.preflight.robot.can_reset and self.options["episodes"] > 1 and sys.stdin.isatty():
            self._signals.ask(
                f"episode {number + 1} of {self.options['episodes']}: set up the scene, then press Enter "
            )

    def _check(self, tick: Tick) -> str | None:
        """At every control step: update the view, and end the episode for a key or a signal."""
        self._view.update(tick)
        if self.options["until_success"] and tick.outcome.get("is_success"):
            return "success"
        if self._signals.received:
            return self._signals.received[0]
        keys = self._keyboard.pressed()
        if any(key in STOP_KEYS for key in keys):
            return "key"
        return next((f"key {key}" for key in keys if key in (SUCCESS_KEY, FAILURE_KEY)), None)

    def _outcome(self, end: EpisodeEnd, number: int) -> Mapping[str, float | bool] | None:
        """Score and success of an episode; None if nobody knows."""
        if end.cause in (f"key {SUCCESS_KEY}", f"key {FAILURE_KEY}"):
            return _judged(end.cause.endswith(SUCCESS_KEY))
        wanted = self.options["outcome"]
        if self.options["dry_run"]:  # whatever became of the task, it was not the policy's doing
            return None
        if wanted in ("auto", "robot") and end.outcome:
            return end.outcome
        if wanted == "robot":
            raise ConfigurationError(
                f"outcome=robot: {self.preflight.robot.name} does not report any; give outcome=ask"
            )
        is_asked = wanted == "ask" or (wanted == "auto" and self.options["episodes"] > 1)
        return self._ask(number) if is_asked else None

    def _ask(self, number: int) -> Mapping[str, float | bool]:
        """Ask whether an episode was a success. Raises ConfigurationError if nobody answers."""
        while True:
            try:
                answer = self._signals.ask(f"episode {number + 1}: success or failure? [s/f] ").strip().lower()
            except EOFError as error:
                raise ConfigurationError(
                    "nobody answers whether the episode was a success: the standard input is closed; give outcome=none"
                ) from error
            if answer[:1] in (SUCCESS_KEY, FAILURE_KEY):
                return _judged(answer[0] == SUCCESS_KEY)


def _judged(is_success: bool) -> Mapping[str, float | bool]:
    return {"score": float(is_success), "is_success": is_success}


def _record(writer: StoreWriter, recording: Recording) -> None:
    """Add an episode to the data set. Raises DatasetError, with what can be done, if the disk is full."""
    observations = {key: np.stack(values) for key, values in recording.observations.items()}
    try:
        writer.add_episode(observations, np.stack(recording.actions))
    except OSError as error:
        raise DatasetError(
            f"cannot record this episode ({error}); the episodes before it are kept: free some disk space, and record the "
            "rest under another path"
        ) from error


def _check(options: Mapping[str, Any]) -> None:
    if options["episodes"] < 1 or not options["seconds"] > 0:
        raise ConfigurationError(
            f"episodes={options['episodes']}, seconds={options['seconds']}: expected at least 1, and above 0"
        )
    if options["rate"] is not None and not options["rate"] > 0:
        raise ConfigurationError(f"rate={options['rate']:g}: expected more than 0 commands per second")
    if options["outcome"] not in OUTCOMES:
        raise ConfigurationError(f"outcome={options['outcome']}: there are {', '.join(OUTCOMES)}")
    if options["dry_run"] and options["record"] is not None:
        raise ConfigurationError(
            "record=… with dry_run=true: nothing is done that could be recorded; leave one of them out"
        )
    if options["record"] is not None:
        PartialOutput(options["record"])  # raises if it exists: before a report of the last run is written over


def _process_options(
    directory: Path, options: Mapping[str, Any], facts: PolicyFacts, safety: SafetyOptions, stop_file: Path
) -> tuple[InferenceOptions, WatchdogOptions]:
    sampling = {
        name: options[name] for name in ("nfe", "solver", "noise_scale", "prefix_method") if options[name] is not None
    }
    inference = InferenceOptions(
        checkpoint=str(directory),
        device=options["device"],
        sampling=sampling,
        landmarks=options["landmarks"],
        **options["inference"],
    )
    spec = facts.action_spec
    watchdog = WatchdogOptions(
        observation_spec=facts.observation_spec,
        action_spec=spec,
        rate=options["rate"],
        limits=safety.motion_limits(spec, _demonstrated_limits(options, facts)),
        observed=facts.observed,
        margin=safety.margin,
        sensor_timeout=safety.timeout(spec.control_hz),
        ramp=safety.ramp,
        stop_file=stop_file,
        dry_run=options["dry_run"],
        realtime=RealTimeOptions(**options["realtime"]),
    )
    return inference, watchdog


def _demonstrated_limits(options: Mapping[str, Any], facts: PolicyFacts) -> ActionLimits | None:
    """Those of the checkpoint, or of the data set that is given."""
    dataset = options["dataset"]
    if dataset["path"] is None:
        return facts.action_limits
    from flowchunk.datasets.formats import open_dataset
    from flowchunk.policy.demonstrations import demonstrated_limits

    return demonstrated_limits(open_dataset(dataset["path"], sources=dataset["sources"]), facts.action_spec)


def _robot_maker(options: Mapping[str, Any], facts: PolicyFacts) -> partial[Any]:
    arguments = dict(options["driver"])
    if options["robot"] in ("simulated", "gym"):
        env_id = options["env_id"] or facts.training.get("env_id")
        if env_id is None:
            raise ConfigurationError(
                "the checkpoint does not say which task it is for; give env_id=ID, or robot=… of hardware"
            )
        trained = facts.training.get("env", {}) if env_id == facts.training.get("env_id") else {}
        rate = {} if options["rate"] is None else {"command_hz": options["rate"]}
        arguments = {"env_id": env_id, "env": {**trained, **options["env"]}, **rate, **arguments}
    if ":" not in options["robot"]:  # a module of somebody else's is imported by the process that drives the robot only
        checked_maker(options["robot"], arguments)
    return partial(make_robot, options["robot"], arguments)
