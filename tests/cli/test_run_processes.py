"""flowchunk run in a terminal: keys, signals, and what is left when the command itself is suspended or killed."""

from __future__ import annotations

import json
import os
import pty
import resource
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from rich.console import Console

from flowchunk.cli.run import Episodes, _record
from flowchunk.cli.signals import Signals
from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.recorder import StoreWriter
from flowchunk.envs.control.loop import EpisodeEnd, Recording
from flowchunk.envs.control.run_log import RunLog
from flowchunk.envs.tasks.pusht import ACTION_SPEC, OBSERVATION_SPECS
from tests.envs.control.faults import SLACK, read_log
from tests.envs.control.small_sessions import PERIOD, save_policy

pytestmark = pytest.mark.real_time

IN_TERMINAL = 'exec "$@" <"$0" >"$0" 2>&1'  # the first terminal that a new session opens is its own
MOVING = 25  # commands after which the robot is on its way


class Command:
    """The command in a terminal of its own, and the log of its robot."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.output_dir, self._log = folder / "out", folder / "robot.log"
        checkpoint = save_policy(folder / "policy")
        command = [sys.executable, "-P", "-m", "flowchunk.cli.main", "run", str(checkpoint), f"driver.log={self._log}"]
        self.terminal, theirs = pty.openpty()
        self.process = psutil.Popen(
            ["sh", "-c", IN_TERMINAL, os.ttyname(theirs), *command, f"output_dir={self.output_dir}", *options],
            start_new_session=True,
            env={**os.environ, "COLUMNS": "200", "TERM": "xterm"},
        )
        wait_until(lambda: any(self.process.children(recursive=True)))
        os.close(theirs)
        self.shown = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def press(self, keys: str) -> float:
        """Returns when."""
        os.write(self.terminal, keys.encode())
        return time.monotonic()

    def log(self, *events: str, after: float = -np.inf) -> list[dict[str, Any]]:
        return [line for line in read_log(self._log, *events) if line["time"] > after]

    def wait_until_it_moves(self, episode: int = 1) -> None:
        def is_moving() -> bool:
            assert self.process.poll() is None, self.shown.decode()
            begun = [line["time"] for line in self.log("reset")[episode:]]
            return bool(begun) and len(self.log("command", after=begun[-1])) > MOVING

        wait_until(is_moving)

    def report(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.output_dir / "run.json").read_text())
        return content

    def close(self) -> str:
        """Wait for the end; returns what was shown."""
        self.process.wait(20)
        self._reader.join(10)
        os.close(self.terminal)
        return self.shown.decode(errors="replace").replace("\r\n", "\n")

    def _read(self) -> None:
        try:
            while part := os.read(self.terminal, 1 << 16):
                self.shown += part
        except OSError:  # nobody has the other end open any more
            return


@contextmanager
def command(folder: Path, *options: str) -> Iterator[Command]:
    """Nothing of it is left at the end."""
    made = Command(folder, *options)
    try:
        yield made
    finally:
        family = [made.process, *made.process.children(recursive=True)] if made.process.is_running() else []
        for process in family:
            process.kill()


def wait_until(is_true: Callable[[], bool], timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def last_motion(run: Command) -> float:
    """When the robot last made a step that was not held."""
    time.sleep(3 * PERIOD)
    return max(line["time"] for line in run.log("step") if line["holding"] is None)


def test_keys_judge_episodes_and_stop(tmp_path: Path) -> None:
    with command(tmp_path, "episodes=3") as run:
        for episode, key in enumerate("sf", start=1):
            run.wait_until_it_moves(episode)
            run.press(key)
        run.wait_until_it_moves(3)
        pressed = run.press(" ")
        shown = run.close()
    assert run.process.returncode == 1
    assert "error: the robot was stopped, and holds: key\n" in shown
    assert "[space] stop  [s] success  [f] failure" in shown, "the view while it moves"
    episodes = run.report()["episodes"]
    assert [(one["success"], one["end"]) for one in episodes] == [(True, "key s"), (False, "key f"), (None, "key")]
    assert run.report()["stopped"] == "key"
    assert max(line["time"] for line in run.log("step") if line["holding"] is None) < pressed + PERIOD + SLACK


def test_ctrl_c_stops_in_an_orderly_way(tmp_path: Path) -> None:
    """It reaches every process of the terminal, watchdog and inference included."""
    with command(tmp_path) as run:
        run.wait_until_it_moves()
        family = run.process.children(recursive=True)
        assert not termios.tcgetattr(run.terminal)[3] & termios.ICANON
        pressed = run.press("\x03")
        run.process.wait(20)
        assert termios.tcgetattr(run.terminal)[3] & termios.ICANON, "the terminal is as it was"
        shown = run.close()
    assert run.process.returncode == 130
    assert shown.endswith("interrupted; the robot holds; the report is in the output directory\n")
    assert "Traceback" not in shown
    assert run.report()["stopped"] == run.report()["episodes"][0]["end"] == "SIGINT"
    assert max(line["time"] for line in run.log("step") if line["holding"] is None) < pressed + PERIOD + SLACK
    wait_until(lambda: all(map(is_gone, family)))


def test_ctrl_c_before_the_first_command_leaves_nothing_behind(tmp_path: Path) -> None:
    with command(tmp_path) as run:
        wait_until(lambda: bool(run.log("connected")))
        family = run.process.children(recursive=True)
        run.press("\x03")
        shown = run.close()
    assert run.process.returncode == 130
    assert "Traceback" not in shown
    assert not run.log("command")
    wait_until(lambda: all(map(is_gone, family)))


def test_the_robot_holds_if_the_command_is_suspended_or_killed(tmp_path: Path) -> None:
    with command(tmp_path) as run:
        run.wait_until_it_moves()
        family = run.process.children(recursive=True)
        assert len(family) >= 3
        suspended = time.monotonic()
        run.process.suspend()
        time.sleep(2 * PERIOD + SLACK)
        held = np.array([line["action"] for line in run.log("command", after=suspended + 2 * PERIOD + SLACK / 2)])
        assert len(held) > 3
        assert np.ptp(held, axis=0).max() == 0
        resumed = time.monotonic()
        run.process.resume()
        wait_until(lambda: any(line["action"] != held[-1].tolist() for line in run.log("command", after=resumed)))
        killed = time.monotonic()
        run.process.kill()
        assert last_motion(run) < killed + PERIOD + SLACK
        wait_until(lambda: all(map(is_gone, family)))
        run.close()
    assert run.log("hold", after=killed)
    path = np.array([line["action"] for line in run.log("command")])
    assert np.abs(np.diff(path, axis=0)).max() <= 400 / 50 * (1 + 1e-5)


def test_signals_are_noticed_and_interrupt_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Signals() as signals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.raise_signal(number)
        assert signals.received == ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"]
        with pytest.raises(KeyboardInterrupt):
            signals.ask("answered already? ")
    with Signals() as signals:
        monkeypatch.setattr("builtins.input", lambda question: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(KeyboardInterrupt):
            signals.ask("how was it? ")
        assert signals.received == ["SIGTERM"]
        signal.raise_signal(signal.SIGTERM)  # interrupts nothing any more
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_stop_before_anything_is_recorded_is_still_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = EpisodeEnd("stopped", "emergency stop by SIGTERM")
    session: Any = SimpleNamespace(
        log=RunLog(), loop=lambda preflight, check: SimpleNamespace(run_episode=lambda **options: ended)
    )
    report: Any = SimpleNamespace(stopped=None)

    def add_episode(seed: int, end: EpisodeEnd, outcome: object, seconds: float, stopped: str | None) -> None:
        report.stopped = stopped

    report.add_episode = add_episode
    options = {"record": str(tmp_path / "data.zarr"), "episodes": 1, "seed": 0, "seconds": 1.0, "dry_run": False}
    preflight: Any = SimpleNamespace(robot=SimpleNamespace(can_reset=True))
    facts: Any = SimpleNamespace(observation_spec=OBSERVATION_SPECS["state"], action_spec=ACTION_SPEC)
    Episodes(Console(), session, preflight, options, facts, report).run()
    assert report.stopped == "emergency stop by SIGTERM"
    assert "note: nothing was recorded" in capsys.readouterr().out
    report.add_episode = lambda *_: None  # none that was stopped
    report.stopped = None
    with pytest.raises(DatasetError, match="nothing was recorded"):
        Episodes(Console(), session, preflight, options, facts, report).run()


def test_a_full_disk_ends_the_recording_and_keeps_the_episodes_before(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    long = Recording({"state": list(random.normal(size=(30_000, 5)))}, list(random.uniform(0, 512, (30_000, 2))))
    short = Recording({"state": long.observations["state"][:50]}, long.actions[:50])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = StoreWriter(
        tmp_path / "data.zarr", observation_spec=OBSERVATION_SPECS["state"], action_spec=ACTION_SPEC, say=None
    )
    with pytest.raises(DatasetError, match="the episodes before it are kept: free some disk space"), writer:  # noqa: PT012
        _record(writer, short)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        try:
            _record(writer, long)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert writer.num_episodes == 1
