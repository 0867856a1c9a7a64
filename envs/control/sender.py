"""Send messages without waiting for whoever should read them."""

from __future__ import annotations

import os
import socket
import threading
from multiprocessing.connection import Connection
from queue import SimpleQueue


class Sender:
    """Sends through a pipe in a thread of its own: a pipe holds little, and an image fills it if nobody reads.

    If the other end is gone, what is posted is dropped; whoever reads from the pipe notices that.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._messages: SimpleQueue[object] = SimpleQueue()
        self._thread = threading.Thread(target=self._send, name="sender", daemon=True)
        self._thread.start()

    def post(self, message: object) -> None:
        """Send a message after those before it. It must not be changed any more."""
        self._messages.put(message)

    def close(self, timeout: float) -> None:
        """Wait until all is sent, and end; what the other end has not taken after ``timeout`` (s) is lost."""
        self._messages.put(None)
        self._thread.join(timeout)
        if self._thread.is_alive():
            with socket.socket(fileno=os.dup(self._connection.fileno())) as pipe:
                pipe.shutdown(socket.SHUT_RDWR)  # ends the thread's attempt; closing would not
            self._thread.join()

    def _send(self) -> None:
        try:
            while (message := self._messages.get()) is not None:
                self._connection.send(message)
        except OSError:
            return
