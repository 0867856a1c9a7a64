"""flowchunk collect: record demonstrations of a task's scripted expert.

usage: flowchunk collect task=TASK output_dir=PATH [KEY=VALUE ...]

  task=TASK                        pickplace_state | pickplace_image | fetch_pick_and_place | metaworld/NAME
  output_dir=PATH                  the store to write
  episodes=200  seed=0             number of demonstrations
  env.KEY=VALUE                    an argument of the environment

Attempt i is reset with seed + i; failed attempts are discarded. PATH becomes a store for
`flowchunk train ... dataset.path=PATH`. Until the last episode, the demonstrations are in
PATH.<random>.partial, which is a store, too: if the command is interrupted, the finished episodes
are kept there, and the next `flowchunk collect` or `flowchunk data inspect` of PATH says so.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from flowchunk.cli.options import read_options
from flowchunk.datasets.errors import ConfigurationError, SimulationError
from flowchunk.datasets.recorder import StoreWriter
from flowchunk.envs.contract import action_spec_of, observation_spec_of, require_time_limit
from flowchunk.envs.simulation import environment_maker

INTERRUPTED = 130  # the exit status of a command that Ctrl-C ended


def run(arguments: list[str]) -> None:
    """Collect with command-line arguments."""
    collect(read_options("collect", arguments))


def collect(options: dict[str, Any]) -> None:
    """Collect with the options of ``schemas.COLLECT``."""
    if options["task"]["expert"] is None:
        raise ConfigurationError(
            f"task {options['task']['name']} has no scripted expert; record or download demonstrations instead"
        )
    if options["episodes"] < 1:
        raise ConfigurationError(f"episodes={options['episodes']} must be at least 1")
    module, _, name = options["task"]["expert"].rpartition(".")
    env = environment_maker(options["task"]["env_id"], options["env"])()
    require_time_limit(env)
    expert = getattr(importlib.import_module(module), name)(np.random.default_rng(options["seed"]))
    writer = StoreWriter(
        options["output_dir"],
        observation_spec=observation_spec_of(env),
        action_spec=action_spec_of(env),
        say=lambda text: Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True),
    )
    try:
        with writer:
            attempts = _record(writer, env, expert, episodes=options["episodes"], seed=options["seed"])
    except KeyboardInterrupt:
        print(f"interrupted after {writer.num_episodes} of {options['episodes']} demonstrations", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    finally:
        env.close()
    text = f"{writer.num_episodes} demonstrations ({attempts} attempts) in {options['output_dir']}"
    Console().print(text, markup=False, soft_wrap=True)


def _record(writer: StoreWriter, env: Any, expert: Any, *, episodes: int, seed: int) -> int:
    """Record so many successful episodes; returns the number of attempts."""
    attempts = 0
    with Progress() as progress:
        task = progress.add_task(f"collecting {episodes} demonstrations", total=episodes)
        while writer.num_episodes < episodes:
            observations, actions, success = _run_episode(env, expert, seed=seed + attempts)
            attempts += 1
            if success:
                writer.add_episode(observations, actions)
                progress.update(task, completed=writer.num_episodes)
            elif attempts >= 10 and writer.num_episodes < attempts / 2:
                raise SimulationError(
                    f"the expert failed in {attempts - writer.num_episodes} of {attempts} attempts; check env.KEY=VALUE"
                )
    return attempts


def _run_episode(env: Any, expert: Any, *, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray, bool]:
    """Observations, actions and success of one episode."""
    observation, info = env.reset(seed=seed)
    expert.reset(env.unwrapped)
    observations, actions, is_over = [], [], False
    while not is_over:
        action = expert.act(env.unwrapped)
        observations.append(observation)
        actions.append(action)
        observation, _, terminated, truncated, info = env.step(action)
        is_over = terminated or truncated
    stacked = {key: np.stack([frame[key] for frame in observations]) for key in observations[0]}
    return stacked, np.stack(actions), bool(info["is_success"])
