"""A simulated robot's end of the connection to its controller; it never waits for a controller that does not read."""

from __future__ import annotations

import heapq
import socket
import threading
import time
from contextlib import suppress

from flowchunk.envs.robots.wire import Message, encode

READING = "reading"
MAX_WAITING = 256  # readings; a controller that does not read loses the later ones


class ControllerConnection:
    """Sends messages at their times, in a thread of its own. pid: the controller's process."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.connection, self.pid = connection, pid
        self._waiting: list[tuple[float, int, str, bytes]] = []
        self._num_posted, self._is_closed = 0, False
        self._changed = threading.Condition()
        self._sender = threading.Thread(target=self._send, name="sender", daemon=True)
        self._sender.start()

    def post(self, message: Message, *, after: float = 0.0) -> None:
        """Send a message in ``after`` seconds, without waiting for it. Raises RobotError if it cannot be sent."""
        encoded = encode(message)  # now, because the arrays may change before it is sent
        with self._changed:
            if message.kind == READING and len(self._waiting) >= MAX_WAITING:
                return
            heapq.heappush(self._waiting, (time.monotonic() + after, self._num_posted, message.kind, encoded))
            self._num_posted += 1
            self._changed.notify()

    def close(self) -> None:
        """Close the connection, and wait until nothing is sent any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        with suppress(OSError):  # it may already be closed at the other end
            self.connection.shutdown(socket.SHUT_RDWR)
        if threading.current_thread() is not self._sender:
            self._sender.join()
        self.connection.close()

    def _send(self) -> None:
        with suppress(OSError):  # the thread that receives notices the end
            while (encoded := self._next()) is not None:
                self.connection.sendall(encoded)

    def _next(self) -> bytes | None:
        """Wait for the next message that is due; None when the connection is closed."""
        with self._changed:
            while not self._is_closed:
                delay = self._waiting[0][0] - time.monotonic() if self._waiting else None
                if delay is not None and delay <= 0:
                    return heapq.heappop(self._waiting)[3]
                self._changed.wait(delay)
        return None
