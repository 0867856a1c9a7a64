"""flowchunk demo: from demonstrations to a recorded rollout, on the bundled arm.

usage: flowchunk demo [--quick] [output_dir=DIR]

  --quick                          a short demo, with too little training to succeed often
  output_dir=DIR                   default: outputs/demo-TIME; finished parts of DIR are skipped

Collects demonstrations of a scripted pick-and-place expert, trains a policy, evaluates 50 episodes
in MuJoCo, and writes DIR/eval.json, DIR/videos/*.mp4 and DIR/train/loss.png. On two cores it takes
less than 8 minutes, with --quick less than one.
"""

from __future__ import annotations

import shlex
import time
from datetime import datetime
from pathlib import Path

from rich.console import Console

from flowchunk.cli.collect import collect
from flowchunk.cli.eval import evaluate
from flowchunk.cli.options import read_options
from flowchunk.cli.train import train
from flowchunk.datasets.errors import ConfigurationError

TASK = "task=pickplace_state"
FULL = {"demonstrations": 200, "steps": 3000, "episodes": 50, "selection_episodes": 20}
QUICK = {"demonstrations": 40, "steps": 300, "episodes": 5, "selection_episodes": 0}


def run(arguments: list[str]) -> None:
    """Run the demo with command-line arguments."""
    size = QUICK if "--quick" in arguments else FULL
    rest = [argument for argument in arguments if argument != "--quick"]
    given = dict(argument.partition("=")[::2] for argument in rest)
    if unknown := given.keys() - {"output_dir"}:
        raise ConfigurationError(f"demo takes --quick and output_dir=DIR, but got {', '.join(sorted(unknown))}")
    default = Path("outputs") / f"demo-{datetime.now().strftime('%Y-%m-%d_%H-%M-%S')}"
    output_dir = Path(given.get("output_dir") or default).expanduser()
    demonstrate(output_dir, **size)


def demonstrate(output_dir: Path, *, demonstrations: int, steps: int, episodes: int, selection_episodes: int) -> None:
    """Collect, train, evaluate and record videos in ``output_dir``; finished parts are skipped."""
    console, started = Console(), time.perf_counter()
    store, run_dir = output_dir / "demonstrations.zarr", output_dir / "train"
    print(f"output directory: {output_dir}")
    console.rule("1 of 3: demonstrations")
    if store.exists():
        print(f"found in {store}")
    else:
        collect(read_options("collect", [TASK, f"output_dir={store}", f"episodes={demonstrations}"]))
    console.rule("2 of 3: training")
    resume = f"training.resume={'true' if (run_dir / 'config.yaml').exists() else 'false'}"
    overrides = [f"dataset.path={store}", f"output_dir={run_dir}", f"training.steps={steps}", resume]
    train(read_options("train", [TASK, *overrides, f"evaluation.episodes={selection_episodes}"]))
    console.rule("3 of 3: evaluation")
    evaluate(run_dir, read_options("eval", [f"output_dir={output_dir}", f"episodes={episodes}", "video=2"]))
    print(
        f"\ndone in {(time.perf_counter() - started) / 60:.1f} minutes. Results:\n"
        f"  {output_dir}/eval.json     score, success and latency\n"
        f"  {output_dir}/videos/       rollouts, with predicted chunks\n"
        f"  {run_dir}/loss.png  loss curves\n"
        f"Next: flowchunk eval {shlex.quote(str(run_dir))} nfe=1"
    )
