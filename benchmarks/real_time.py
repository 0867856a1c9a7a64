"""The control loop in real time, alternated with an empty loop: jitter of commands, missed deadlines, memory.

usage: python benchmarks/real_time.py RUN OUTPUT_DIR [--minutes 10] [--segments 10] [--rate 50] [--delay-ms 50]
           [--jitter-ms 20] [--env ID] [--velocity-max V]

A simulated robot is driven for --minutes in so many segments; before each, an empty loop of the same rate and duration runs
in a process of its own. The jitter of a command is how late it was sent after its deadline. Writes OUTPUT_DIR/results.json,
and prints a table. Aims: p99 at most 2 ms above the empty loop's, missed deadlines at most 0.1 % above, memory flat.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from flowchunk.envs.control.clock import Deadlines
from flowchunk.envs.control.inference import InferenceOptions
from flowchunk.envs.control.messages import Tick
from flowchunk.envs.control.safety import PolicyFacts, SafetyOptions
from flowchunk.envs.control.session import ControlSession
from flowchunk.envs.control.watchdog import WatchdogOptions
from flowchunk.envs.robots.simulated import SimulatedRobot

SEED = 100_000


def empty_loop(rate: float, seconds: float, results: Any) -> None:
    """Deadlines and nothing else."""
    deadlines = Deadlines(rate)
    late = [deadlines.wait()[1] for _ in range(int(rate * seconds))]
    results.put((late, deadlines.missed))


def run_empty(rate: float, seconds: float) -> tuple[list[float], int]:
    """The empty loop in a fresh process."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=empty_loop, args=(rate, seconds, results))
    process.start()
    found: tuple[list[float], int] = results.get()
    process.join()
    return found


def memory_mb(session: ControlSession) -> float:
    """Resident memory of loop, watchdog and inference together."""
    pids = (os.getpid(), session.watchdog.pid, session.inference.pid)
    return sum(psutil.Process(pid).memory_info().rss for pid in pids) / 2**20


def statistics(late: list[float], missed: int) -> dict[str, float]:
    """Milliseconds, and the share of deadlines that were missed."""
    p50, p99, p999 = np.percentile(1000 * np.array(late), [50, 99, 99.9]).tolist()
    share = missed / (missed + len(late))
    return {"count": len(late), "p50": p50, "p99": p99, "p99.9": p999, "max": 1000 * max(late), "missed": share}


def main() -> None:
    """Alternate the two loops, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--segments", type=int, default=10)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--delay-ms", type=float, default=50.0)
    parser.add_argument("--jitter-ms", type=float, default=20.0)
    parser.add_argument("--env", default="flowchunk/PushT-v1")
    parser.add_argument("--velocity-max", type=float, help="if the checkpoint has no limits")
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    facts, safety = PolicyFacts.of_checkpoint(options.run), SafetyOptions(velocity_max=options.velocity_max)
    spec = facts.action_spec
    watchdog = WatchdogOptions(
        observation_spec=facts.observation_spec,
        action_spec=spec,
        rate=options.rate,
        limits=safety.motion_limits(spec, facts.action_limits),
        observed=facts.observed,
        margin=safety.margin,
        sensor_timeout=safety.timeout(spec.control_hz),
        ramp=safety.ramp,
        stop_file=options.output_dir / "STOP",
    )
    inference = InferenceOptions(str(options.run), delay_ms=options.delay_ms, jitter_ms=options.jitter_ms)
    seconds = 60 * options.minutes / options.segments
    empty_late: list[float] = []
    empty_missed, memory = 0, []
    with ControlSession(partial(SimulatedRobot, options.env), inference, watchdog, {}) as session:
        preflight = session.preflight()
        loop = session.loop(preflight, check=_never)
        for segment in range(options.segments):
            late, missed = run_empty(options.rate, seconds)
            empty_late, empty_missed = empty_late + late, empty_missed + missed
            started = time.monotonic()
            end = loop.run_episode(seed=SEED + segment, seconds=seconds)
            memory.append(memory_mb(session))
            print(
                f"segment {segment + 1}: {time.monotonic() - started:.0f} s, {end.cause} {end.reason}, {end.outcome}, "
                f"{memory[-1]:.0f} MB",
                flush=True,
            )
    log = session.log
    results = {
        "loop": statistics(list(log.durations["command_late"]), log.missed),
        "empty": statistics(empty_late, empty_missed),
        "strategy": preflight.execution.strategy,
        "delays": dict(log.delays),
        "late_chunks": log.late_chunks,
        "interventions": dict(log.interventions),
        "memory_mb": memory,
        "stages_ms": log.percentiles(),
    }
    (options.output_dir / "results.json").write_text(json.dumps(results, indent=1))
    print("| loop | commands | p50 | p99 | p99.9 | max [ms] | missed |\n|---|---|---|---|---|---|---|")
    for name in ("loop", "empty"):
        row = results[name]
        cells = " | ".join(f"{row[part]:.3f}" for part in ("p50", "p99", "p99.9", "max"))
        print(f"| {name} | {row['count']:,} | {cells} | {100 * row['missed']:.3f} % |")
    print(
        f"delays {results['delays']}, memory {memory[0]:.0f} MB after the first segment, {memory[-1]:.0f} MB after the last"
    )


def _never(tick: Tick) -> str | None:
    return None


if __name__ == "__main__":
    main()
