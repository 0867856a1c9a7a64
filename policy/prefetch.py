"""Prepare the next batch while this one is learned from."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetched(Generic[T]):
    """A function of a step, computed one step ahead by a thread; errors are raised when their step is asked for.

    make has to depend on the step alone, and steps are asked for in order up to ``last`` - 1; another order is right, too,
    but gains nothing.
    """

    def __init__(self, make: Callable[[int], T], *, last: int) -> None:
        self._make, self._last = make, last
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: dict[int, Future[T]] = {}

    def __call__(self, step: int) -> T:
        now = self._ahead.pop(step, None) or self._thread.submit(self._make, step)
        if step + 1 < self._last and step + 1 not in self._ahead:
            self._ahead = {step + 1: self._thread.submit(self._make, step + 1)}
        return now.result()

    def close(self) -> None:
        """Let the thread end; what it has not begun is not done any more."""
        self._thread.shutdown(cancel_futures=True)
