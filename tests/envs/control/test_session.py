"""Whole sessions: loop, inference and watchdog in their processes, and a simulated robot that writes down what it got."""

from __future__ import annotations

import os
import re
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from flowchunk.datasets.errors import ConfigurationError, RobotError
from flowchunk.datasets.specs import ActionSpec
from flowchunk.envs.control.inference import InferenceOptions
from flowchunk.envs.control.loop import Recording
from flowchunk.envs.control.session import ControlSession, choose_execution
from flowchunk.envs.robots.making import make_robot
from flowchunk.policy.execution.executor import ChunkExecution
from tests.envs.control.faults import SLACK, importable_drivers, read_log, watchdog_options
from tests.envs.control.small_sessions import PERIOD, PUSHT, RAMP, RATE, VELOCITY, Driven, driven, save_policy

pytestmark = pytest.mark.real_time


def commands(run: Driven, *, after: float = -np.inf) -> np.ndarray:
    return np.array([line["action"] for line in run.log("command", after=after)])


def fastest(path: np.ndarray) -> float:
    """px/s of any coordinate."""
    return float(np.abs(np.diff(path, axis=0)).max()) * RATE


def test_the_execution_is_checked_against_the_actions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(execution: ChunkExecution, spec: ActionSpec) -> None:
        raise ConfigurationError(f"{execution.strategy} of {spec.names}")

    monkeypatch.setattr(ChunkExecution, "check_actions", refuse)
    with pytest.raises(ConfigurationError, match=r"real_time of \('target_x', 'target_y'\)"), driven(tmp_path):
        pass


def test_episodes_on_a_simulated_robot(tmp_path: Path) -> None:
    """One session: an episode that is recorded, one that the user ends, inference suspended, and then killed."""
    began = time.monotonic()
    with driven(tmp_path) as run:
        assert run.loop.execution.strategy == "real_time"
        recording = Recording()
        end = run.run(seconds=2.0, recording=recording)
        assert (end.cause, set(end.outcome)) == ("time", {"score", "is_success"})
        _check_commands(run, recording, began)
        _check_end_by_user(run)
        _check_suspended_inference(run)
        _check_killed_inference(run)
        children = psutil.Process().children(recursive=True)
    assert run.session.watchdog.process.exitcode == 0
    psutil.wait_procs(children, timeout=5)
    assert not [
        child for child in children if child.is_running() and "resource_tracker" not in " ".join(child.cmdline())
    ]


def _check_commands(run: Driven, recording: Recording, began: float) -> None:
    path = commands(run)
    assert fastest(path) <= VELOCITY * (1 + 1e-5)
    assert fastest(path) > 0.9 * VELOCITY, "noise is faster than the limit"
    assert "velocity" in run.session.log.interventions
    approach = commands(run)[: len(path) - round(2.0 * RATE)]
    assert len(approach) > 3
    assert fastest(approach) <= RAMP * VELOCITY * (1 + 1e-5)
    actions = np.stack(recording.actions)
    assert len(actions) == pytest.approx(2.0 / PERIOD, abs=2)
    assert {key: len(values) for key, values in recording.observations.items()} == {"state": len(actions)}
    nearest = np.abs(actions[:, None] - path[None]).max(axis=2).min(axis=1)
    assert nearest.max() < 1e-6, "what is recorded was commanded"
    assert run.log("reset", after=began)[-1]["seed"] == 3
    assert run.held_after(time.monotonic()) == 0


def _check_end_by_user(run: Driven) -> None:
    """During the approach, too."""
    assert run.run(step_12=lambda: "enough").cause == "enough"
    assert run.held_after(time.monotonic()) == 0
    now = time.monotonic()
    assert run.run(step_2=lambda: "not even begun").cause == "not even begun"
    assert not run.log("command", after=now)
    assert run.run(step_4=lambda: "on the way").cause == "on the way"
    assert 0 < len(run.log("command", after=now)) < 5 * PERIOD * RATE, "nothing follows a stop"
    assert run.held_after(time.monotonic()) == 0


def _check_suspended_inference(run: Driven) -> None:
    """The plan runs out, and the robot stays where it is; the late chunk is played when it comes."""
    pid, times = run.session.inference.pid, []

    def suspend() -> None:
        os.kill(pid, signal.SIGSTOP)

    def resume() -> None:
        times.append(time.monotonic())
        os.kill(pid, signal.SIGCONT)

    held, late = run.session.log.held_steps, run.session.log.late_chunks
    begun = len(run.session.log.boundaries)
    end = run.run(step_25=suspend, step_45=resume, step_60=lambda: "done")
    assert end.cause == "done"
    assert run.session.log.held_steps - held >= 5
    assert run.session.log.late_chunks > late
    assert len(run.session.log.boundaries) - begun >= 2, "it goes on with new chunks"
    still = np.array([line["action"] for line in run.log("command") if 0 < times[0] - line["time"] < 4 * PERIOD])
    assert np.ptp(still, axis=0).max() == 0
    assert run.run(step_30=suspend, step_36=lambda: "a chunk is pending").cause == "a chunk is pending"
    os.kill(pid, signal.SIGCONT)
    time.sleep(5 * PERIOD)  # it comes between the episodes
    suspend()
    now = time.monotonic()
    assert run.run(step_8=lambda: "enough").cause == "enough"
    assert not run.log("command", after=now), "the chunk of before is not of this episode"
    os.kill(pid, signal.SIGCONT)
    assert run.run(seconds=0.3).cause == "time"


