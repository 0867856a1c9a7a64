"""flowchunk data replay: what share of a data set's demonstrations still succeeds in simulation, open loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from rich.console import Console
from rich.progress import Progress

from flowchunk.cli.options import read_options
from flowchunk.cli.own_data import open_source
from flowchunk.cli.reports import print_table, print_written, table_of, write_report
from flowchunk.cli.train import task_specs
from flowchunk.datasets.episode_source import ACTION, EpisodeSource
from flowchunk.datasets.errors import ConfigurationError, SimulationError
from flowchunk.datasets.formats import HDF5
from flowchunk.envs.contract import require_outcome
from flowchunk.envs.simulation import environment_maker
from flowchunk.policy.evaluation.intervals import wilson_interval

USAGE = "flowchunk data replay PATH task=TASK|env_id=ID [episodes=N] [output_dir=DIR] [KEY=VALUE ...]"
START_OPTIONS = "start_options"
ROBOMIMIC = "flowchunk/Robomimic-v1"
UNUSED_SEED = 0  # whatever a reset samples is replaced by the demonstration's start


@dataclass(frozen=True)
class Replay:
    """A demonstration in simulation. steps: of the simulation, at most recorded_steps. error: what ended it, if anything."""

    episode: int
    success: bool
    score: float
    steps: int
    recorded_steps: int
    error: str | None = None


def replay_dataset(arguments: list[str]) -> Path:
    """Replay with command-line arguments, which ``flowchunk.cli.data`` documents; returns the path of ``replay.json``."""
    paths = [argument for argument in arguments if "=" not in argument]
    if len(paths) != 1 or paths[0].startswith("-"):
        raise ConfigurationError(f"usage: {USAGE}")
    options = read_options("replay", [argument for argument in arguments if "=" in argument])
    options["dataset"]["path"] = paths[0]
    env_id = options["env_id"] or options["task"]["env_id"]
    if env_id is None:
        raise ConfigurationError("the simulation must be chosen: task=TASK, or env_id=ID of an environment")
    if options["episodes"] is not None and options["episodes"] < 1:
        raise ConfigurationError(f"episodes={options['episodes']} must be at least 1")
    env_options = _env_options(env_id, options["env"], Path(paths[0]))
    source, make_env, console = open_source(options), environment_maker(env_id, env_options), Console()
    task_specs(source, make_env, options)  # raises if data and environment do not fit together
    env = make_env()
    try:
        episodes = min(options["episodes"] or len(source.episode_ends), len(source.episode_ends))
        with Progress(console=console) as progress:
            task = progress.add_task(f"replaying {episodes} demonstrations", total=episodes)
            replays = []
            for result in replay_episodes(env, source, episodes):
                replays.append(result)
                progress.update(task, completed=len(replays))
    finally:
        env.close()
    output_dir = Path(options["output_dir"] or f"outputs/replay-{source.path.stem}").expanduser()
    output_dir.mkdir(parents=True, exist_ok=True)
    file = output_dir / "replay.json"
    report = {"path": str(source.path), "env_id": env_id, "env": env_options, **summary(replays)}
    write_report(file, report)
    _print(console, report)
    print_written(console, file)
    return file


def replay_episodes(env: gymnasium.Env[Any, Any], source: EpisodeSource, episodes: int) -> Iterator[Replay]:
    """Replay the first episodes of a data set: each starts where the demonstration did, and takes its actions.

    Raises SimulationError if the environment cannot start there, ConfigurationError or DatasetError if the data do not say
    where that is. An environment that fails later only ends that episode.
    """
    if not env.has_wrapper_attr(START_OPTIONS):
        raise SimulationError(
            f"expected {env} to have {START_OPTIONS}, got none, so it cannot start where a demonstration did; give it "
            f"{START_OPTIONS}(source, episode), which returns the options of reset for that"
        )
    source.require_shape(ACTION, env.action_space.shape or ())
    start_options = env.get_wrapper_attr(START_OPTIONS)
    for episode, (first, last) in enumerate(
        zip(source.episode_starts[:episodes], source.episode_ends[:episodes], strict=True)
    ):
        _, info = env.reset(seed=UNUSED_SEED, options=start_options(source, episode))
        yield _run(env, source.read(ACTION, int(first), int(last)), info, episode)


def _run(env: gymnasium.Env[Any, Any], actions: np.ndarray, info: Mapping[str, Any], episode: int) -> Replay:
    """Take the actions until success; a time limit does not count, because demonstrations may be longer."""
    steps, error = 0, None
    for action in actions:
        try:
            _, _, terminated, _, info = env.step(action)
        except SimulationError as failure:
            error = str(failure)
            break
        steps += 1
        if terminated:
            break
    require_outcome(info)
    return Replay(episode, bool(info["is_success"]), float(info["score"]), steps, len(actions), error)


def summary(replays: list[Replay]) -> dict[str, Any]:
    """What follows from the replays."""
    successes = sum(replay.success for replay in replays)
    return {
        "success_rate": successes / len(replays),
        "success_ci95": list(wilson_interval(successes, len(replays))),
        "score_mean": float(np.mean([replay.score for replay in replays])),
        "errors": sum(replay.error is not None for replay in replays),
        "episodes": [asdict(replay) for replay in replays],
    }


def _env_options(env_id: str, given: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The environment's arguments; that of robomimic is made as the data's was."""
    if env_id == ROBOMIMIC and path.suffix in HDF5:
        return {"path": str(path), **given}
    return dict(given)


def _print(console: Console, report: Mapping[str, Any]) -> None:
    table = table_of("measure", "value")
    low, high = report["success_ci95"]
    table.add_row("success", f"{report['success_rate']:.3f}")
    table.add_row("95 % interval", f"{low:.3f} to {high:.3f}")
    table.add_row("score", f"{report['score_mean']:.3f}")
    if report["errors"]:
        table.add_row("ended by an error", str(report["errors"]))
    title = f"{report['path']}: {len(report['episodes'])} demonstrations replayed open loop in {report['env_id']}"
    print_table(console, title, table)
