"""Whatever fails, the robot holds, and the reason is said: drivers, sensors, signals, and the loop itself."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flowchunk.envs.control.messages import Stop
from tests.envs.control.faults import PERIOD, SLACK, watched

pytestmark = pytest.mark.real_time


def wait_until(is_true: Callable[[], bool], timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("observe:raise", r"arm:.* cannot be read: KeyError: 'no such register'"),
        ("observe:nan", r"the observation 'joints' has values that are not finite"),
        (
            "observe:far",
            r"far outside the training data: joints\[0\] is 9, but was -1 to 1 in training \(safety.margin=0.5",
        ),
        ("observe:old", r"the sensor of 'joints' is lost: its last measurement is 5\.\d+ s old, but at most 0.3 s"),
        ("observe:ahead", r"the sensor of 'joints' is lost: its last measurement is -[45]\.\d+ s old"),
        ("observe:shape", r"'joints': expected the shape \(3,\) of the robot's observation_spec, got \(2,\)"),
        ("command:raise", r"arm:.* cannot be commanded: KeyError: 'no such register'"),
    ],
)
def test_a_robot_that_fails_is_held_for_good(fault: str, reason: str, tmp_path: Path) -> None:
    with watched(tmp_path) as run:
        run.move(4)
        failed = time.monotonic()
        run.fail(fault)
        stopped = run.until_stopped()
        assert re.search(reason, stopped), stopped
        wait_until(lambda: len(run.log("hold")) > 2)
        hold = run.log("hold")[-1]["time"]
        assert failed < hold < failed + PERIOD + SLACK
        run.fail("")
        run.play(run.halt(), 0.1, 0.2)
        time.sleep(3 * PERIOD)
        assert run.commands()[-1]["time"] < hold, "nothing is commanded any more"
        assert run.begin().stopped == stopped, "the first reason counts, in the next episode too"


def test_a_driver_that_blocks_gets_no_more_commands_and_ends_with_the_session(tmp_path: Path) -> None:
    with watched(tmp_path) as run:
        run.move(4)
        run.fail("observe:block")
        time.sleep(PERIOD + SLACK)
        count = len(run.commands())
        while run.helper.receive() is not None:
            pass
        assert run.helper.receive(3 * PERIOD) is None, "which the loop notices"
    assert len(run.commands()) == count
    assert run.helper.process.exitcode == -signal.SIGKILL, "it could not be ended otherwise"


def test_a_robot_that_refuses_to_hold_is_commanded_nothing_and_asked_again(tmp_path: Path) -> None:
    with watched(tmp_path) as run:
        run.move(4)
        run.fail("hold:raise")
        assert "cannot be held: KeyError" in (run.halt().stopped or "")
        count, holds = len(run.commands()), len(run.log("hold"))
        time.sleep(3 * PERIOD)
        assert (len(run.commands()), len(run.log("hold"))) == (count, holds)
        run.fail("")
        wait_until(lambda: len(run.log("hold")) > holds)
        time.sleep(3 * PERIOD)
        assert len(run.log("hold")) == holds + 1, "once is enough"


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM", "SIGHUP", "file", "loop"])
def test_an_emergency_stop_holds_within_a_control_period(name: str, tmp_path: Path) -> None:
    reasons = {"file": f"emergency stop by the file {tmp_path / 'STOP'}", "loop": "the user's"}
    with watched(tmp_path) as run:
        run.move(4)
        asked = time.monotonic()
        if name == "file":
            (tmp_path / "STOP").touch()
        elif name == "loop":
            run.helper.send(Stop("the user's"))
        else:
            os.kill(run.helper.pid, getattr(signal, name))
        assert run.until_stopped() == reasons.get(name, f"emergency stop by signal {name}")
        wait_until(lambda: len(run.log("hold")) > 2)
        hold = run.log("hold")[-1]["time"]
        assert asked < hold < asked + PERIOD + SLACK
        assert run.commands()[-1]["time"] < hold
    assert run.helper.process.exitcode == 0, "a signal does not end it: it holds, and waits for the loop"


def test_a_loop_that_is_gone_leaves_a_robot_that_holds(tmp_path: Path) -> None:
    with watched(tmp_path) as run:
        run.move(4)
        gone = time.monotonic()
        run.helper.connection.close()  # as when it is killed
        run.helper.process.join(10)
    assert run.helper.process.exitcode == 0
    hold, close = run.log()[-2:]
    assert (hold["event"], close["event"]) == ("hold", "close")
    assert gone < hold["time"] < gone + PERIOD + SLACK
