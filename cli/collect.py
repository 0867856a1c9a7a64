"""flowchunk collect: record demonstrations by a task's scripted expert.

usage: flowchunk collect task=pickplace_state output_dir=PATH [episodes=200] [seed=0] [env.KEY=VALUE]

Episode i is reset with seed + i. Failed attempts are not kept; another is made in their place. PATH becomes the store, which
`flowchunk train ... dataset.path=PATH` reads.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from flowchunk.cli.options import read_options
from flowchunk.cli.simulation import environment_maker
from flowchunk.datasets.errors import ConfigurationError, SimulationError
from flowchunk.datasets.recorder import StoreWriter


def run(arguments: list[str]) -> None:
    """Collect as the arguments say."""
    collect(read_options("collect", arguments))


def collect(options: dict[str, Any]) -> None:
    """Record with the options of ``configs/collect.yaml``."""
    if options["task"]["expert"] is None:
        raise ConfigurationError(
            f"task {options['task']['name']} has no scripted expert; record or download demonstrations instead"
        )
    if options["episodes"] < 1:
        raise ConfigurationError(f"episodes={options['episodes']} must be at least 1")
    module, _, name = options["task"]["expert"].rpartition(".")
    env = environment_maker(options["task"]["env_id"], options["env"])()
    expert = getattr(importlib.import_module(module), name)(np.random.default_rng(options["seed"]))
    writer = StoreWriter(
        options["output_dir"],
        observation_spec=env.get_wrapper_attr("observation_spec"),
        action_spec=env.get_wrapper_attr("action_spec"),
    )
    kept = attempts = 0
    with writer, Progress() as progress:
        task = progress.add_task(f"collecting {options['episodes']} demonstrations", total=options["episodes"])
        while kept < options["episodes"]:
            observations, actions, success = _episode(env, expert, seed=options["seed"] + attempts)
            attempts += 1
            if success:
                writer.add_episode(observations, actions)
                kept += 1
                progress.update(task, completed=kept)
            elif attempts >= 10 and kept < attempts / 2:
                raise SimulationError(
                    f"the expert failed in {attempts - kept} of {attempts} attempts; check env.KEY=VALUE"
                )
    env.close()
    Console().print(f"{kept} demonstrations ({attempts} attempts) in {options['output_dir']}")


def _episode(env: Any, expert: Any, *, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray, bool]:
    observation, info = env.reset(seed=seed)
    expert.reset(env.unwrapped)
    observations, actions, over = [], [], False
    while not over:
        action = expert.act(env.unwrapped)
        observations.append(observation)
        actions.append(action)
        observation, _, terminated, truncated, info = env.step(action)
        over = terminated or truncated
    stacked = {key: np.stack([frame[key] for frame in observations]) for key in observations[0]}
    return stacked, np.stack(actions), bool(info["is_success"])
