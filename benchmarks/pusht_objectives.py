"""Push-T from states: every objective with the same network and budget, at 1, 2, 4 and 10 evaluations.

usage: python benchmarks/pusht_objectives.py DATASET_PATH OUTPUT_DIR [--objectives flow v data_prediction …]

An MLP of a million weights, 4,000 steps; 200 episodes each, the same for all. noise_prediction is sampled by our DDIM with
few steps, and by `diffusers` as DDPM with 100 steps and as DDIM with 16. Resumable: what is done is not repeated. Writes
OUTPUT_DIR/results-SEED.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from flowchunk.cli.main import main as flowchunk

OBJECTIVES = ("flow", "v", "data_prediction", "noise_prediction", "regression", "mip", "flow_map")
NFE = (1, 2, 4, 10)
DIFFUSERS = (("diffusers_ddpm", 100), ("diffusers_ddim", 16))
NETWORK = ("network=mlp", "network.width=200", "network.blocks=4", "policy.frame=null", "evaluation.noise_scale=1")


def train(dataset: Path, run: Path, *, objective: str, steps: int, seed: int, more: list[str]) -> None:
    """Train into ``run``, or resume what is there."""
    if (run / "loss.png").exists():
        return
    resume = "true" if (run / "config.yaml").exists() else "false"
    arguments = ["train", "task=pusht_state", f"dataset.path={dataset}", f"objective={objective}", *NETWORK, *more]
    arguments += [f"training.steps={steps}", "evaluation.episodes=0", f"seed={seed}"]
    if flowchunk([*arguments, f"training.resume={resume}", f"output_dir={run}"]):
        raise SystemExit(1)


def sweep(run: Path, nfe: tuple[int, ...], *, episodes: int, solver: str | None = None) -> list[dict[str, Any]]:
    """The rows of a sweep, read from its file if it exists."""
    folder = run / f"sweep-{solver or 'default'}-{episodes}"
    if not (folder / "sweep.json").exists():
        chosen = [] if solver is None else [f"solver={solver}"]
        numbers = f"nfe=[{','.join(map(str, nfe))}]"
        if flowchunk(["sweep", str(run), numbers, f"episodes={episodes}", f"output_dir={folder}", *chosen]):
            raise SystemExit(1)
    rows: list[dict[str, Any]] = json.loads((folder / "sweep.json").read_text())["rows"]
    return rows


def format_row(row: dict[str, Any]) -> str:
    """Score, and success with its confidence interval; "-" if this number of evaluations was refused."""
    if "refused" in row:
        return "-"
    low, high = row["success_ci95"]
    return f"{row['score']:.3f} / {row['success']:.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    """Fill in the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=OBJECTIVES)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", nargs="*", default=[], metavar="KEY=VALUE", help="more options of flowchunk train")
    options = parser.parse_args()
    lines = ["| objective | 1 | 2 | 4 | 10 |", "|---|---|---|---|---|"]
    for objective in options.objectives:
        run = options.output_dir / f"{objective}-{options.seed}"
        train(options.dataset, run, objective=objective, steps=options.steps, seed=options.seed, more=options.train)
        rows = sweep(run, NFE, episodes=options.episodes)
        lines.append(f"| {objective} | " + " | ".join(format_row(row) for row in rows) + " |")
        for solver, nfe in DIFFUSERS if objective == "noise_prediction" else ():
            (row,) = sweep(run, (nfe,), episodes=options.episodes, solver=solver)
            lines.append(
                f"| noise_prediction, {solver.removeprefix('diffusers_').upper()}-{nfe} | {format_row(row)} | | | |"
            )
        (options.output_dir / f"results-{options.seed}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
