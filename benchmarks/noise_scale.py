"""The effect of the starting noise: score and success of trained policies by noise_scale and number of evaluations.

usage: python benchmarks/noise_scale.py RUN [RUN ...] [--scales 0 0.5 1] [--nfe 4 10] [--episodes 200] [--seed 100000]

Below 1 chunks are less diverse and closer to their mean. Choose on the selection seeds (--seed 300000), report on others.
Resumable: what is done is not repeated. Prints a row for each run and scale.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from flowchunk.cli.main import main as flowchunk


def sweep(run: Path, scale: float, numbers: list[int], *, episodes: int, seed: int) -> list[dict[str, Any]]:
    """The rows of a sweep, read from its file if it exists."""
    folder = run / f"noise-{scale:g}-{seed}-{episodes}"
    if not (folder / "sweep.png").exists():  # written last
        arguments = [f"nfe=[{','.join(map(str, numbers))}]", f"noise_scale={float(scale)}"]
        if flowchunk(["sweep", str(run), *arguments, f"episodes={episodes}", f"seed={seed}", f"output_dir={folder}"]):
            raise SystemExit(1)
    rows: list[dict[str, Any]] = json.loads((folder / "sweep.json").read_text())["rows"]
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--scales", type=float, nargs="+", default=[0.0, 0.5, 0.7, 1.0])
    parser.add_argument("--nfe", type=int, nargs="+", default=[4, 10])
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=100_000)
    options = parser.parse_args()
    lines = [
        "| run | noise_scale |" + "".join(f" {nfe} |" for nfe in options.nfe),
        "|---|---|" + "---|" * len(options.nfe),
    ]
    for run in options.runs:
        for scale in options.scales:
            rows = sweep(run, scale, options.nfe, episodes=options.episodes, seed=options.seed)
            cells = "".join(f" {row['score']:.3f} / {row['success']:.3f} |" for row in rows)
            lines.append(f"| {run.name} | {scale:g} |{cells}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
