"""Meta-World: one policy for all 50 tasks, from the scripted experts' demonstrations. Run it where metaworld is installed.

usage: python benchmarks/metaworld_all.py OUTPUT_DIR [--demonstrations 25] [--episodes 20] [--steps 10000]
           [--objective flow] [--tasks NAME ...]

Collects each task's demonstrations, merges them, trains one policy that observes the task one-hot, and evaluates it in each.
Resumable: what is collected, trained or evaluated is not done again. Writes OUTPUT_DIR/results.md, a row per task.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np

from flowchunk.cli.main import main as flowchunk
from flowchunk.envs.tasks.metaworld import TASKS
from flowchunk.policy.evaluation.intervals import wilson_interval


def run(*arguments: str) -> None:
    """A command of flowchunk, which must succeed."""
    if status := flowchunk(list(arguments)):
        raise SystemExit(status)


def collect(folder: Path, tasks: list[str], demonstrations: int) -> Path:
    """The merged demonstrations of all tasks."""
    merged = folder / "all.zarr"
    parts = [folder / f"{task}.zarr" for task in tasks]
    for task, part in zip(tasks, parts, strict=True):
        if not part.exists():
            options = [f"output_dir={part}", f"episodes={demonstrations}", "env.one_hot=true"]
            run("collect", f"task=metaworld/{task}", *options)
    if not merged.exists():
        others = ",".join(str(part) for part in parts[1:])
        run("data", "edit", str(parts[0]), str(merged), f"merge=[{others}]")
    return merged


def train(run_dir: Path, data: Path, steps: int, objective: str) -> None:
    """One policy for all, unless it is trained."""
    minutes = run_dir / "minutes.txt"
    if minutes.exists():
        return
    started = time.perf_counter()
    options = [f"dataset.path={data}", f"output_dir={run_dir}", f"training.steps={steps}", f"objective={objective}"]
    resume = f"training.resume={'true' if run_dir.exists() else 'false'}"
    run("train", "task=metaworld/reach", "env.one_hot=true", *options, "evaluation.episodes=0", resume)
    minutes.write_text(f"{(time.perf_counter() - started) / 60:.1f}")


def evaluate(run_dir: Path, task: str, episodes: int) -> dict[str, float]:
    """Success in one task."""
    folder = run_dir / f"eval-{task}-{episodes}"
    if not (folder / "eval.json").exists():
        options = [f"output_dir={folder}", f"episodes={episodes}", "video=0", f"env.name={task}", "num_envs=20"]
        run("eval", str(run_dir), *options)
    report: dict[str, float] = json.loads((folder / "eval.json").read_text())
    return report


def main() -> None:
    """Collect, train, evaluate and tabulate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--demonstrations", type=int, default=25)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--objective", default="flow")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    options = parser.parse_args()
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # Meta-World warns at every reset
    options.output_dir.mkdir(parents=True, exist_ok=True)
    data = collect(options.output_dir, options.tasks, options.demonstrations)
    run_dir = options.output_dir / options.objective
    train(run_dir, data, options.steps, options.objective)
    rows, rates = ["| task | success |", "|---|---|"], []
    for task in options.tasks:
        rates.append(evaluate(run_dir, task, options.episodes)["success_rate"])
        low, high = wilson_interval(round(rates[-1] * options.episodes), options.episodes)
        rows.append(f"| {task} | {rates[-1]:.2f} [{low:.2f}, {high:.2f}] |")
    minutes = (run_dir / "minutes.txt").read_text()
    rows.append(f"| **mean of {len(rates)} tasks**, {minutes} min of training | **{np.mean(rates):.3f}** |")
    (options.output_dir / f"results-{options.objective}.md").write_text("\n".join(rows) + "\n")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
