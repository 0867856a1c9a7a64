"""The driver of the guide, with an arm at the other end of its connection."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from flowchunk.datasets.errors import RobotError
from flowchunk.envs.robots.matching import SpecMatch
from flowchunk.envs.robots.robot import Robot
from tests.test_docs import blocks

PAGE = "docs/guides/your-robot.md"


class ArmServer(socketserver.ThreadingTCPServer):
    """An arm that is at once where it is commanded to be."""

    allow_reuse_address = daemon_threads = True
    joints = "0.5 -2.5"


class Arm(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, ArmServer)
        for line in self.rfile:
            request = line.decode().split(maxsplit=1)
            if request[0] == "MOVE":
                self.server.joints = request[1].strip()
            elif request[0] == "FAIL":
                return
            self.wfile.write(f"{self.server.joints}\n".encode())


@pytest.fixture
def server() -> Iterator[ArmServer]:
    with ArmServer(("127.0.0.1", 0), Arm) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        yield server
        server.shutdown()


def run_page(port: int, *, num_blocks: int | None = None) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for language, code in list(blocks(PAGE))[:num_blocks]:
        assert language == "python"
        exec(compile(code.replace("port=5005", f"port={port}"), PAGE, "exec"), names)
    return names


def test_the_page_runs_and_its_driver_is_a_robot(server: ArmServer, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_page(server.server_address[1])
    assert "observe takes" in capsys.readouterr().out
    assert server.joints == "0.500000 -2.000000", "held, within the bounds"
    arm: Any = names["TwoJointArm"]()
    assert isinstance(arm, Robot)
    with pytest.raises(RobotError, match=r"is not connected; call connect\(\) first"):
        arm.observe()
    arm.connect()
    arm.command(np.array([0.25, 1.0]))
    assert arm.observe().values["joints"].tolist() == [0.25, 1.0]
    assert SpecMatch.of(arm.observation_spec, arm.action_spec, arm).observation(arm.observe())["joints"][1] == 1
    with pytest.raises(RobotError, match="does not answer 'FAIL'"):
        names["TwoJointArm"].ask(arm, "FAIL")
    arm.close()
    arm.close()


def test_an_arm_that_is_switched_off_is_an_error() -> None:
    driver = run_page(5005, num_blocks=1)["TwoJointArm"]
    with pytest.raises(RobotError, match=r"cannot be reached: .*is it switched on"):
        driver(port=1).connect()


def test_the_driver_is_short() -> None:
    assert len(next(code for _, code in blocks(PAGE)).splitlines()) <= 60
