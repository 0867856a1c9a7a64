"""flowchunk collect: record demonstrations of a task's scripted expert.

usage: flowchunk collect task=TASK output_dir=PATH [KEY=VALUE ...]

  task=TASK                        pickplace_state | pickplace_image | fetch_pick_and_place |
                                   metaworld/NAME | robomimic/lift | robomimic/can
  output_dir=PATH                  the store to write, or PATH.hdf5, a file of robomimic
  episodes=200  seed=0             number of demonstrations
  env.KEY=VALUE                    an argument of the environment

Attempt i is reset with seed + i; failed attempts are discarded. PATH becomes a store for
`flowchunk train ... dataset.path=PATH`. Until the last episode, the demonstrations are in
PATH.<random>.partial, which is a store, too: if the command is interrupted, the finished episodes
are kept there, and the next `flowchunk collect` or `flowchunk data inspect` of PATH says so.

PATH.hdf5 is written at the end, or not at all. The last tenth of its episodes is for validation;
of tasks of robosuite it holds what robomimic restores them from: arguments, states and models.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from flowchunk.cli.options import read_options
from flowchunk.datasets.errors import ConfigurationError, SimulationError
from flowchunk.datasets.formats import HDF5
from flowchunk.datasets.formats.robomimic_writer import RobomimicWriter, SimulatedEpisode
from flowchunk.datasets.recorder import StoreWriter
from flowchunk.envs.contract import action_spec_of, observation_spec_of, require_time_limit
from flowchunk.envs.simulation import environment_maker

INTERRUPTED = 130  # the exit status of a command that Ctrl-C ended
VALIDATION_FRACTION = 0.1


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
    writer = _writer(env, options["output_dir"], episodes=options["episodes"])
    try:
        with writer:
            attempts = _record(writer, env, expert, episodes=options["episodes"], seed=options["seed"])
    except KeyboardInterrupt:
        lost = ", which are lost: an HDF5 file is written at the end" if isinstance(writer, RobomimicWriter) else ""
        print(f"interrupted after {writer.num_episodes} of {options['episodes']} demonstrations{lost}", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    finally:
        env.close()
    text = f"{writer.num_episodes} demonstrations ({attempts} attempts) in {options['output_dir']}"
    Console().print(text, markup=False, soft_wrap=True)


def _writer(env: Any, path: Path, *, episodes: int) -> StoreWriter | RobomimicWriter:
    observation_spec, action_spec = observation_spec_of(env), action_spec_of(env)
    if Path(path).suffix in HDF5:
        held_out = round(VALIDATION_FRACTION * episodes)
        return RobomimicWriter(
            path,
            observation_spec=observation_spec,
            action_spec=action_spec,
            env_args=env.get_wrapper_attr("env_args") if env.has_wrapper_attr("env_args") else None,
            masks={"train": range(episodes - held_out), "valid": range(episodes - held_out, episodes)},
        )
    return StoreWriter(
        path,
        observation_spec=observation_spec,
        action_spec=action_spec,
        say=lambda text: Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True),
    )


@dataclass(frozen=True)
class Attempt:
    """An episode of the expert. simulation: what restores it, of environments that can be restored."""

    observations: dict[str, np.ndarray]
    actions: np.ndarray
    is_success: bool
    simulation: SimulatedEpisode | None


def _record(writer: StoreWriter | RobomimicWriter, env: Any, expert: Any, *, episodes: int, seed: int) -> int:
    """Record so many successful episodes; returns the number of attempts."""
    attempts = 0
    with Progress() as progress:
        task = progress.add_task(f"collecting {episodes} demonstrations", total=episodes)
        while writer.num_episodes < episodes:
            attempt = _run_episode(env, expert, seed=seed + attempts)
            attempts += 1
            if attempt.is_success:
                _add(writer, attempt)
                progress.update(task, completed=writer.num_episodes)
            elif attempts >= 10 and writer.num_episodes < attempts / 2:
                raise SimulationError(
                    f"the expert failed in {attempts - writer.num_episodes} of {attempts} attempts; check env.KEY=VALUE"
                )
    return attempts


def _add(writer: StoreWriter | RobomimicWriter, attempt: Attempt) -> None:
    if isinstance(writer, RobomimicWriter):
        writer.add_episode(attempt.observations, attempt.actions, simulation=attempt.simulation)
    else:
        writer.add_episode(attempt.observations, attempt.actions)


def _run_episode(env: Any, expert: Any, *, seed: int) -> Attempt:
    observation, info = env.reset(seed=seed)
    state_of: Callable[[], np.ndarray] | None = None
    if env.has_wrapper_attr("simulation_state"):
        state_of = env.get_wrapper_attr("simulation_state")
    expert.reset(env.unwrapped)
    observations, actions, states, rewards, is_over = [], [], [], [], False
    while not is_over:
        action = expert.act(env.unwrapped)
        observations.append(observation)
        actions.append(action)
        if state_of is not None:
            states.append(state_of())
        observation, _, terminated, truncated, info = env.step(action)
        rewards.append(float(info["is_success"]))
        is_over = terminated or truncated
    simulation = None
    if state_of is not None:
        model = env.get_wrapper_attr("model_xml")()
        following = _stacked([*observations[1:], observation])
        simulation = SimulatedEpisode(np.stack(states), np.array(rewards), following, model)
    return Attempt(_stacked(observations), np.stack(actions), bool(info["is_success"]), simulation)


def _stacked(observations: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.stack([one[key] for one in observations]) for key in observations[0]}
