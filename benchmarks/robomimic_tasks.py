"""robomimic's Lift and Can from scripted demonstrations, and evaluation against robomimic's own. Run where it is installed.

usage: python benchmarks/robomimic_tasks.py OUTPUT_DIR [--tasks lift can] [--demonstrations 200] [--episodes 200]
           [--steps 2000 4000] [--timed 120] [--rounds 2] [--processes 2] [--num-envs 8]

Collects a robomimic file of each task, trains a policy on it, and evaluates that. Then the same policy acts in ``--timed``
episodes of flowchunk's evaluation and of robomimic's ``rollout_with_stats``, by turns, ``--rounds`` times; success ends an
episode in both. Resumable: what is collected, trained or evaluated is not done again. Writes OUTPUT_DIR/results.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowchunk.cli.main import main as flowchunk
from flowchunk.envs.rollout import rollout
from flowchunk.envs.simulation import environment_maker
from flowchunk.envs.tasks.robomimic_arguments import EnvArguments
from flowchunk.envs.tasks.robomimic_import import make_robosuite
from flowchunk.policy.checkpoint import find_checkpoint
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.evaluation.intervals import wilson_interval

HORIZON = 400
ENV_ID = "flowchunk/Robomimic-v1"


def run(*arguments: str) -> None:
    """A command of flowchunk, which must succeed."""
    if status := flowchunk(list(arguments)):
        raise SystemExit(status)


def prepare(folder: Path, task: str, demonstrations: int, steps: int) -> Path:
    """The run of a policy, trained on collected demonstrations."""
    data, run_dir = folder / f"{task}.hdf5", folder / task
    if not data.exists():
        run("collect", f"task=robomimic/{task}", f"episodes={demonstrations}", f"output_dir={data}")
    minutes = run_dir / "minutes.txt"
    if not minutes.exists():
        started = time.perf_counter()
        options = [f"dataset.path={data}", f"output_dir={run_dir}", f"training.steps={steps}", "evaluation.episodes=0"]
        resume = f"training.resume={'true' if run_dir.exists() else 'false'}"
        run("train", f"task=robomimic/{task}", "dataset.stored_split=true", *options, resume)
        minutes.write_text(f"{(time.perf_counter() - started) / 60:.1f}")
    return run_dir


def success(run_dir: Path, episodes: int, *, num_envs: int, processes: int) -> tuple[float, float, float]:
    """The success rate and its interval."""
    folder = run_dir / f"eval-{episodes}"
    if not (folder / "eval.json").exists():
        options = [
            f"output_dir={folder}",
            f"episodes={episodes}",
            f"num_envs={processes}",
            f"processes={processes}",
            "video=0",
        ]
        run("eval", str(run_dir), *options)
    rate = json.loads((folder / "eval.json").read_text())["success_rate"]
    return rate, *wilson_interval(round(rate * episodes), episodes)


def ours_per_hour(policy: ChunkPolicy, task: str, episodes: int, *, num_envs: int, processes: int) -> float:
    """Episodes per hour of flowchunk's evaluation."""
    make_env = environment_maker(ENV_ID, {"name": task})
    started = time.perf_counter()  # the start of the processes counts
    rollout(policy, make_env, policy.execution, episodes=episodes, num_envs=num_envs, processes=processes)
    return 3600 * episodes / (time.perf_counter() - started)


def robomimics_per_hour(policy: ChunkPolicy, task: str, episodes: int) -> tuple[float, float]:
    """Episodes per hour of robomimic's evaluation with the same chunks, and its success rate."""
    arguments = EnvArguments.default(task)
    meta = {"env_name": arguments.env_name, "type": 1, "env_version": "1.4.1", "env_kwargs": dict(arguments.kwargs)}
    started = time.perf_counter()
    env = make_robosuite(meta, cameras=(), is_rendered=False)
    from robomimic.utils.train_utils import rollout_with_stats

    logs, _ = rollout_with_stats(
        _robomimic_policy(policy), {task: env}, HORIZON, num_episodes=episodes, terminate_on_success=True
    )
    return 3600 * episodes / (time.perf_counter() - started), float(logs[task]["Success_Rate"])


def _robomimic_policy(policy: ChunkPolicy) -> Any:
    """The policy as robomimic's rollout takes it: an observation for an action."""
    from robomimic.algo import RolloutPolicy

    execution = policy.execution

    class ChunkRolloutPolicy(RolloutPolicy):  # type: ignore[misc]
        def __init__(self) -> None:
            self.episodes = 0

        def start_episode(self) -> None:
            self.actions: list[np.ndarray] = []
            self.history: list[Mapping[str, np.ndarray]] = []
            self.episodes += 1

        def __call__(self, ob: Mapping[str, np.ndarray], goal: None = None) -> np.ndarray:
            kept = {key: np.asarray(ob[key], np.float32) for key in policy.observation_spec.fields}
            self.history = [*(self.history or [kept] * execution.observation_steps), kept][
                -execution.observation_steps :
            ]
            if not self.actions:
                batch = {key: np.stack([one[key] for one in self.history])[None] for key in kept}
                chunk = policy.predict_chunk(batch, seed=[self.episodes])[0]
                self.actions = list(chunk[: execution.n_action_steps])
            return self.actions.pop(0)

    return ChunkRolloutPolicy()


def main() -> None:
    """Collect, train, evaluate, time and tabulate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--tasks", nargs="+", default=["lift", "can"], choices=["lift", "can"])
    parser.add_argument("--demonstrations", type=int, default=200)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--steps", nargs="+", type=int, default=[2000, 4000], help="of training, for each task")
    parser.add_argument("--timed", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--num-envs", type=int, default=8)
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    parallel = {"num_envs": options.num_envs, "processes": options.processes}
    rows = [
        "| task | minutes of training | success | episodes per hour | robomimic's rollout | factor |",
        "|---|---|---|---|---|---|",
    ]
    for task, steps in zip(options.tasks, options.steps, strict=True):
        run_dir = prepare(options.output_dir, task, options.demonstrations, steps)
        rate, low, high = success(run_dir, options.episodes, **parallel)
        policy = ChunkPolicy.load(find_checkpoint(run_dir))
        ours, theirs = [], []
        for _ in range(options.rounds):
            ours.append(ours_per_hour(policy, task, options.timed, **parallel))
            theirs.append(robomimics_per_hour(policy, task, options.timed))
            print(
                f"{task}: {ours[-1]:.0f} episodes per hour, robomimic {theirs[-1][0]:.0f}, success {theirs[-1][1]:.2f}"
            )
        mine, other = float(np.median(ours)), float(np.median([per_hour for per_hour, _ in theirs]))
        minutes = (run_dir / "minutes.txt").read_text()
        rows.append(
            f"| {task} | {minutes} | {rate:.3f} [{low:.3f}, {high:.3f}] | {mine:,.0f} | {other:,.0f} | {mine / other:.2f} |"
        )
    (options.output_dir / "results.md").write_text("\n".join(rows) + "\n")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
