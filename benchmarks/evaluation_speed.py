"""Episodes per hour of evaluation, for each environment that can be made here, on one core and on two.

usage: python benchmarks/evaluation_speed.py [TASK ...] [--episodes 20] [--num-envs 10] [--repetitions 3]

Policies have the default network of their task's data and are not trained, so no episode ends early by success. Every
repetition measures each case once, in turn, because other load comes and goes; the median is printed. "one process on two
cores" is what two cores give without processes=2: the network's threads only. The episodes must be the same in all cases.
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

from flowchunk.datasets.errors import FlowchunkError
from flowchunk.envs.contract import specs_of
from flowchunk.envs.rollout import Rollout, rollout
from flowchunk.envs.simulation import environment_maker
from flowchunk.policy.chunk_policy import ChunkPolicy, PolicyConfig
from flowchunk.policy.normalizer import Normalizer, Scaling

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


CASES = (Case(1, 1), Case(1, 2), Case(2, 2))


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


def measure(task: str, *, episodes: int, num_envs: int, repetitions: int) -> dict[Case, float]:
    """Episodes per hour in each case. Raises FlowchunkError if the environment cannot be made here."""
    make_env = environment_maker(*TASKS[task])
    policy = untrained_policy(make_env)
    found: dict[Case, list[float]] = {case: [] for case in CASES}
    outcomes = set()
    for _ in range(repetitions):
        for case in CASES:
            result = _run(policy, make_env, case, episodes=episodes, num_envs=num_envs)
            found[case].append(3600 * episodes / result.seconds)
            outcomes.add(result.episodes)
    if len(outcomes) > 1:
        print(f"{task}: the episodes differ", file=sys.stderr)
    return {case: statistics.median(values) for case, values in found.items()}


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


def main() -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(TASKS), metavar="TASK")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--num-envs", type=int, default=10)
    parser.add_argument("--repetitions", type=int, default=3)
    options = vars(parser.parse_args())
    print("| task | one core | one process on two cores | two processes on two cores | factor |\n|---|---|---|---|---|")
    for task in options.pop("tasks"):
        try:
            one, threads, two = measure(task, **options).values()
        except FlowchunkError as error:
            print(f"{task}: {error}", file=sys.stderr)
            continue
        print(f"| `{task}` | {one:,.0f} | {threads:,.0f} | {two:,.0f} | {two / one:.2f} |", flush=True)


if __name__ == "__main__":
    main()
