"""Preparing the next batch while the model trains on the current one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import torch

from flowchunk.policy.noise import Noise

T = TypeVar("T")


class Prefetched(Generic[T]):
    """A function of the step, evaluated one step ahead in a thread; errors are raised when their step is requested.

    make: must depend only on the step. last: the number of steps; they are requested in order, 0 … last - 1 (any other order
    is correct, but not faster). On CUDA it uses a stream of its own: on the stream of the training step every copy, and every
    wait for one, would queue behind that step.
    """

    def __init__(self, make: Callable[[int], T], *, last: int, device: torch.device | str = "cpu") -> None:
        self._make, self._last = make, last
        self._stream: Any = None
        if torch.device(device).type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.current_stream(device))  # which may still be writing the data
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._next: dict[int, Future[T]] = {}

    def __call__(self, step: int) -> T:
        current = self._next.pop(step, None) or self._thread.submit(self._prepare, step)
        if step + 1 < self._last and step + 1 not in self._next:
            self._next = {step + 1: self._thread.submit(self._prepare, step + 1)}
        prepared = current.result()
        if self._stream is not None:
            self._keep_memory(prepared)
        return prepared

    def _prepare(self, step: int) -> T:
        if self._stream is None:
            return self._make(step)
        with torch.cuda.stream(self._stream):
            prepared = self._make(step)
            self._stream.synchronize()  # the thread waits, not the training step; afterwards pinned memory may be reused
        return prepared

    def _keep_memory(self, prepared: Any) -> None:
        """Prevent memory of the other stream (of dictionaries of tensors, and of noise) from being reused too early."""
        for part in prepared:
            for tensor in part.tensors() if isinstance(part, Noise) else part.values():
                tensor.record_stream(torch.cuda.current_stream(tensor.device))

    def close(self) -> None:
        """Stop the thread, without starting what is still queued."""
        self._thread.shutdown(cancel_futures=True)
