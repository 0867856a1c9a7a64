"""Single keys from the terminal, without waiting for them; none if the standard input is no terminal."""

from __future__ import annotations

import os
import select
import sys
from types import TracebackType
from typing import Any, Self

try:
    import termios
    import tty
except ImportError:  # Windows
    termios = tty = None  # type: ignore[assignment]


class Keyboard:
    """Use it as a context manager, which sets the terminal back as it was."""

    def __init__(self) -> None:
        self._saved: list[Any] | None = None

    @property
    def is_there(self) -> bool:
        """Whether there is a terminal to read keys from."""
        return self._saved is not None

    def __enter__(self) -> Self:
        if termios is not None and sys.stdin is not None and sys.stdin.isatty():
            self._saved = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._saved is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._saved)
            self._saved = None

    def pressed(self) -> str:
        """The keys that were pressed since the last call, oldest first."""
        keys = ""
        while self.is_there and select.select([sys.stdin], [], [], 0)[0]:
            key = os.read(sys.stdin.fileno(), 1).decode(errors="replace")
            if not key:
                break
            keys += key
        return keys
