"""Meta-World: one policy for all 50 tasks, from the scripted experts' demonstrations. Run it where metaworld is installed.

usage: python benchmarks/metaworld_all.py OUTPUT_DIR [--demonstrations 25] [--episodes 20] [--steps 10000]
           [--objective flow] [--observation state|image] [--tasks NAME ...] [--separate]

Collects each task's demonstrations, merges them, trains one policy that observes the task one-hot, and evaluates it in each;
with --separate one policy per task, which is evaluated in its own. Resumable: what is collected, trained or evaluated is not
done again. Writes OUTPUT_DIR/results-NAME.md, a row per task.
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


def collect(folder: Path, tasks: list[str], demonstrations: int, env: list[str]) -> list[Path]:
    """The demonstrations of each task."""
    parts = [folder / f"{task}.zarr" for task in tasks]
    for task, part in zip(tasks, parts, strict=True):
        if not part.exists():
            run("collect", f"task=metaworld/{task}", f"output_dir={part}", f"episodes={demonstrations}", *env)
    return parts


def merge(parts: list[Path], merged: Path) -> Path:
    """The demonstrations of all tasks."""
    if not merged.exists():
        others = ",".join(str(part) for part in parts[1:])
        run("data", "edit", str(parts[0]), str(merged), f"merge=[{others}]")
    return merged


def train(run_dir: Path, data: Path, steps: int, objective: str, *, task: str, env: list[str]) -> None:
    """A policy, unless it is trained."""
    minutes = run_dir / "minutes.txt"
    if minutes.exists():
        return
    started = time.perf_counter()
    options = [f"dataset.path={data}", f"output_dir={run_dir}", f"training.steps={steps}", f"objective={objective}"]
    resume = f"training.resume={'true' if run_dir.exists() else 'false'}"
    run("train", f"task=metaworld/{task}", *env, *options, "evaluation.episodes=0", resume)
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
    parser.add_argument("--observation", default="state", choices=["state", "image"])
    parser.add_argument("--separate", action="store_true", help="one policy per task")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    options = parser.parse_args()
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # Meta-World warns at every reset
    options.output_dir.mkdir(parents=True, exist_ok=True)
    env = ["env.one_hot=true"]
    if options.observation == "image":
        env += ["env.observation=image", "hardware=cpu", "vision.image_steps=1"]
    parts = collect(options.output_dir, options.tasks, options.demonstrations, env[:2])
    if options.separate:
        run_dirs = [options.output_dir / f"{options.objective}-{task}" for task in options.tasks]
        for task, run_dir, part in zip(options.tasks, run_dirs, parts, strict=True):
            train(run_dir, part, options.steps, options.objective, task=task, env=env)
    else:
        run_dirs = [options.output_dir / options.objective] * len(options.tasks)
        merged = merge(parts, options.output_dir / "all.zarr")
        train(run_dirs[0], merged, options.steps, options.objective, task=options.tasks[0], env=env)
    rows, rates = ["| task | success |", "|---|---|"], []
    for task, run_dir in zip(options.tasks, run_dirs, strict=True):
        rates.append(evaluate(run_dir, task, options.episodes)["success_rate"])
        low, high = wilson_interval(round(rates[-1] * options.episodes), options.episodes)
        rows.append(f"| {task} | {rates[-1]:.2f} [{low:.2f}, {high:.2f}] |")
    minutes = sum(float((run_dir / "minutes.txt").read_text()) for run_dir in set(run_dirs))
    rows.append(f"| **mean of {len(rates)} tasks**, {minutes:.1f} min of training | **{np.mean(rates):.3f}** |")
    name = f"{options.objective}{'-separate' if options.separate else ''}"
    (options.output_dir / f"results-{name}.md").write_text("\n".join(rows) + "\n")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
