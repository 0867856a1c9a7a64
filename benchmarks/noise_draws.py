"""Several noise draws for each encoded picture: what a step costs, and what it is worth.

usage: python benchmarks/noise_draws.py DATASET_PATH OUTPUT_DIR [--draws 1 4 8] [--steps 3000] [--episodes 100]

pusht_image with the CPU size and so many steps; the last checkpoint is measured on the seeds that checkpoints are selected
on. Writes OUTPUT_DIR/results.md: steps a second (compare them on an idle machine alone: they are measured one after the
other), loss on held-out episodes, score and success. Resumable.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pusht_state import train

from flowchunk.cli.main import main as flowchunk
from flowchunk.envs.rollout import SELECTION_SEED


def row(run: Path, draws: int, episodes: int) -> str:
    """A line of the table."""
    report = run / "eval" / "eval.json"
    if not report.exists():
        arguments = [f"episodes={episodes}", f"seed={SELECTION_SEED}", "video=0", f"output_dir={report.parent}"]
        if flowchunk(["eval", str(run / "checkpoints" / "last"), *arguments]):
            raise SystemExit(1)
    found = json.loads(report.read_text())
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    loss = [entry["validation_loss"] for entry in metrics if "validation_loss" in entry][-1]
    speed = [entry["steps_per_second"] for entry in metrics if "steps_per_second" in entry][-1]
    return f"| {draws} | {speed:.2f} | {loss:.3f} | {found['score_mean']:.3f} / {found['success_rate']:.2f} |"


def main() -> None:
    """Fill the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--steps", type=int, default=3_000)
    parser.add_argument("--episodes", type=int, default=100)
    options = parser.parse_args()
    lines = ["| noise draws | steps a second | validation loss | score / success |", "|---|---|---|---|"]
    for draws in options.draws:
        run = options.output_dir / f"draws-{draws}"
        arguments = ["task=pusht_image", f"dataset.path={options.dataset}", f"policy.num_noise_samples={draws}"]
        train(run, [*arguments, f"training.steps={options.steps}", "evaluation.episodes=0"])
        lines.append(row(run, draws, options.episodes))
        (options.output_dir / "results.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
