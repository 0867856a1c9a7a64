"""Prepare the next batch while this one is learned from."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import torch

from flowchunk.policy.noise import Noise

T = TypeVar("T")


class Prefetched(Generic[T]):
    """A function of a step, computed one step ahead by a thread; errors are raised when their step is asked for.

    make has to depend on the step alone, and steps are asked for in order up to ``last`` - 1; another order is right, too,
    but gains nothing. On CUDA it works on a stream of its own: on the step's stream every copy, and every wait for one,
    would queue behind the step.
    """

    def __init__(self, make: Callable[[int], T], *, last: int, device: torch.device | str = "cpu") -> None:
        self._make, self._last = make, last
        self._stream: Any = None
        if torch.device(device).type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.current_stream(device))  # what the data were made by
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: dict[int, Future[T]] = {}

    def __call__(self, step: int) -> T:
        now = self._ahead.pop(step, None) or self._thread.submit(self._prepare, step)
        if step + 1 < self._last and step + 1 not in self._ahead:
            self._ahead = {step + 1: self._thread.submit(self._prepare, step + 1)}
        prepared = now.result()
        if self._stream is not None:
            self._hand_over(prepared)
        return prepared

    def _prepare(self, step: int) -> T:
        if self._stream is None:
            return self._make(step)
        with torch.cuda.stream(self._stream):
            prepared = self._make(step)
            self._stream.synchronize()  # the thread waits, not the step; pinned memory is free again
        return prepared

    def _hand_over(self, prepared: Any) -> None:
        """Keep the memory of the other stream, in dictionaries of tensors and in noise, from being reused too early."""
        for part in prepared:
            for tensor in part.tensors() if isinstance(part, Noise) else part.values():
                tensor.record_stream(torch.cuda.current_stream(tensor.device))

    def close(self) -> None:
        """Let the thread end; what it has not begun is not done any more."""
        self._thread.shutdown(cancel_futures=True)
