"""Measures that make a process more punctual, where the system permits them; each says whether it was done or refused."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

MCL_CURRENT_AND_FUTURE = 3
PR_SET_TIMERSLACK, PR_GET_TIMERSLACK = 29, 30


@dataclass(frozen=True)
class RealTimeOptions:
    """Measures for the process that commands the robot; all off by default.

    lock_memory: keep all of its memory in RAM (mlockall). priority: of the real-time scheduler SCHED_FIFO, 1 to 99. cpu: the
    core that it runs on. timer_slack_us: by how much the kernel may delay its timers. freeze_gc: collect garbage once, and
    then never again.
    """

    lock_memory: bool = False
    priority: int | None = None
    cpu: int | None = None
    timer_slack_us: float | None = None
    freeze_gc: bool = False


def apply_measures(options: RealTimeOptions) -> dict[str, str]:
    """Take the measures for this process; returns "done" for each that was asked for, or why it was refused."""
    wanted: dict[str, Callable[[], object] | None] = {
        "lock_memory": _lock_memory if options.lock_memory else None,
        "priority": None if options.priority is None else partial(_set_priority, options.priority),
        "cpu": None if options.cpu is None else partial(os.sched_setaffinity, 0, {options.cpu}),
        "timer_slack_us": None if options.timer_slack_us is None else partial(_set_timer_slack, options.timer_slack_us),
        "freeze_gc": _freeze_garbage_collection if options.freeze_gc else None,
    }
    return {name: _outcome(measure) for name, measure in wanted.items() if measure is not None}


def _outcome(measure: Callable[[], object]) -> str:
    try:
        measure()
    except (OSError, AttributeError, ValueError) as error:  # AttributeError: other systems than Linux
        return f"refused: {error}"
    return "done"


def _lock_memory() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(MCL_CURRENT_AND_FUTURE):
        raise OSError(ctypes.get_errno(), f"mlockall: {os.strerror(ctypes.get_errno())}; raise ulimit -l")


def _set_priority(priority: int) -> None:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))


def _set_timer_slack(microseconds: float) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    nanoseconds = int(microseconds * 1000)
    if libc.prctl(PR_SET_TIMERSLACK, ctypes.c_ulong(nanoseconds), 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl: {os.strerror(ctypes.get_errno())}")
    if (found := libc.prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0)) != nanoseconds:  # sandboxes accept it and do nothing
        raise OSError(f"the system keeps a timer slack of {found} ns")


def _freeze_garbage_collection() -> None:
    gc.collect()
    gc.freeze()
    gc.disable()
