"""flowchunk eval: run a policy in simulation and measure it.

usage: flowchunk eval CHECKPOINT [KEY=VALUE ...]

  CHECKPOINT                       a run directory (its best, else last) or a checkpoint directory
  episodes=100  seed=100000        episode i is reset with seed + i
  nfe=4                            network evaluations a chunk
  solver=NAME                      another way through the same field than the checkpoint's
  n_action_steps=N                 actions executed before looking again (default: the policy's own)
  env.KEY=VALUE  env_id=ID         another environment than in training
  video=1                          episodes to film: eight predicted chunks drawn in, and what the policy sees
  num_envs=50  workers=false       environments side by side; a process for each
  output_dir=DIR                   default: RUN/eval

writes DIR/eval.json and DIR/videos/*.mp4, and prints a table.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from flowchunk.cli.latency import latency_ms
from flowchunk.cli.options import read_options
from flowchunk.cli.simulation import MakeEnv, environment_maker, execution_of
from flowchunk.datasets.errors import ConfigurationError, SimulationError, SpecMismatchError
from flowchunk.datasets.specs import require_observations, require_same_actions
from flowchunk.envs.rollout import ChunkExecution, Rollout, record_episode, rollout
from flowchunk.envs.video import write_video
from flowchunk.policy.checkpoint import find_checkpoint, read_json, run_of
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.evaluation.intervals import wilson_interval

VERSIONS = ("flowchunk", "torch", "mujoco", "gymnasium", "numpy")


def run(arguments: list[str]) -> None:
    """Evaluate as the arguments say."""
    if not arguments or "=" in arguments[0]:
        raise ConfigurationError("give the checkpoint first: flowchunk eval CHECKPOINT [KEY=VALUE ...]")
    evaluate(arguments[0], read_options("eval", arguments[1:]))


def evaluate(checkpoint: str | Path, options: dict[str, Any]) -> Path:
    """Evaluate with the options of ``configs/eval.yaml``; returns the path of ``eval.json``."""
    console = Console()
    directory = find_checkpoint(checkpoint)
    setting = set_up(directory, options)
    policy, make_env, execution = setting.policy, setting.make_env, setting.execution
    policy.times(options["nfe"])  # refuse what the policy does not admit before anything is run
    output_dir = Path(options["output_dir"] or run_of(directory) / "eval").expanduser()
    output_dir.mkdir(parents=True, exist_ok=True)

    latency = setting.latency_ms(options["nfe"])
    with Progress(console=console) as progress:
        task = progress.add_task(f"evaluating {options['episodes']} episodes", total=options["episodes"])
        result = setting.roll_out(
            options, nfe=options["nfe"], advance=lambda done: progress.update(task, completed=done)
        )
    report = {
        "task": setting.task,
        "env_id": setting.env_id,
        "checkpoint": str(directory),
        "seed": options["seed"],
        "nfe": _nfe(policy, options["nfe"]),
        "n_action_steps": execution.n_action_steps,
        "num_envs": options["num_envs"],
        "versions": {name: version(name) for name in VERSIONS},
        **_outcome(result),
        "latency_ms": latency,
        "env_steps_per_second": result.env_steps_per_second,
    }
    file = output_dir / "eval.json"
    file.write_text(json.dumps(report, indent=1))
    _print_table(console, report)
    _film(console, policy, make_env, execution, options, output_dir)
    console.print(f"written: {file}")
    return file


@dataclass(frozen=True)
class Setting:
    """A policy, and the environment that it is evaluated in."""

    policy: ChunkPolicy
    make_env: MakeEnv
    execution: ChunkExecution
    env_id: str
    task: str | None

    def roll_out(self, options: Mapping[str, Any], *, nfe: int | None, advance: Callable[[int], None]) -> Rollout:
        """Episodes as the options say."""
        return rollout(
            self.policy,
            self.make_env,
            self.execution,
            episodes=options["episodes"],
            seed=options["seed"],
            nfe=nfe,
            num_envs=options["num_envs"],
            workers=options["workers"],
            advance=advance,
        )

    def latency_ms(self, nfe: int | None) -> dict[str, float]:
        """Time of one chunk at batch 1."""
        env = self.make_env()
        observation, _ = env.reset(seed=0)
        env.close()
        steps = self.execution.observation_steps
        batch = {key: np.stack([value] * steps)[None] for key, value in observation.items()}
        return latency_ms(lambda number: self.policy.predict_chunk(batch, nfe=nfe, seed=number))


def set_up(directory: Path, options: Mapping[str, Any]) -> Setting:
    """The policy of a checkpoint in its environment, or in the one that the options name. Raises ConfigurationError."""
    policy = ChunkPolicy.load(directory)
    if options["solver"] is not None:
        policy = policy.with_solver(options["solver"])
    training = read_json(directory / "checkpoint.json")["training"]
    env_id = options["env_id"] or training.get("env_id")
    if env_id is None:
        raise ConfigurationError(f"{directory} does not say which environment it is for; give env_id=…")
    for name in ("episodes", "num_envs"):
        if options[name] < 1:
            raise ConfigurationError(f"{name}={options[name]} must be at least 1")
    inherited = training["env"] if env_id == training.get("env_id") else {}
    make_env = environment_maker(env_id, {**inherited, **options["env"]})
    _check_env(policy, make_env, env_id)
    execution = execution_of(policy.config, n_action_steps=options["n_action_steps"])
    return Setting(policy, make_env, execution, env_id, training.get("task"))


def _outcome(result: Rollout) -> dict[str, Any]:
    return {
        "episodes": [
            {"seed": episode.seed, "score": episode.score, "success": episode.success, "steps": episode.steps}
            for episode in result.episodes
        ],
        "score_mean": result.score_mean,
        "success_rate": result.success_rate,
        "success_ci95": list(wilson_interval(result.successes, len(result.episodes))),
    }


def _nfe(policy: ChunkPolicy, nfe: int | None) -> int:
    return nfe if nfe is not None else (policy.valid_nfe or (4,))[0]


def _check_env(policy: ChunkPolicy, make_env: MakeEnv, env_id: str) -> None:
    env = make_env()
    try:
        ours, theirs = policy.observation_spec, env.get_wrapper_attr("observation_spec")
        require_observations(ours, theirs, expected_by="the policy", got_from=env_id)
        theirs = env.get_wrapper_attr("action_spec")
        require_same_actions(policy.action_spec, theirs, expected_by="the policy", got_from=env_id)
    except SpecMismatchError as error:
        raise SpecMismatchError(f"{error}; env.KEY=VALUE, as env.observation=image, makes it another") from error
    finally:
        env.close()


def _film(
    console: Console,
    policy: ChunkPolicy,
    make_env: MakeEnv,
    execution: ChunkExecution,
    options: dict[str, Any],
    output_dir: Path,
) -> None:
    for number in range(options["video"]):
        seed = options["seed"] + number
        try:
            frames = record_episode(
                policy,
                lambda: make_env(render_mode="rgb_array"),
                execution,
                seed=seed,
                nfe=options["nfe"],
                observation_spec=policy.observation_spec,
            )
        except SimulationError as error:
            console.print(f"no video: {error}", style="yellow")
            return
        file = output_dir / "videos" / f"episode_{seed}.mp4"
        write_video(file, frames, fps=policy.action_spec.control_hz)
        console.print(f"written: {file}")


def _print_table(console: Console, report: dict[str, Any]) -> None:
    table = Table(title=f"{report['env_id']}, {len(report['episodes'])} episodes from seed {report['seed']}")
    for column in ("nfe", "n_action_steps", "score", "success", "95 % interval", "latency p50 / p95", "env steps / s"):
        table.add_column(column, justify="right")
    low, high = report["success_ci95"]
    table.add_row(
        str(report["nfe"]),
        str(report["n_action_steps"]),
        f"{report['score_mean']:.3f}",
        f"{report['success_rate']:.3f}",
        f"{low:.3f} to {high:.3f}",
        f"{report['latency_ms']['p50']:.1f} / {report['latency_ms']['p95']:.1f} ms",
        f"{report['env_steps_per_second']:,.0f}",
    )
    console.print(table)
