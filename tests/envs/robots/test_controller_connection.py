"""A robot's end of the connection: messages at their times, and no waiting for whoever does not read."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from flowchunk.datasets.errors import RobotError
from flowchunk.envs.robots.controller_connection import MAX_WAITING, ControllerConnection
from flowchunk.envs.robots.wire import Message, receive

pytestmark = pytest.mark.real_time

IMAGE = np.zeros((200, 200, 3), np.uint8)


@pytest.fixture
def ends() -> Iterator[tuple[ControllerConnection, socket.socket]]:
    near, far = socket.socketpair()
    far.settimeout(10)
    robot = ControllerConnection(near, pid=1)
    with far:
        yield robot, far
    robot.close()
    robot.close()


def kinds(far: socket.socket, count: int) -> list[str]:
    messages = [receive(far) for _ in range(count)]
    return [message.kind for message in messages if message is not None]


def test_messages_arrive_at_their_times(ends: tuple[ControllerConnection, socket.socket]) -> None:
    robot, far = ends
    start = time.monotonic()
    for kind, after in (("c", 0.2), ("a", 0.0), ("b", 0.1), ("d", 0.2)):
        robot.post(Message(kind), after=after)
    assert kinds(far, 1) == ["a"]
    assert kinds(far, 3) == ["b", "c", "d"]
    assert time.monotonic() - start >= 0.2


def test_it_does_not_wait_for_a_controller_that_does_not_read(
    ends: tuple[ControllerConnection, socket.socket],
) -> None:
    robot, far = ends
    start = time.monotonic()
    for index in range(2 * MAX_WAITING):
        robot.post(Message("reading", {"index": index}, {"image": IMAGE}))
    robot.post(Message("done"))
    assert time.monotonic() - start < 5
    received: list[str] = []
    while received[-1:] != ["done"]:
        received += kinds(far, 1)
    assert MAX_WAITING <= received.count("reading") < 2 * MAX_WAITING, "the later ones are lost, replies are not"


def test_it_closes_while_a_controller_does_not_read(ends: tuple[ControllerConnection, socket.socket]) -> None:
    robot, _ = ends
    for _ in range(20):
        robot.post(Message("reading", {}, {"image": IMAGE}))
    time.sleep(0.05)
    closing = threading.Thread(target=robot.close)
    closing.start()
    closing.join(5)
    assert not closing.is_alive()


def test_arrays_are_sent_as_they_were_when_they_were_posted(
    ends: tuple[ControllerConnection, socket.socket],
) -> None:
    robot, far = ends
    values = np.zeros(3)
    robot.post(Message("reading", {}, {"values": values}), after=0.05)
    values[:] = 1
    message = receive(far)
    assert message is not None
    assert message.arrays["values"].tolist() == [0, 0, 0]


def test_what_cannot_be_sent_is_an_error_where_it_is_posted(ends: tuple[ControllerConnection, socket.socket]) -> None:
    with pytest.raises(RobotError, match="values: expected an array of numbers"):
        ends[0].post(Message("reading", {}, {"values": np.array(["text"])}))
