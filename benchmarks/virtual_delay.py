"""Score against delay, in virtual time: strategies for executing chunks while the next one is predicted.

usage: python benchmarks/virtual_delay.py RUN OUTPUT_DIR [--plain RUN] [--env ID] [--delays 0 1 2 3 4] [--executed 1 2 4 8]
           [--strategies NAME ...] [--episodes 50] [--more 200] [--processes 2] [--jitter 0] [--drop 0]

RUN: a policy trained with policy.prefix_max; --plain: one trained without, for all strategies but trained_prefix (default:
RUN). All pairs with delay <= n_action_steps <= horizon - delay are measured on the same seeds; the two strategies with the
best mean score are measured again in --more episodes. Resumable: finished pairs are read from OUTPUT_DIR/results.jsonl.
Writes OUTPUT_DIR/results.md, and a plot of it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.envs.rollout import REPORT_SEED, rollout
from flowchunk.envs.simulation import environment_maker
from flowchunk.envs.virtual_delay import VirtualDelay
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.evaluation.intervals import wilson_interval

STRATEGIES = {
    "synchronous": ("synchronous", None),
    "asynchronous": ("asynchronous", None),
    "temporal_ensemble": ("temporal_ensemble", None),
    "trained_prefix": ("real_time", "trained"),
    "guided": ("real_time", "guided"),
    "guided_vjp": ("real_time", "guided_vjp"),
    "noise_inversion": ("real_time", "noise_inversion"),
}
"""Name: the strategy, and how the policy continues committed actions."""
KEYS = ("strategy", "delay", "n_action_steps", "episodes", "jitter", "drop")
NFE = 4


def measure(runs: dict[str, Path], env_id: str, case: dict[str, Any]) -> dict[str, Any]:
    """One strategy at one delay and number of executed actions."""
    torch.set_num_threads(1)
    strategy, method = STRATEGIES[case["strategy"]]
    policy = ChunkPolicy.load(runs["prefix" if case["strategy"] == "trained_prefix" else "plain"])
    policy = policy.with_sampling(prefix_method=method)
    execution = replace(policy.execution, n_action_steps=case["n_action_steps"], strategy=strategy, delay=case["delay"])
    result = rollout(
        policy,
        environment_maker(env_id, {}),
        execution,
        episodes=case["episodes"],
        seed=REPORT_SEED,
        nfe=NFE,
        delay=VirtualDelay(case["delay"], case["jitter"], case["drop"]),
    )
    jumps = {
        place: np.array([info[f"velocity_jump_{place}"] for info in result.infos])
        for place in ("at_boundaries", "elsewhere")
    }
    return {
        **case,
        "score": result.score_mean,
        "successes": result.successes,
        "success": result.success_rate,
        **{f"jump_{place}": _mean(values[np.isfinite(values)]) for place, values in jumps.items()},
        "scores": [round(episode.score, 4) for episode in result.episodes],
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def is_admissible(policy: ChunkPolicy, strategy: str, delay: int, executed: int) -> bool:
    """Whether such a delay can be; pairs that only waiting could execute are left out for all strategies."""
    try:
        name = STRATEGIES[strategy][0]
        longest = policy.execution.horizon - 1 if strategy != "trained_prefix" else policy.execution.longest_prefix
        checked = "asynchronous" if name == "synchronous" else name
        replace(policy.execution, n_action_steps=executed, strategy=checked, longest_prefix=longest, delay=delay)
    except ConfigurationError:
        return False
    return True


def key_of(case: dict[str, Any]) -> tuple[Any, ...]:
    """What a measurement is remembered by."""
    return tuple(case[name] for name in KEYS)


class Results:
    """Measurements in a file of JSON lines, which grows as they are finished."""

    def __init__(self, file: Path) -> None:
        self.file = file
        lines = file.read_text().splitlines() if file.exists() else []
        self.found = {key_of(row): row for row in map(json.loads, lines)}

    def fill(self, cases: list[dict[str, Any]], runs: dict[str, Path], env_id: str, processes: int) -> None:
        """Measure what is missing, in several processes."""
        missing = [case for case in cases if key_of(case) not in self.found]
        calls = (delayed(measure)(runs, env_id, case) for case in missing)
        for row in Parallel(n_jobs=processes, return_as="generator_unordered")(calls):
            self.found[key_of(row)] = row
            with self.file.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
            print(_line(row), flush=True)

    def of(self, case: dict[str, Any]) -> dict[str, Any]:
        """A finished measurement."""
        return self.found[key_of(case)]


def _line(row: dict[str, Any]) -> str:
    low, high = wilson_interval(row["successes"], row["episodes"])
    return (
        f"| {row['strategy']} | {row['delay']} | {row['n_action_steps']} | {row['episodes']} | {row['score']:.3f} | "
        f"{row['success']:.2f} [{low:.2f}, {high:.2f}] | {row['jump_at_boundaries']:.0f} | {row['jump_elsewhere']:.0f} |"
    )


def plot(file: Path, rows: list[dict[str, Any]]) -> None:
    """Score by delay, a panel for each number of executed actions."""
    executed = sorted({row["n_action_steps"] for row in rows})
    figure = Figure(figsize=(max(9.0, 3.2 * len(executed)), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(executed), sharey=True, squeeze=False)[0]
    for axes, number in zip(panels, executed, strict=True):
        for strategy in STRATEGIES:
            points = sorted(
                (row["delay"], row["score"])
                for row in rows
                if row["strategy"] == strategy and row["n_action_steps"] == number
            )
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", ms=3, label=strategy.replace("_", " "))
        axes.set(title=f"{number} executed", xlabel="delay [control steps]")
    panels[0].set_ylabel("score")
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(file, dpi=120)


def main() -> None:
    """Measure, tabulate and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--plain", type=Path)
    parser.add_argument("--env", default="flowchunk/PushT-v1")
    parser.add_argument("--delays", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--executed", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES))
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--more", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--jitter", type=int, default=0)
    parser.add_argument("--drop", type=float, default=0.0)
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    runs, policy = {"prefix": options.run, "plain": options.plain or options.run}, ChunkPolicy.load(options.run)

    def cases(strategies: list[str], episodes: int) -> list[dict[str, Any]]:
        common = {"episodes": episodes, "jitter": options.jitter, "drop": options.drop}
        return [
            {"strategy": strategy, "delay": delay, "n_action_steps": executed, **common}
            for delay in options.delays
            for executed in options.executed
            for strategy in strategies
            if is_admissible(policy, strategy, delay, executed)
        ]

    results = Results(options.output_dir / "results.jsonl")
    results.fill(cases(options.strategies, options.episodes), runs, options.env, options.processes)
    means = {
        strategy: np.mean([results.of(case)["score"] for case in cases([strategy], options.episodes)])
        for strategy in options.strategies
    }
    best = sorted(means, key=lambda strategy: -means[strategy])[:2]
    others = [strategy for strategy in options.strategies if strategy not in best]
    final = cases(best, options.more) + cases(others, options.episodes)
    results.fill(final, runs, options.env, options.processes)
    rows = [results.of(case) for case in final]
    head = "| strategy | delay | executed | episodes | score | success | velocity jump at boundaries | elsewhere |"
    table = "\n".join([head, "|" + "---|" * 8, *map(_line, rows)])
    (options.output_dir / "results.md").write_text(table + "\n")
    plot(options.output_dir / "results.png", rows)
    print(table)


if __name__ == "__main__":
    main()
