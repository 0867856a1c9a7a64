"""The loop's two helpers, watchdog and inference: started, listened to, and never waited for without a limit."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Self

from flowchunk.datasets import errors
from flowchunk.datasets.errors import FlowchunkError, RobotError
from flowchunk.envs.control.messages import Failed

CLOSING_TIME = 3.0  # s


class Helper:
    """A process, and the loop's end of the pipe to it; use it as a context manager.

    target: called in a fresh interpreter with the other end and ``arguments``. name: in messages.
    """

    def __init__(self, name: str, target: Callable[..., None], *arguments: Any) -> None:
        self.name, self._target, self._arguments = name, target, arguments

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=self._target, args=(theirs, *self._arguments), name=self.name)
        self.process.start()
        theirs.close()  # so that its death closes the pipe
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        self.process.join(CLOSING_TIME)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self.process.pid is not None
        return self.process.pid

    def send(self, message: object) -> None:
        """Send a message. Raises RobotError if the process is gone."""
        try:
            self.connection.send(message)
        except (BrokenPipeError, ConnectionResetError, OSError) as error:
            raise self._is_gone() from error

    def receive(self, timeout: float = 0.0) -> Any:
        """The next message, None if there is none within ``timeout`` (s). Raises what failed there, or RobotError."""
        try:
            message = self.connection.recv() if self.connection.poll(timeout) else None
        except (EOFError, ConnectionResetError, BrokenPipeError) as error:
            raise self._is_gone() from error
        if isinstance(message, Failed):
            kind = getattr(errors, message.kind, None)
            is_ours = isinstance(kind, type) and issubclass(kind, FlowchunkError)
            raise (
                kind(message.message) if is_ours and kind else RobotError(f"the {self.name} failed: {message.message}")
            )
        return message

    def wait_for(self, kind: type[Any], timeout: float) -> Any:
        """The next message of this kind; others are dropped. Raises RobotError after ``timeout`` (s)."""
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0:
            if isinstance(message := self.receive(min(left, 1.0)), kind):
                return message
        raise RobotError(f"the {self.name} did not answer within {timeout:g} s; see whether its machine is overloaded")

    def _is_gone(self) -> RobotError:
        self.process.join(1.0)
        return RobotError(
            f"the {self.name} process ended unexpectedly (exit code {self.process.exitcode}); the robot holds"
        )


def connection_of(helper: Helper) -> Connection:
    """The loop's end of the pipe, to wait for several at once."""
    return helper.connection
