"""Adroit's door from 25 human demonstrations: flow on three seeds, regression and MIP on one, with one network.

usage: python benchmarks/adroit_door.py door-v0_demos.hdf5 OUTPUT_DIR [--steps 4000] [--episodes 200]
           [--objectives flow regression mip] [--options network.width=256 network.skip=true …]

Each training chooses its best checkpoint on the selection seeds; 200 episodes from seed 100000 are reported. Resumable: what
is trained or evaluated is not done again. Writes OUTPUT_DIR/results.md. --options are any of the command ``train``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

from flowchunk.cli.main import main as flowchunk

MAPPING = """data: demonstrations.hdf5
episodes: "demo_*"
control_hz: 100
action: {array: actions, unit: normalized}
observations:
  observations: {array: observations}
"""
RUNS = [("flow", 0), ("flow", 1), ("flow", 2), ("regression", 0), ("mip", 0)]


def run(*arguments: str) -> None:
    """A command of flowchunk, which must succeed."""
    if status := flowchunk(list(arguments)):
        raise SystemExit(status)


def train(run_dir: Path, mapping: Path, objective: str, seed: int, *, steps: int, more: list[str]) -> float:
    """Minutes of training, unless it is trained."""
    minutes = run_dir / "minutes.txt"
    if not minutes.exists():
        started = time.perf_counter()
        options = [f"objective={objective}", f"seed={seed}", f"training.steps={steps}", *more]
        resume = f"training.resume={'true' if run_dir.exists() else 'false'}"
        places = [f"dataset.path={mapping}", f"output_dir={run_dir}"]
        run("train", "task=adroit_door", *places, *options, f"training.evaluate_every={steps // 3}", resume)
        minutes.write_text(str((time.perf_counter() - started) / 60))
    return float(minutes.read_text())


def main() -> None:
    """Train, evaluate and tabulate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demonstrations", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--objectives", nargs="+", default=["flow", "regression", "mip"])
    parser.add_argument("--options", nargs="+", default=[])
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    mapping = options.output_dir / "door.yaml"
    mapping.write_text(MAPPING)
    shutil.copy(options.demonstrations, options.output_dir / "demonstrations.hdf5")
    rows = [
        "| objective | seed | score | success | minutes of training, evaluations included |",
        "|---|---|---|---|---|",
    ]
    for objective, seed in [run for run in RUNS if run[0] in options.objectives]:
        run_dir = options.output_dir / f"{objective}-{seed}"
        minutes = train(run_dir, mapping, objective, seed, steps=options.steps, more=options.options)
        file = run_dir / "eval" / "eval.json"
        if not file.exists():
            run("eval", str(run_dir), f"episodes={options.episodes}", "video=0")
        report = json.loads(file.read_text())
        low, high = report["success_ci95"]
        success = f"{report['success_rate']:.3f} [{low:.2f}, {high:.2f}]"
        rows.append(f"| {objective} | {seed} | {report['score_mean']:.3f} | {success} | {minutes:.1f} |")
        print(rows[-1], flush=True)
    (options.output_dir / "results.md").write_text("\n".join(rows) + "\n")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
