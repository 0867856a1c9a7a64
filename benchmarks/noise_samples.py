"""Several noise samples for each encoded image: the time of a step, and the effect on the policy.

usage: python benchmarks/noise_samples.py DATASET_PATH OUTPUT_DIR [--num-noise-samples 1 4 8] [--steps 3000] [--episodes 100]

pusht_image with the CPU size; the last checkpoint is evaluated on the seeds that checkpoints are selected on. Writes
OUTPUT_DIR/results.md: steps per second (comparable only on an idle machine: they are measured one after another), loss on
held-out episodes, score and success. Resumable.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pusht_state import train

from flowchunk.cli.main import main as flowchunk
from flowchunk.envs.rollout import SELECTION_SEED


def row(run: Path, num_noise_samples: int, episodes: int) -> str:
    """A row of the table."""
    report = run / "eval" / "eval.json"
    if not report.exists():
        arguments = [f"episodes={episodes}", f"seed={SELECTION_SEED}", "video=0", f"output_dir={report.parent}"]
        if flowchunk(["eval", str(run / "checkpoints" / "last"), *arguments]):
            raise SystemExit(1)
    found = json.loads(report.read_text())
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    loss = [entry["validation_loss"] for entry in metrics if "validation_loss" in entry][-1]
    speed = [entry["steps_per_second"] for entry in metrics if "steps_per_second" in entry][-1]
    return (
        f"| {num_noise_samples} | {speed:.2f} | {loss:.3f} | {found['score_mean']:.3f} / {found['success_rate']:.2f} |"
    )


def main() -> None:
    """Fill in the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--num-noise-samples", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--steps", type=int, default=3_000)
    parser.add_argument("--episodes", type=int, default=100)
    options = parser.parse_args()
    lines = ["| noise samples | steps per second | validation loss | score / success |", "|---|---|---|---|"]
    for number in options.num_noise_samples:
        run = options.output_dir / f"noise-samples-{number}"
        arguments = ["task=pusht_image", f"dataset.path={options.dataset}", f"policy.num_noise_samples={number}"]
        train(run, [*arguments, f"training.steps={options.steps}", "evaluation.episodes=0"])
        lines.append(row(run, number, options.episodes))
        (options.output_dir / "results.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
