"""PickPlace from scripted demonstrations: collect, train, evaluate, and count the bins.

usage: python benchmarks/pickplace.py OUTPUT_DIR [--task pickplace_state|pickplace_image] [--demonstrations 200]
       [--steps N] [--episodes 200]

OUTPUT_DIR may be that of `flowchunk demo`, whose demonstrations and policy are then used. Steps: 3,000 from states, as in
the demo, and the task's default from images. Resumable: an interrupted training continues from its last checkpoint.

Targets: from states a success rate of at least 0.95 after at most 10 minutes of training, each bin chosen in at least 25 %
of the successes; from two cameras, on 2 CPU cores, at least 0.85 in 100 episodes after at most 60 minutes.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

from flowchunk.cli.main import main as flowchunk
from flowchunk.envs.rollout import rollout
from flowchunk.envs.simulation import environment_maker
from flowchunk.policy.checkpoint import find_checkpoint, read_json
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.evaluation.intervals import wilson_interval


def training_of(checkpoint: Path) -> dict[str, int]:
    """The entry of a checkpoint about its training, with ``step`` and ``steps``."""
    training: dict[str, int] = read_json(checkpoint / "checkpoint.json")["training"]
    return training


def is_trained(run: Path) -> bool:
    """Whether the run is finished."""
    last = run / "checkpoints" / "last"
    return last.exists() and training_of(last)["step"] >= training_of(last)["steps"]


def main() -> None:
    """Collect, train and evaluate, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--task", default="pickplace_state", choices=["pickplace_state", "pickplace_image"])
    parser.add_argument("--demonstrations", type=int, default=200)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--episodes", type=int, default=200)
    options = parser.parse_args()
    store, run = options.output_dir / "demonstrations.zarr", options.output_dir / "train"
    task = f"task={options.task}"
    steps = options.steps or {"pickplace_state": 3_000}.get(options.task)
    if not store.exists() and flowchunk(["collect", task, f"output_dir={store}", f"episodes={options.demonstrations}"]):
        raise SystemExit(1)
    if not is_trained(run):
        started = time.perf_counter()
        resume = f"training.resume={'true' if (run / 'config.yaml').exists() else 'false'}"
        arguments = [task, f"dataset.path={store}", f"output_dir={run}", resume]
        if flowchunk(["train", *arguments, *([f"training.steps={steps}"] if steps else [])]):
            raise SystemExit(1)
        print(f"training {(time.perf_counter() - started) / 60:.1f} minutes ({resume}), including evaluations")
    policy, used = ChunkPolicy.load(run), training_of(find_checkpoint(run))
    print(f"{find_checkpoint(run)}: the checkpoint of step {used['step']:,} of {used['steps']:,}")
    make_env = environment_maker("flowchunk/PickPlace-v1", {"observation": options.task.partition("_")[2]})
    result = rollout(policy, make_env, policy.execution, episodes=options.episodes, nfe=4)
    bins = Counter(int(info["bin"]) for info in result.infos if info["is_success"])
    low, high = wilson_interval(result.successes, options.episodes)
    print(f"success {result.success_rate:.3f} [{low:.3f}, {high:.3f}], score {result.score_mean:.3f}")
    print(
        f"bins chosen in the successes: {', '.join(f'{b}: {n / result.successes:.0%}' for b, n in sorted(bins.items()))}"
    )


if __name__ == "__main__":
    main()