def _check_killed_inference(run: Driven) -> None:
    killed = []

    def kill() -> None:
        killed.append(time.monotonic())
        os.kill(run.session.inference.pid, signal.SIGKILL)

    with pytest.raises(RobotError, match=r"the inference process ended unexpectedly.*; the robot holds"):
        run.run(step_30=kill)
    assert run.held_after(killed[0]) <= PERIOD + SLACK
    assert run.run().reason.startswith("the control loop ended: the inference process ended"), "for good"


def test_a_watchdog_that_is_suspended_or_killed_leaves_a_robot_that_holds_by_itself(tmp_path: Path) -> None:
    with driven(tmp_path) as run:
        pid, times = run.session.watchdog.pid, []

        def suspend() -> None:
            times.append(time.monotonic())
            os.kill(pid, signal.SIGSTOP)
            time.sleep(5 * PERIOD)
            times.append(time.monotonic())
            os.kill(pid, signal.SIGCONT)

        def kill() -> None:
            times.append(time.monotonic())
            os.kill(pid, signal.SIGKILL)

        missed = run.session.log.missed
        with pytest.raises(RobotError, match=r"the watchdog process ended unexpectedly"):
            run.run(step_25=suspend, step_40=kill)
        assert run.session.log.missed - missed >= 4 * PERIOD * RATE
        holds = [line for line in run.log("hold", after=times[0]) if line["time"] < times[1]]
        assert [line["reason"] for line in holds] == ["no command in time"]
        assert holds[0]["time"] < times[0] + 2 * PERIOD + SLACK
        assert fastest(commands(run, after=times[0])) <= VELOCITY * (1 + 1e-5), "no jump afterwards"
        assert run.held_after(times[2]) <= PERIOD + SLACK


def test_a_fault_in_the_loop_holds_the_robot_at_once(tmp_path: Path) -> None:
    """While every prediction takes longer than a control step."""
    with driven(tmp_path, inference={"delay_ms": 150.0}, n_action_steps=2) as run:
        assert run.loop.delay == 2

        def fail() -> None:
            raise ZeroDivisionError("an unforeseen fault")

        with pytest.raises(ZeroDivisionError):  # on a busy machine the loop skips steps, so that the 40th comes late
            pytest.fail(f"it ended before the fault: {run.run(step_40=fail, seconds=60.0)}")
        failed = time.monotonic()
        assert run.held_after(failed) <= PERIOD + SLACK
        assert set(run.session.log.delays) >= {2}
        assert run.run().reason == "the control loop ended: an unforeseen fault"


def test_a_robot_that_is_gone_ends_the_episode_and_is_named(tmp_path: Path) -> None:
    with driven(tmp_path) as run:
        family = psutil.Process(run.session.watchdog.pid).children()
        (robot,) = [process for process in family if PUSHT in process.cmdline()]
        end = run.run(step_20=robot.kill)
        assert end.cause == "stopped"
        assert re.search(
            rf"simulated:{PUSHT}:\w+: the (robot closed the connection|connection to the robot fail)", end.reason
        )
        assert run.session.log.interventions["stop"] == 1


OWN = ChunkExecution(observation_steps=2, horizon=8, n_action_steps=4)


@pytest.mark.parametrize(
    ("own", "changes", "delay", "strategy"),
    [
        (OWN, {}, 0, "asynchronous"),
        (replace(OWN, longest_prefix=2), {"n_action_steps": None}, 2, "real_time"),
        (replace(OWN, longest_prefix=2), {}, 3, "asynchronous"),
        (replace(OWN, longest_prefix=2), {"strategy": "temporal_ensemble"}, 2, "temporal_ensemble"),
        (OWN, {}, 5, "synchronous"),
        (OWN, {"n_action_steps": 8}, 1, "synchronous"),
    ],
)
def test_the_strategy_is_what_policy_and_delay_admit(
    own: ChunkExecution, changes: dict[str, Any], delay: int, strategy: str
) -> None:
    chosen = choose_execution(own, changes, delay)
    assert (chosen.strategy, chosen.delay) == (strategy, delay)


@pytest.mark.parametrize(
    ("changes", "delay", "method", "message"),
    [
        (
            {"strategy": "asynchronous"},
            5,
            None,
            "a delay of 5 control steps .*needs delay <= n_action_steps <= hor",
        ),
        ({"strategy": "real_time"}, 2, None, "but the policy continues at most 0 committed actions: train it with"),
        ({"n_action_steps": 9}, 0, None, "must be from 1 to the horizon, 8"),
        ({"strategy": "psychic"}, 0, None, "unknown strategy 'psychic'"),
        ({}, 0, "trained", "prefix_method=trained is for strategy=real_time, but strategy=asynchronous is used"),
    ],
)
def test_what_policy_and_delay_do_not_admit_is_refused(
    changes: dict[str, Any], delay: int, method: str | None, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        choose_execution(OWN, changes, delay, prefix_method=method)


def test_a_machine_that_cannot_hold_the_rate_is_refused_before_the_first_command(tmp_path: Path) -> None:
    """Reading the robot takes longer than a command period."""
    with (
        importable_drivers(),
        pytest.raises(
            ConfigurationError,
            match=r"rate=100: only about \d\d commands per second are possible: it takes [23]\d\.\d ms to read",
        ),
        ControlSession(
            partial(make_robot, "faulty_arm:FaultyArm", {"folder": str(tmp_path), "observe_seconds": 0.02}),
            InferenceOptions(str(save_policy(tmp_path / "policy"))),
            watchdog_options(tmp_path),
            {},
        ) as session,
    ):
        session.preflight()
    assert not read_log(tmp_path / "log", "command")
