"""What ``flowchunk run`` prints: what was measured before the first command, a live view, and a summary."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from flowchunk.cli.reports import print_table, table_of
from flowchunk.envs.control.messages import Tick
from flowchunk.envs.control.run_log import RunLog
from flowchunk.envs.control.safety import PolicyFacts
from flowchunk.envs.control.session import Preflight
from flowchunk.envs.control.watchdog import WatchdogOptions

if TYPE_CHECKING:
    from flowchunk.cli.run_report import RunReport

UPDATE_PERIOD = 0.5  # s


def print_preflight(console: Console, preflight: Preflight, facts: PolicyFacts, watchdog: WatchdogOptions) -> None:
    """Which rate the machine can hold, how chunks are executed, and which limits hold."""
    robot, execution, spec = preflight.robot, preflight.execution, facts.action_spec
    table = table_of("before the first command", "")
    table.add_row(
        "rate", f"{robot.command_hz:g} commands per second; up to about {preflight.highest_rate:.0f} are possible"
    )
    table.add_row(
        "chunk", f"{execution.horizon} actions at {spec.control_hz:g} Hz, {execution.n_action_steps} executed"
    )
    inference = preflight.inference_ms
    table.add_row("one prediction", f"{inference['p50']:.1f} ms, p95 {inference['p95']:.1f} ms")
    table.add_row("delay", f"{preflight.delay} control steps")
    table.add_row("strategy", execution.strategy)
    for name, outcome in robot.measures.items():
        table.add_row(f"realtime.{name}", outcome)
    if watchdog.dry_run:
        table.add_row("dry_run", "nothing will be commanded")
    print_table(console, f"robot {robot.name}", table)
    limits = table_of("limit", "from", "to", "velocity", "acceleration")
    for index, one in enumerate(spec.dimensions):
        bounds = watchdog.limits
        values = (bounds.low[index], bounds.high[index], bounds.velocity[index], bounds.acceleration[index])
        limits.add_row(
            escape(f"{one.name} [{one.unit}]"), *("-" if not np.isfinite(value) else f"{value:.4g}" for value in values)
        )
    print_table(console, "limits, per second and per second²", limits)


class LiveView:
    """A few lines that are refreshed twice per second, on a terminal only; a context manager, once for each episode."""

    def __init__(self, console: Console, log: RunLog, *, dry_run: bool) -> None:
        self.log, self.dry_run = log, dry_run
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._next = self._started = 0.0

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, tick: Tick) -> None:
        """Called at every control step."""
        now = time.monotonic()
        if self._live is None or now < self._next:
            return
        self._next = now + UPDATE_PERIOD
        self._live.update(self._table(tick, now), refresh=True)

    def _table(self, tick: Tick, now: float) -> Table:
        log, late = self.log, self.log.durations["command_late"][-200:]
        table = table_of("[space] stop  [s] success  [f] failure", "")
        table.add_row("seconds", f"{now - self._started:.0f}")
        table.add_row("commands", f"{log.num_commands:,}, {log.missed} missed")
        table.add_row("late, p95", f"{1000 * float(np.percentile(late, 95)) if late else 0:.2f} ms")
        table.add_row("delay", ", ".join(f"{delay}: {count}" for delay, count in sorted(log.delays.items())))
        table.add_row("limits hit", ", ".join(f"{kind} {count}" for kind, count in sorted(log.interventions.items())))
        if self.dry_run and tick.target is not None:
            table.add_row("would send", escape(np.array2string(tick.target, precision=3)))
        return table


def print_summary(console: Console, report: RunReport) -> None:
    """The report as tables."""
    content = report.content()
    table = table_of("stage [ms]", "p50", "p95", "p99", "max")
    for stage, values in content["stages_ms"].items():
        table.add_row(stage, *(f"{values[name]:.2f}" for name in ("p50", "p95", "p99", "max")))
    print_table(console, "timing", table)
    table = table_of("measure", "value")
    for name in ("commands", "missed_deadlines", "chunks", "late_chunks", "held_steps"):
        table.add_row(name.replace("_", " "), str(content[name]))
    table.add_row(escape("delay [control steps]"), str(content["delays"]))
    table.add_row("interventions", str(content["interventions"] or "none"))
    for name, value in content["smoothness"].items():
        if name.startswith("velocity_jump"):
            table.add_row(name.replace("_", " "), "-" if value is None else f"{value:.4g}")
    for number, episode in enumerate(content["episodes"], start=1):
        known = "" if episode["success"] is None else f", {'success' if episode['success'] else 'failure'}"
        table.add_row(f"episode {number}", escape(f"{episode['seconds']:.1f} s, {episode['end']}{known}"))
    print_table(console, "run", table)
