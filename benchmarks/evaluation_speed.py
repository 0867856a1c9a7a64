"""Episodes per hour of evaluation, for each environment that can be made here, on one core and on two.

usage: python benchmarks/evaluation_speed.py [TASK ...] [--episodes 20] [--num-envs 10] [--repetitions 3]

Policies have the default network of their task's data and are not trained, so no episode ends early by success. Every
repetition measures each case once, in turn, because other load comes and goes; the median is printed, and the median of the
factors of processes=2 against one core. "one process, two cores" is what the network's threads give; "two programs" are
independent, with one thread and half of the environments and episodes each. The processes must not change the episodes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from joblib import Parallel, delayed

from flowchunk.datasets.errors import FlowchunkError
from flowchunk.envs.contract import specs_of
from flowchunk.envs.rollout import REPORT_SEED, Rollout, rollout
from flowchunk.envs.simulation import environment_maker
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.normalizer import Normalizer, Scaling
from flowchunk.policy.policy_config import PolicyConfig

TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "pusht_state": ("flowchunk/PushT-v1", {}),
    "pusht_image": ("flowchunk/PushT-v1", {"observation": "image"}),
    "pickplace_state": ("flowchunk/PickPlace-v1", {}),
    "pickplace_image": ("flowchunk/PickPlace-v1", {"observation": "image"}),
    "adroit_door": ("flowchunk/AdroitDoor-v1", {}),
    "fetch_pick_and_place": ("flowchunk/FetchPickAndPlace-v1", {}),
    "metaworld/reach": ("flowchunk/MetaWorld-v1", {"name": "reach"}),
}


@dataclass(frozen=True)
class Case:
    """So many processes that step environments, on so many cores."""

    processes: int
    cores: int


ONE_CORE, TWO_PROCESSES = Case(1, 1), Case(2, 2)
CASES = (ONE_CORE, Case(1, 2), TWO_PROCESSES)


def untrained_policy(make_env: Callable[[], gymnasium.Env[Any, Any]]) -> ChunkPolicy:
    """A policy with the default network, whose scalings are those of an episode of random actions."""
    env = make_env()
    observation_spec, action_spec = specs_of(env)
    env.action_space.seed(0)
    observations, actions = [env.reset(seed=0)[0]], [env.action_space.sample() for _ in range(50)]
    observations += [env.step(action)[0] for action in actions]
    env.close()
    scalings = {
        key: Scaling.fit("min_max", [np.stack([one[key] for one in observations])])
        for key, field in observation_spec.fields.items()
        if not field.is_image
    }
    scalings["action"] = Scaling.fit("min_max", [np.stack(actions)])
    torch.manual_seed(0)
    vision = {"vision": "resnet18"} if observation_spec.images else {}
    return ChunkPolicy(PolicyConfig(**vision), observation_spec, action_spec, Normalizer(scalings)).eval()


def measure(task: str, *, episodes: int, num_envs: int, repetitions: int) -> list[list[float]]:
    """Episodes per hour (repetitions, len(CASES) + 1), the last of two programs. Raises FlowchunkError without the task."""
    make_env = environment_maker(*TASKS[task])
    policy = untrained_policy(make_env)
    found, outcomes = [], set()
    with Parallel(n_jobs=2) as programs:
        _run_programs(programs, task, episodes=2, num_envs=2)  # which starts them
        for _ in range(repetitions):
            results = [_run(policy, make_env, case, episodes=episodes, num_envs=num_envs) for case in CASES]
            outcomes |= {result.episodes for result in results}
            seconds = [result.seconds for result in results]
            seconds.append(_run_programs(programs, task, episodes=episodes, num_envs=num_envs))
            found.append([3600 * episodes / time for time in seconds])
    if len(outcomes) > 1:
        print(f"{task}: the episodes differ", file=sys.stderr)
    return found


def _run(
    policy: ChunkPolicy, make_env: Callable[[], gymnasium.Env[Any, Any]], case: Case, *, episodes: int, num_envs: int
) -> Rollout:
    every = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(every)[: case.cores])  # processes that are started inherit it
    torch.set_num_threads(case.cores)
    try:
        return rollout(
            policy, make_env, policy.execution, episodes=episodes, num_envs=num_envs, processes=case.processes
        )
    finally:
        os.sched_setaffinity(0, every)


def _run_programs(programs: Parallel, task: str, *, episodes: int, num_envs: int) -> float:
    """Seconds of the slower of two independent programs."""
    return max(programs(delayed(_program)(task, index, episodes // 2, num_envs // 2) for index in range(2)))


def _program(task: str, index: int, episodes: int, num_envs: int) -> float:
    torch.set_num_threads(1)
    make_env = environment_maker(*TASKS[task])
    policy = untrained_policy(make_env)
    seed = REPORT_SEED + index * episodes
    return rollout(policy, make_env, policy.execution, episodes=episodes, num_envs=num_envs, seed=seed).seconds


def main() -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(TASKS), metavar="TASK")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--num-envs", type=int, default=20)
    parser.add_argument("--repetitions", type=int, default=3)
    options = vars(parser.parse_args())
    print(
        "| task | one core | one process, two cores | processes=2 | two programs | factor |\n|---|---|---|---|---|---|"
    )
    for task in options.pop("tasks"):
        try:
            found = measure(task, **options)
        except FlowchunkError as error:
            print(f"{task}: {error}", file=sys.stderr)
            continue
        speeds = " | ".join(f"{statistics.median(column):,.0f}" for column in zip(*found, strict=True))
        one, two = CASES.index(ONE_CORE), CASES.index(TWO_PROCESSES)
        factor = statistics.median(row[two] / row[one] for row in found)
        print(f"| `{task}` | {speeds} | {factor:.2f} |", flush=True)


if __name__ == "__main__":
    main()
