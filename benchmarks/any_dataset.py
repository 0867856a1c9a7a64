"""Policies that were trained without a task: their open-loop error against the baselines, and for Push-T also in simulation.

usage: python benchmarks/any_dataset.py RUN [RUN ...] [--episodes 100]

A run is a folder of `flowchunk train dataset.path=…`, which wrote `open_loop.json`. Those whose observations Push-T's
environment has are rolled out there, from seed 100000, although their data sets may not name what they hold: keys and shapes
are compared, not names.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flowchunk.envs.contract import observation_spec_of
from flowchunk.envs.rollout import REPORT_SEED, rollout
from flowchunk.envs.simulation import MakeEnv, environment_maker
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.evaluation.intervals import wilson_interval

ENV_ID = "flowchunk/PushT-v1"
NFE = 4


def main() -> None:
    """Print a table of errors, and one of scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--episodes", type=int, default=100)
    arguments = parser.parse_args()
    console = Console(width=140)
    table = Table(
        "run", "held-out episodes", "policy, nfe 1 / 4 / 10", "hold", "nearest", "mean", "best of baselines / policy"
    )
    for run in arguments.runs:
        table.add_row(*errors_of(run))
    console.print("open-loop action error, in standard deviations of the training actions")
    console.print(table)
    for run in arguments.runs:
        make_env = environment_for(ChunkPolicy.load(run))
        if make_env is not None:
            console.print(simulate(run, make_env, arguments.episodes))


def errors_of(run: Path) -> list[str]:
    """The row of a run: its normalized errors and those of the baselines."""
    report: dict[str, Any] = json.loads((run / "open_loop.json").read_text())
    errors = {(entry["method"], entry["nfe"]): entry["normalized"] for entry in report["errors"]}
    baselines = {name: errors[(name, None)] for name in ("hold", "nearest", "mean")}
    policy = [errors[("policy", nfe)] for nfe in (1, NFE, 10)]
    ratio = min(baselines.values()) / errors[("policy", NFE)]
    shown = [f"{value:.3f}" for value in baselines.values()]
    return [
        run.name,
        str(report["num_episodes"]),
        " / ".join(f"{value:.3f}" for value in policy),
        *shown,
        f"{ratio:.2f}",
    ]


def environment_for(policy: ChunkPolicy) -> MakeEnv | None:
    """Push-T with the policy's observations; None if it does not have them."""
    wanted = {key: field.shape for key, field in policy.observation_spec.fields.items()}
    for observation in ("state", "image"):
        make_env = environment_maker(ENV_ID, {"observation": observation})
        env = make_env()
        has = {key: field.shape for key, field in observation_spec_of(env).fields.items()}
        env.close()
        if has == wanted:
            return make_env
    return None


def simulate(run: Path, make_env: MakeEnv, episodes: int) -> str:
    """Score and success of a run, in words."""
    policy = ChunkPolicy.load(run)
    result = rollout(policy, make_env, policy.execution, episodes=episodes, seed=REPORT_SEED, nfe=NFE)
    low, high = wilson_interval(result.successes, episodes)
    return f"{run.name} in {ENV_ID}: score {result.score_mean:.3f}, success {result.success_rate:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
