"""A simulated robot is hardware: it goes on, and holds, whatever happens to its controller. Real processes and sockets."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from flowchunk.datasets.errors import RobotError
from flowchunk.envs.robots.robot import ResettableRobot
from flowchunk.envs.robots.server_process import open_connection
from flowchunk.envs.robots.simulated import SimulatedRobot
from flowchunk.envs.robots.simulated_server import main
from flowchunk.envs.robots.wire import Message, encode

pytestmark = pytest.mark.real_time

ARM, PUSHT = "flowchunk/PickPlace-v1", "flowchunk/PushT-v1"
PERIOD = 0.05  # s, of the arm
SLACK = 0.5  # s, for a machine that does other things too
CONTROLLER = """
import sys, time
from flowchunk.envs.robots.simulated import SimulatedRobot
robot = SimulatedRobot("flowchunk/PickPlace-v1", address=sys.argv[1])
robot.connect()
target = robot.hold() + 0.1
while True:
    robot.command(target)
    print("moving", flush=True)
    time.sleep(0.01)
"""


class Served:
    """A robot that runs in a process of its own, as from a command line, and its log."""

    def __init__(self, env_id: str, *options: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="flowchunk-test-"))  # paths of sockets must be short
        self.address, self._log = self.folder / "socket", self.folder / "log"
        module = [sys.executable, "-P", "-m", "flowchunk.envs.robots.simulated_server", env_id]
        given = [*options, f"--address={self.address}", f"--log={self._log}"]
        self.process = subprocess.Popen([*module, *given], stderr=subprocess.PIPE, text=True)
        wait_until(lambda: self.address.exists() or self.process.poll() is not None, 60)

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """What is written down completely."""
        lines = self._log.read_text().split("\n")[:-1]
        return [event for event in map(json.loads, lines) if not kinds or event["event"] in kinds]

    def robot(self, **options: Any) -> SimulatedRobot:
        return SimulatedRobot(ARM, address=self.address, **options)

    def controllers_are_gone(self) -> bool:
        return [event["event"] for event in self.events("connected", "disconnected")][-1:] != ["connected"]

    def close(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.communicate(timeout=10)
        shutil.rmtree(self.folder)


def wait_until(is_true: Callable[[], bool], timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def observe_until_it_fails(robot: SimulatedRobot) -> None:
    for _ in range(1000):
        robot.observe()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """One process for the tests of this file, which all leave it without a controller."""
    served = Served(ARM, "--command-timeout=1")
    yield served
    served.close()
    assert served.process.returncode == 0
    assert not served.folder.exists()


@pytest.fixture
def arm(served: Served) -> Iterator[SimulatedRobot]:
    wait_until(served.controllers_are_gone)
    robot = served.robot()
    robot.connect()
    yield robot
    robot.close()
    robot.close()  # may be called more than once


def test_it_is_a_robot_that_starts_episodes(arm: SimulatedRobot) -> None:
    assert isinstance(arm, ResettableRobot)
    assert arm.observation_spec.fields["state"].names[0] == "base_yaw"
    assert (arm.action_spec.size, arm.action_spec.control_hz, arm.command_hz) == (7, 20, 50)
    assert arm.outcome() == {"score": 0.0, "is_success": False}
    arm.connect()  # it already is


def test_readings_come_at_the_control_rate_without_waiting(arm: SimulatedRobot) -> None:
    times, longest = [], 0.0
    for _ in range(400):
        before = time.monotonic()
        reading = arm.observe()
        longest = max(longest, time.monotonic() - before)
        assert reading.values["state"].shape == (19,)
        assert reading.values["state"].dtype == np.float32
        assert reading.times["state"] <= time.monotonic()
        times.append(reading.times["state"])
        time.sleep(0.0025)
    measured = np.unique(times)
    assert sorted(times) == times
    assert longest < PERIOD
    assert abs(np.median(np.diff(measured)) - PERIOD) < 0.01
    assert time.monotonic() - times[-1] < PERIOD + SLACK


def test_it_follows_commands_and_holds_where_it_is(arm: SimulatedRobot) -> None:
    arm.reset(0)
    start = arm.observe().values["state"][0]
    target = arm.hold()
    target[0] += 0.2
    for _ in range(50):
        arm.command(target)
        time.sleep(0.02)
    assert abs(arm.observe().values["state"][0] - start - 0.2) < 0.02
    held = arm.hold()
    assert abs(held[0] - start - 0.2) < 0.02
    time.sleep(0.2)
    assert abs(arm.observe().values["state"][0] - held[0]) < 0.02


def test_the_reading_after_a_reset_is_of_the_new_episode(arm: SimulatedRobot) -> None:
    def cube_after(seed: int) -> list[float]:
        arm.reset(seed)
        rounded: list[float] = arm.observe().values["state"][10:12].round(3).tolist()
        return rounded

    assert cube_after(3) == cube_after(3) != cube_after(4)
    assert cube_after(3) != cube_after(4)


def test_a_second_controller_is_refused_by_the_process_of_the_first(arm: SimulatedRobot, served: Served) -> None:
    with pytest.raises(RobotError, match=rf"in use by the process {os.getpid()}; end it"):
        served.robot().connect()
    arm.observe()
    arm.close()
    wait_until(served.controllers_are_gone)
    other = served.robot()
    other.connect()
    other.close()


def test_another_task_at_the_address_is_refused(served: Served) -> None:
    wait_until(served.controllers_are_gone)
    with pytest.raises(RobotError, match=f"expected a robot that simulates {PUSHT}, got one of {ARM}"):
        SimulatedRobot(PUSHT, address=served.address).connect()


@pytest.mark.parametrize("action", [np.full(7, np.nan), np.zeros(6)], ids=["NaN", "shape"])
def test_a_command_that_cannot_be_followed_is_an_error_once(
    arm: SimulatedRobot, served: Served, action: np.ndarray
) -> None:
    arm.command(arm.hold())
    arm.command(action)
    with pytest.raises(RobotError, match="a command was refused, and the robot holds: expected"):
        observe_until_it_fails(arm)
    arm.observe()
    wait_until(lambda: served.events("step")[-1]["holding"] == "a command was refused")


def test_it_holds_if_commands_stop(arm: SimulatedRobot, served: Served) -> None:
    arm.command(arm.hold() + 0.1)
    stopped = time.monotonic()
    wait_until(lambda: served.events("step")[-1]["holding"] == "no command in time")
    assert 0.9 < served.events("hold")[-1]["time"] - stopped < 1 + PERIOD + SLACK


def test_it_holds_when_its_controller_is_killed(served: Served) -> None:
    """Long before the second after which it would hold because commands stop."""
    wait_until(served.controllers_are_gone)
    controller = subprocess.Popen(
        [sys.executable, "-P", "-c", CONTROLLER, str(served.address)], stdout=subprocess.PIPE, text=True
    )
    assert controller.stdout is not None
    assert [controller.stdout.readline() for _ in range(40)] == ["moving\n"] * 40
    assert served.events("step")[-1]["holding"] is None
    killed = time.monotonic()
    controller.kill()
    controller.communicate()
    wait_until(served.controllers_are_gone)
    wait_until(lambda: served.events("step")[-1]["time"] > killed + 3 * PERIOD)
    hold = served.events("hold")[-1]
    assert hold["reason"] == "the controller's connection closed"
    assert killed < hold["time"] < killed + PERIOD + SLACK
    steps = [step for step in served.events("step") if step["time"] > hold["time"]]
    assert {step["holding"] for step in steps} == {hold["reason"]}
    assert len({tuple(step["target"]) for step in steps}) == 1
    assert served.events("disconnected")[-1]["pid"] == controller.pid
    robot = served.robot()  # and another controller takes over
    robot.connect()
    robot.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        encode(Message("dance")),
        encode(Message("reset", {"request": 0})),
        encode(Message("reset", {"request": 0, "seed": "x"})),
    ],
)
def test_it_survives_controllers_that_send_nonsense(served: Served, sent: bytes) -> None:
    wait_until(served.controllers_are_gone)
    with open_connection(served.address) as connection:
        connection.sendall(encode(Message("hello", {"pid": len(sent)})) + sent)
        wait_until(lambda: [event["pid"] for event in served.events("disconnected")][-1:] == [len(sent)])
    assert "sent what cannot be used" in served.events("disconnected")[-1]["reason"]
    assert served.process.poll() is None


@pytest.mark.parametrize("sent", [b"", bytes(8), encode(Message("hello", {"pid": "x"})), encode(Message("hello"))])
def test_whoever_does_not_introduce_itself_is_no_controller(served: Served, sent: bytes) -> None:
    wait_until(served.controllers_are_gone)
    with open_connection(served.address) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    robot = served.robot()
    robot.connect()
    robot.close()


def test_a_stall_of_all_processes_is_no_silence(arm: SimulatedRobot, served: Served) -> None:
    """Whoever was stopped itself, as by a busy machine, listens before it says that the robot is silent."""
    served.process.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    resumed = time.monotonic()
    served.process.send_signal(signal.SIGCONT)
    assert arm.observe().times["state"] >= resumed


def test_after_a_stall_it_goes_on_from_now(arm: SimulatedRobot, served: Served) -> None:
    """A process that was stopped for ten periods does not make up for them; its controller notices."""
    num_late = len(served.events("late"))
    served.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(RobotError, match=r"has sent nothing for 1\.\d s"):
            observe_until_it_fails(arm)
    finally:
        served.process.send_signal(signal.SIGCONT)
    resumed = time.monotonic()
    wait_until(lambda: served.events("step")[-1]["time"] > resumed + 5 * PERIOD)
    late = served.events("late")[num_late:]
    assert len(late) >= 1
    assert max(event["late"] for event in late) > 0.9
    assert late[-1]["num_late"] == num_late + len(late)
    steps = np.array([step["time"] for step in served.events("step")])
    assert np.diff(steps[steps > resumed]).min() > 0.4 * PERIOD
    arm.observe()


def test_readings_and_commands_take_time_and_get_lost_by_the_seed(tmp_path: Path) -> None:
    robot = SimulatedRobot(ARM, sensing_delay=0.3, drop=0.3, command_delay=0.1, jitter=0.02, log=tmp_path / "log")
    robot.connect()
    try:
        robot.reset(1)
        ages = []
        for _ in range(100):
            ages.append(time.monotonic() - robot.observe().times["state"])
            time.sleep(0.01)
        assert min(ages) >= 0.3
        assert max(ages) > 0.3 + 1.5 * PERIOD  # some were lost
        for seed in (2, 3, 2):
            before = time.monotonic()
            robot.reset(seed)
            assert robot.observe().times["state"] > before, "none of before that is still on its way"
            for _ in range(30):
                robot.command(np.zeros(7))
            robot.outcome()  # the commands have arrived before it
    finally:
        robot.close()
    travel_times: list[list[float | None]] = []
    for event in map(json.loads, (tmp_path / "log").read_text().splitlines()):
        if event["event"] == "reset":
            travel_times.append([])
        elif event["event"] == "command":
            travel_times[-1].append(event["travel_time"])
    second, third, again = travel_times[-3:]
    assert second == again != third
    assert len(second) == 30
    assert None in second
    assert all(0.1 <= seconds <= 0.12 for seconds in second if seconds is not None)


def test_an_image_arrives_as_it_was_rendered() -> None:
    robot = SimulatedRobot(PUSHT, {"observation": "image"})
    robot.connect()
    try:
        image = robot.observe().values["image"]
        assert image.shape == (96, 96, 3)
        assert image.dtype == np.uint8
        assert image.std() > 10
        assert robot.observation_spec.images["image"].camera == "top"
        process, folder = psutil.Process(robot.server_pid), robot.address.parent
    finally:
        robot.close()
    wait_until(lambda: not process.is_running())
    assert not folder.exists()


def test_a_robot_that_is_killed_is_an_error_at_once() -> None:
    robot = SimulatedRobot(ARM)
    robot.connect()
    folder = robot.address.parent
    os.kill(robot.server_pid, signal.SIGKILL)
    killed = time.monotonic()
    with pytest.raises(RobotError, match=r"simulated:flowchunk/PickPlace-v1.*the robot"):
        observe_until_it_fails(robot)
    assert time.monotonic() - killed < SLACK
    for use in (robot.hold, lambda: robot.command(np.zeros(7)), lambda: robot.reset(0), robot.outcome):
        with pytest.raises(RobotError):
            use()
    robot.close()
    assert not folder.exists()


def test_a_robot_outlives_who_started_it_and_ends_when_nobody_comes(tmp_path: Path) -> None:
    code = CONTROLLER.replace("address=sys.argv[1]", "log=sys.argv[1]").replace(
        '"moving"', "robot.server_pid, robot.address"
    )
    starter = subprocess.Popen(
        [
            sys.executable,
            "-P",
            "-c",
            "import flowchunk.envs.robots.simulated as s; s.LINGER = 1.5\n" + code,
            str(tmp_path / "log"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert starter.stdout is not None
    pid, address = starter.stdout.readline().split()
    server = psutil.Process(int(pid))
    assert os.getsid(server.pid) == server.pid  # Ctrl-C in the terminal does not reach it
    starter.kill()
    starter.communicate()
    time.sleep(0.3)
    assert server.is_running()
    robot = SimulatedRobot(ARM, address=address)
    robot.connect()
    time.sleep(2)
    robot.observe()  # with a controller it stays longer
    robot.close()
    wait_until(lambda: not server.is_running())
    last = json.loads((tmp_path / "log").read_text().splitlines()[-1])
    assert last["holding"] == "the controller's connection closed"
    shutil.rmtree(Path(address).parent)


def test_an_address_in_use_is_refused_and_a_dead_one_taken_over(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([ARM, f"--address={served.address}"]) == 1
    assert "error: cannot listen at" in capsys.readouterr().err
    wait_until(served.controllers_are_gone)
    dead = served.folder / "dead"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead))
    assert main([ARM, f"--address={dead}", "--linger=0"]) == 0
    assert not dead.exists()
