"""Generated data other than actions of robots: train each domain with its defaults, generate, tabulate.

usage: python benchmarks/generated.py OUTPUT_DIR [--only 8gaussians digits ...]

Toys (flow, 16 Euler evaluations), digits (guidance 1.5, 32 evaluations: 16 steps of two), the obstacle with flow and with
plain regression, the arm on the torus. Resumable: a finished training or evaluation is not repeated, an interrupted
training continues from its last checkpoint. Writes OUTPUT_DIR/results.md.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from flowchunk.cli.main import main as flowchunk

RUNS: dict[str, tuple[list[str], list[str]]] = {
    "8gaussians": (["task=toy2d", "dataset=8gaussians"], ["nfe=16"]),
    "two_moons": (["task=toy2d", "dataset=two_moons"], ["nfe=16"]),
    "checkerboard": (["task=toy2d", "dataset=checkerboard"], ["nfe=16"]),
    "spiral": (["task=toy2d", "dataset=spiral"], ["nfe=16"]),
    "digits": (["task=images", "dataset=digits"], ["guidance=1.5", "nfe=32"]),
    "obstacle": (["task=obstacle"], ["nfe=16"]),
    "obstacle-regression": (["task=obstacle", "objective=regression"], []),
    "torus": (["task=torus"], ["nfe=16"]),
}
"""Name → arguments of train, arguments of generate."""


def row(name: str, folder: Path) -> str:
    """Train and generate unless it is done; returns the measures as a row of the table."""
    training, generating = RUNS[name]
    run = folder / name
    if not (run / "minutes.txt").exists():
        started, is_resumed = time.perf_counter(), (run / "config.yaml").exists()
        if flowchunk(["train", *training, f"output_dir={run}", f"training.resume={str(is_resumed).lower()}"]):
            raise SystemExit(1)
        minutes = f"{(time.perf_counter() - started) / 60:.1f}{' (resumed)' if is_resumed else ''}"
        (run / "minutes.txt").write_text(minutes)
    if not (run / "generated" / "metrics.json").exists() and flowchunk(["generate", str(run), *generating]):
        raise SystemExit(1)
    metrics = json.loads((run / "generated" / "metrics.json").read_text())
    names = [measure for measure in metrics if not measure.endswith(("_floor", "_std"))]
    shown = "; ".join(f"{name} {with_std(metrics, name)} ({with_std(metrics, f'{name}_floor')})" for name in names)
    return f"| {name} | {(run / 'minutes.txt').read_text()} | {shown} |"


def with_std(metrics: dict[str, float], name: str) -> str:
    """A measure, with its standard deviation over samples of the data if there were several."""
    return f"{metrics[name]:.4f}" + (f" ± {metrics[f'{name}_std']:.4f}" if f"{name}_std" in metrics else "")


def main() -> None:
    """Fill in the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--only", nargs="+", default=list(RUNS), choices=RUNS)
    options = parser.parse_args()
    lines = ["| data | training (min) | measure (floor: data against data) |", "|---|---|---|"]
    for name in options.only:
        lines.append(row(name, options.output_dir))
        (options.output_dir / "results.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
