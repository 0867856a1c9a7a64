"""The controller's end of the connection to a simulated robot: it keeps the newest reading, and waits for replies."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import count
from typing import Any

from flowchunk.datasets.errors import RobotError
from flowchunk.datasets.specs import ActionSpec, ObservationSpec
from flowchunk.envs.robots.robot import Reading
from flowchunk.envs.robots.wire import Message, encode, receive

SILENCE = 1.0  # s without a reading, after which the robot has failed
GRACE = 0.5  # s in which it may still speak: a busy machine may have stopped its controller, or both
REPLY_TIMEOUT = 5.0  # s
SEND_TIMEOUT = struct.pack("ll", 1, 0)  # s and µs: a robot that stopped does not stop its controller


class SimulatedLink:
    """A connection, open until ``close`` or until the robot fails; every method raises RobotError after that.

    observation_spec, action_spec: of the robot. server_pid: of its process. Raises RobotError if the robot has another
    controller or simulates another task.
    """

    def __init__(self, connection: socket.socket, env_id: str) -> None:
        self._connection = connection
        self._changed = threading.Condition()
        self._reading: Reading | None = None
        self._outcome: Mapping[str, float | bool] = {}
        self._heard_at = time.monotonic()
        self._replies: dict[int, Message] = {}
        self._failure: str | None = None
        self._complaint: str | None = None
        self._requests = count()
        try:
            self._greet(env_id)
        except BaseException:
            connection.close()
            raise
        self._receiver = threading.Thread(target=self._receive, name="robot", daemon=True)
        self._receiver.start()

    def newest(self) -> Reading:
        """The newest reading, without waiting.

        If none came for 1 s, or for three control periods if longer, it waits for another 0.5 s, and then raises RobotError.
        """
        with self._changed:
            self._require_sound()
            if self._is_silent():
                self._changed.wait_for(lambda: self._failure or not self._is_silent(), GRACE)
                self._require_sound()
            if self._is_silent():
                silence = time.monotonic() - self._heard_at
                raise RobotError(
                    f"the robot has sent nothing for {silence:.1f} s; is its process stopped or overloaded?"
                )
            assert self._reading is not None
            return self._reading

    def outcome(self) -> Mapping[str, float | bool]:
        """Score and success of the episode, as of the newest reading."""
        with self._changed:
            self._require_sound()
            return self._outcome

    def wait_for_reading(self, after: float) -> None:
        """Wait for a reading that was made after this time of ``time.monotonic()``."""
        with self._changed:
            self._wait(lambda: self._reading is not None and min(self._reading.times.values()) > after, "a reading")

    def send(self, message: Message) -> None:
        """Send without waiting for a reply."""
        with self._changed:
            self._require_sound()
        try:
            self._connection.sendall(encode(message))
        except OSError as error:
            self._fail(f"the connection to the robot failed: {error}")
            raise RobotError(self._failure) from error

    def request(self, kind: str, **fields: Any) -> Message:
        """Send, and wait for the reply."""
        request = next(self._requests)
        self.send(Message(kind, {**fields, "request": request}))
        with self._changed:
            self._wait(lambda: request in self._replies, f"a reply to {kind!r}")
            return self._replies.pop(request)

    def close(self, *, quit_server: bool) -> None:
        """Close the connection. quit_server: also end the robot's process."""
        with suppress(OSError):
            if quit_server and self._failure is None:
                self._connection.sendall(encode(Message("quit")))
            self._connection.shutdown(socket.SHUT_RDWR)
        self._receiver.join()
        self._connection.close()

    def _greet(self, env_id: str) -> None:
        self._connection.settimeout(REPLY_TIMEOUT)
        try:
            self._connection.sendall(encode(Message("hello", {"pid": os.getpid()})))
            greeting = receive(self._connection)
        except OSError as error:
            raise RobotError(f"no greeting from the robot: {error}") from error
        if greeting is None:
            raise RobotError("the robot closed the connection without a greeting; connect again")
        if greeting.kind == "refused":
            raise RobotError(
                f"the robot is in use by the process {greeting.fields['pid']}; end it, or wait until it has closed the robot"
            )
        if (found := greeting.fields["env_id"]) != env_id:
            raise RobotError(f"expected a robot that simulates {env_id}, got one of {found}; check its address")
        self.server_pid: int = greeting.fields["pid"]
        self.observation_spec = ObservationSpec.from_json(greeting.fields["observation_spec"])
        self.action_spec = ActionSpec.from_json(greeting.fields["action_spec"])
        self._connection.settimeout(None)
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, SEND_TIMEOUT)

    def _receive(self) -> None:
        try:
            while (message := receive(self._connection)) is not None:
                self._take(message)
            self._fail("the robot closed the connection")
        except (OSError, RobotError, KeyError, TypeError) as error:
            self._fail(f"the connection to the robot failed: {error}")

    def _take(self, message: Message) -> None:
        with self._changed:
            if message.kind == "reading":
                self._heard_at = time.monotonic()
                times = dict.fromkeys(message.arrays, float(message.fields["measured_at"]))
                if self._reading is None or min(self._reading.times.values()) < message.fields["measured_at"]:
                    self._reading = Reading(message.arrays, times)  # jitter may bring an older one later
                    self._outcome = message.fields["outcome"]
            elif message.kind == "error":
                self._complaint = message.fields["text"]
            else:
                self._replies[message.fields["request"]] = message
            self._changed.notify_all()

    def _is_silent(self) -> bool:
        return time.monotonic() - self._heard_at > max(SILENCE, 3 / self.action_spec.control_hz)

    def _wait(self, is_there: Callable[[], bool], expected: str) -> None:
        """Wait, with the lock held."""
        self._changed.wait_for(lambda: is_there() or self._failure or self._complaint, REPLY_TIMEOUT)
        self._require_sound()
        if not is_there():
            raise RobotError(
                f"expected {expected} within {REPLY_TIMEOUT:g} s, got none; is the robot's process stopped?"
            )

    def _require_sound(self) -> None:
        """Raise RobotError if the connection has failed, or once for what the robot has complained about."""
        complaint, self._complaint = self._complaint, None
        if complaint or self._failure:
            raise RobotError(complaint or self._failure)

    def _fail(self, reason: str) -> None:
        with self._changed:
            self._failure = self._failure or reason
            self._changed.notify_all()
