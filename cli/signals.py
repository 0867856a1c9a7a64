"""Signals that end what goes on in an orderly way: they are noticed, and interrupt questions only."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any, Self

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Signals:
    """Use it as a context manager. received: names of the signals that came, oldest first."""

    def __init__(self) -> None:
        self.received: list[str] = []
        self._is_asking = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._notice) for number in HANDLED}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def ask(self, question: str) -> str:
        """What the user answers. Raises KeyboardInterrupt if a signal comes instead, EOFError if nobody can answer."""
        self._is_asking = True
        try:
            if self.received:
                raise KeyboardInterrupt
            return input(question)
        finally:
            self._is_asking = False

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self.received.append(signal.Signals(number).name)
        if self._is_asking:
            raise KeyboardInterrupt
