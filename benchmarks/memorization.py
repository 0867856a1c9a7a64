"""Memorization: do models of digits copy a small training set, and what prevents it?

usage: python benchmarks/memorization.py OUTPUT_DIR [--steps 700]

Each model is trained on N images of one half of the digits that the classifier is not trained on (N = 30, 300, all 599):
with the defaults, with augmentation, and with a network whose receptive field is 5 x 5 pixels. Copied: fraction of samples
much closer to one training image than to the next (in parentheses: of held-out images). Nearer: fraction of samples closer to
a training image than to a held-out one (0.5: nothing is memorized). Agreement of disjoint halves (Kadkhodaie et al.
2310.02557), for the defaults: two models without a common training image start from the same noise; 1 - (distance between
their samples / between unrelated samples).

Resumable. Writes OUTPUT_DIR/results.md, and OUTPUT_DIR/NAME/generated/nearest_training_images.png for each model.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from flowchunk.cli.main import main as flowchunk

VARIANTS = {
    "defaults": [],
    "augmentation": ["model.augment=true"],
    "5 x 5 pixels": ["network=local_conv", "network.receptive_field=5"],
}
SIZES = (30, 300, 599)
SAMPLES = 500


def train(folder: Path, variant: str, size: int, half: int, steps: int) -> Path:
    """The run of a model, trained and evaluated unless it is done."""
    run = folder / f"{variant.replace(' ', '-')}-{size}-{half}"
    if not (run / "generated" / "metrics.json").exists():
        resume = f"training.resume={'true' if (run / 'config.yaml').exists() else 'false'}"
        arguments = [
            "task=images",
            f"dataset.samples={size}",
            f"dataset.half={half}",
            f"training.steps={steps}",
            "evaluation.samples=0",
        ]
        for command in (
            ["train", *arguments, *VARIANTS[variant], resume, f"output_dir={run}"],
            ["generate", str(run), f"n={SAMPLES}", "nfe=16", "seed=0"],
        ):
            if flowchunk(command):
                raise SystemExit(1)
    return run


def agreement(runs: list[Path]) -> float:
    """How similar the images of two models are from the same noise and labels, 1 for equal."""
    samples = [torch.from_numpy(np.load(run / "generated" / "samples.npy")).flatten(1) for run in runs]
    distance = (samples[0] - samples[1]).norm(dim=1).mean()
    shuffled = samples[1][torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(0))]
    unrelated = (samples[0] - shuffled).norm(dim=1)
    return float(1 - distance / unrelated.mean())


def main() -> None:
    """Fill in the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    options = parser.parse_args()
    lines = ["| network | images | copied (held-out) | nearer | kernel distance (floor) | agreement of halves |"]
    lines.append("|---|---|---|---|---|---|")
    for variant in options.variants:
        for size in options.sizes:
            halves = (0, 1) if variant == "defaults" else (0,)
            runs = [train(options.output_dir, variant, size, half, options.steps) for half in halves]
            agreed = f"{agreement(runs):.2f}" if len(runs) == 2 else ""
            found = json.loads((runs[0] / "generated" / "metrics.json").read_text())
            lines.append(
                f"| {variant} | {size} | {found['copied_fraction']:.2f} ({found['copied_fraction_floor']:.2f}) | "
                f"{found['fraction_nearer_to_training']:.2f} | "
                f"{found['kernel_distance']:.3f} ({found['kernel_distance_floor']:.3f} ± "
                f"{found['kernel_distance_floor_std']:.3f}) | {agreed} |"
            )
            (options.output_dir / "results.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
