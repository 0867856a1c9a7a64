"""The loop's two helpers, watchdog and inference: started, listened to, and never waited for without a limit."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import connection as pipes
from typing import Any, Self

from flowchunk.datasets import errors
from flowchunk.datasets.errors import FlowchunkError, RobotError
from flowchunk.envs.control.liveness import is_ending
from flowchunk.envs.control.messages import Failed
from flowchunk.envs.control.sender import Sender
from flowchunk.envs.interrupts import without_interrupts

CLOSING_TIME = 3.0  # s


class Helper:
    """A process, and the loop's end of the pipe to it; use it as a context manager.

    target: called in a fresh interpreter with the other end and ``arguments``. name: in messages. closing_time: s that the
    process has to put things in order; then it is killed.
    """

    def __init__(
        self, name: str, target: Callable[..., None], *arguments: Any, closing_time: float = CLOSING_TIME
    ) -> None:
        self.name, self._target, self._arguments, self._closing_time = name, target, arguments, closing_time

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=self._target, args=(theirs, *self._arguments), name=self.name)
        with without_interrupts():
            self.process.start()
        theirs.close()  # so that its death closes the pipe
        self._sender = Sender(self.connection)
        return self

    def __exit__(self, *_: object) -> None:
        self._sender.close(self._closing_time)
        self.connection.close()
        end = time.monotonic() + self._closing_time
        while self.process.is_alive() and (left := end - time.monotonic()) > 0:
            with suppress(
                KeyboardInterrupt
            ):  # whoever presses Ctrl-C again wants the robot held, and that takes this time
                self.process.join(left)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self.process.pid is not None
        return self.process.pid

    def send(self, message: object) -> None:
        """Send a message, without waiting for the process to take it. ``receive`` notices if the process is gone."""
        self._sender.post(message)

    def receive(self, timeout: float = 0.0) -> Any:
        """The next message, None if there is none within ``timeout`` (s). Raises what failed there, or RobotError."""
        try:
            message = self.connection.recv() if self.connection.poll(timeout) else None
        except (EOFError, OSError) as error:
            raise self._ended() from error
        if isinstance(message, Failed):
            kind = getattr(errors, message.kind, None)
            is_ours = isinstance(kind, type) and issubclass(kind, FlowchunkError)
            raise (
                kind(message.message) if is_ours and kind else RobotError(f"the {self.name} failed: {message.message}")
            )
        return message

    def check(self) -> None:
        """Raise what ``receive`` would if the process is gone, which is noticed earlier here."""
        if is_ending(self.pid):
            while self.receive() is not None:  # raises why, if it could still say it
                pass
            raise self._ended()

    def wait_for(self, kind: type[Any], timeout: float) -> Any:
        """The next message of this kind; others are dropped. Raises RobotError after ``timeout`` (s)."""
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0:
            if isinstance(message := self.receive(min(left, 1.0)), kind):
                return message
        raise RobotError(f"the {self.name} did not answer within {timeout:g} s; see whether its machine is overloaded")

    def _ended(self) -> RobotError:
        """Without waiting for anything: the robot has to be held first."""
        code = "" if self.process.exitcode is None else f" (exit code {self.process.exitcode})"
        return RobotError(f"the {self.name} process ended unexpectedly{code}; the robot holds")


def with_messages(helpers: Sequence[Helper], timeout: float) -> list[Helper]:
    """Those that have sent something or have ended; empty if none does within ``timeout`` (s)."""
    ready = pipes.wait([helper.connection for helper in helpers], max(0.0, timeout))
    return [helper for helper in helpers if helper.connection in ready]
