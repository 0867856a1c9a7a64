"""What happened in a run, recorded as it happens, in memory that grows by a few numbers per control step."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flowchunk.envs.control.messages import Event, Tick
from flowchunk.policy.execution.executor import Placement

EVENTS_KEPT = 1000
STAGES = ("command_late", "observe", "limit", "command", "loop", "inference", "request_to_chunk")


@dataclass
class RunLog:
    """Durations (s) per stage, events, commands and chunk boundaries of a run.

    commanded: (D,) per control step, in order; times: of these. boundaries: the control steps at which a new chunk took over.
    """

    durations: dict[str, array[float]] = field(default_factory=lambda: {stage: array("d") for stage in STAGES})
    times: array[float] = field(default_factory=lambda: array("d"))
    commanded: array[float] = field(default_factory=lambda: array("d"))
    size: int = 0
    boundaries: array[int] = field(default_factory=lambda: array("l"))
    episode_starts: array[int] = field(default_factory=lambda: array("l"))
    delays: Counter[int] = field(default_factory=Counter)
    interventions: Counter[str] = field(default_factory=Counter)
    events: list[Event] = field(default_factory=list)
    num_commands: int = 0
    missed: int = 0
    late_chunks: int = 0
    padded_prefixes: int = 0
    held_steps: int = 0
    postponed: int = 0

    def add_tick(self, tick: Tick) -> None:
        """A control step that the watchdog reports."""
        for timing in tick.timings:
            self.durations["command_late"].append(timing.late)
            self.durations["command"].append(timing.command)
            if timing.observe:
                self.durations["observe"].append(timing.observe)
            if timing.limit:
                self.durations["limit"].append(timing.limit)
        self.num_commands += len(tick.timings)
        self.missed = tick.missed
        self.add_events(tick.events)

    def add_command(self, time: float, command: np.ndarray) -> None:
        """What is commanded at a control step of an episode."""
        self.size = len(command)
        self.times.append(time)
        self.commanded.extend(command.tolist())

    def add_placement(self, placement: Placement) -> None:
        """A chunk that took over at the coming control step."""
        if placement.is_first:
            return
        self.boundaries.append(len(self.times))
        self.delays[placement.delay] += 1
        self.late_chunks += placement.is_late

    def add_events(self, events: Iterable[Event]) -> None:
        """Interventions and faults; all are counted, and the first 1,000 kept."""
        for event in events:
            self.interventions[event.kind] += 1
            if len(self.events) < EVENTS_KEPT:
                self.events.append(event)

    def commands(self) -> np.ndarray:
        """(T, D), what was commanded at each control step."""
        return np.array(self.commanded).reshape(-1, max(self.size, 1))

    def percentiles(self) -> dict[str, dict[str, Any]]:
        """Milliseconds per stage: count, p50, p95, p99 and max; stages that never ran are left out."""
        found = {}
        for stage, seconds in self.durations.items():
            if len(seconds):
                milliseconds = 1000 * np.array(seconds)
                p50, p95, p99 = np.percentile(milliseconds, [50, 95, 99]).tolist()
                found[stage] = {
                    "count": len(seconds),
                    "p50": p50,
                    "p95": p95,
                    "p99": p99,
                    "max": float(milliseconds.max()),
                }
        return found
