"""Push-T from the human demonstrations, state observations: train, evaluate, tabulate.

usage: python benchmarks/pusht_state.py DATASET_PATH OUTPUT_DIR [--networks mlp_small] [--seeds 0 1 2] [--episodes 200]
       [--steps 6000] [--options policy.frame=null …]

All runs have the command's defaults except for what is given. Resumable: a finished training or evaluation is not repeated,
an interrupted training continues from its last checkpoint. The same checkpoints are also evaluated with the goal elsewhere,
and in the original environment if gym_pusht is installed (extra pusht-original). Writes OUTPUT_DIR/results.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from pathlib import Path

from flowchunk.cli.main import main as flowchunk

NFE = (1, 2, 4, 10)
TWIN, ORIGINAL = "flowchunk/PushT-v1", "flowchunk/PushTOriginal-v1"
MOVED_GOAL = "env.goal_pose=[356,356,0.7853981633974483]"


def train(run: Path, arguments: list[str]) -> None:
    """Train into ``run`` unless it is done; write the minutes that it took to ``minutes.txt``."""
    minutes = run / "minutes.txt"
    if minutes.exists():
        return
    started = time.perf_counter()
    resume = "true" if run.exists() else "false"
    status = flowchunk(["train", *arguments, f"output_dir={run}", f"training.resume={resume}"])
    if status:
        raise SystemExit(status)
    minutes.write_text(f"{(time.perf_counter() - started) / 60:.1f}{' (resumed)' if resume == 'true' else ''}")


def evaluate(run: Path, *, env_id: str, nfe: int, episodes: int, more: tuple[str, ...]) -> dict[str, float]:
    """The report of an evaluation, read from its file if it exists. more: arguments of ``flowchunk eval``."""
    moved = "-goal" if MOVED_GOAL in more else ""
    folder = run / f"eval-{env_id.partition('/')[2]}{moved}-{nfe}-{episodes}"
    if not (folder / "eval.json").exists():
        arguments = [f"env_id={env_id}", f"nfe={nfe}", f"episodes={episodes}", f"output_dir={folder}", "video=0"]
        if flowchunk(["eval", str(run), *arguments, *more]):
            raise SystemExit(1)
    report: dict[str, float] = json.loads((folder / "eval.json").read_text())
    return report


def row(name: str, run: Path, *, env_id: str, episodes: int, more: tuple[str, ...] = ()) -> str:
    """Score and success of a run at each number of evaluations, as a row of the table."""
    reports = [evaluate(run, env_id=env_id, nfe=nfe, episodes=episodes, more=more) for nfe in NFE]
    cells = "".join(f" {report['score_mean']:.3f} / {report['success_rate']:.2f} |" for report in reports)
    place = f"{env_id.partition('/')[2]}{', another goal' if MOVED_GOAL in more else ''}"
    return f"| {name} | {(run / 'minutes.txt').read_text()} | {place} |{cells}"


def main() -> None:
    """Fill in the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--networks", nargs="+", default=["mlp_small"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--options", nargs="+", default=[])
    options = parser.parse_args()
    places: list[tuple[str, tuple[str, ...]]] = [(TWIN, ()), (TWIN, (MOVED_GOAL,))]
    places += [(ORIGINAL, ())] if importlib.util.find_spec("gym_pusht") else []
    header = "".join(f" {nfe} |" for nfe in NFE)
    lines = [f"| network | seed | minutes | environment |{header}", "|---|---|---|---|" + "---|" * len(NFE)]
    for network in options.networks:
        for seed in options.seeds:
            run = options.output_dir / f"{network}-{seed}"
            arguments = ["task=pusht_state", f"dataset.path={options.dataset}", f"network={network}", f"seed={seed}"]
            train(run, [*arguments, f"training.steps={options.steps}", *options.options])
            for env_id, more in places:
                lines.append(row(f"{network} | {seed}", run, env_id=env_id, episodes=options.episodes, more=more))
                (options.output_dir / "results.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
