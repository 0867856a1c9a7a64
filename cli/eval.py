"""flowchunk eval: run a policy in simulation and measure it.

usage: flowchunk eval CHECKPOINT [KEY=VALUE ...]

  CHECKPOINT                       a run directory (its best, else last) or a checkpoint directory
  episodes=100  seed=100000        episode i is reset with seed + i
  nfe=4                            network evaluations a chunk
  n_action_steps=N                 actions executed before looking again (default: the policy's own)
  env.KEY=VALUE  env_id=ID         another environment than in training
  video=1                          episodes to film, with the predicted chunks drawn in
  num_envs=50  workers=false       environments side by side; a process for each
  output_dir=DIR                   default: RUN/eval

writes DIR/eval.json and DIR/videos/*.mp4, and prints a table.
"""

from __future__ import annotations

import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from flowchunk.cli.options import read_options
from flowchunk.cli.simulation import MakeEnv, environment_maker, execution_of
from flowchunk.datasets.errors import ConfigurationError, SimulationError
from flowchunk.datasets.specs import require_observations, require_same_actions
from flowchunk.envs.rollout import ChunkExecution, Rollout, record_episode, rollout
from flowchunk.envs.video import write_video
from flowchunk.policy.checkpoint import find_checkpoint, read_json
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
    policy = ChunkPolicy.load(directory)
    policy.times(options["nfe"])  # refuse what the policy does not admit before anything is run
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
    output_dir = Path(options["output_dir"] or _run_of(directory) / "eval").expanduser()
    output_dir.mkdir(parents=True, exist_ok=True)

    latency = _latency_ms(policy, make_env, execution, nfe=options["nfe"])
    with Progress(console=console) as progress:
        task = progress.add_task(f"evaluating {options['episodes']} episodes", total=options["episodes"])
        result = rollout(
            policy,
            make_env,
            execution,
            episodes=options["episodes"],
            seed=options["seed"],
            nfe=options["nfe"],
            num_envs=options["num_envs"],
            workers=options["workers"],
            advance=lambda done: progress.update(task, completed=done),
        )
    report = {
        "task": training.get("task"),
        "env_id": env_id,
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
    finally:
        env.close()


def _latency_ms(
    policy: ChunkPolicy, make_env: MakeEnv, execution: ChunkExecution, *, nfe: int | None, calls: int = 50
) -> dict[str, float]:
    """Time of one chunk at batch 1 on one thread, where a small network is fastest; the first calls are left out."""
    env = make_env()
    observation, _ = env.reset(seed=0)
    env.close()
    batch = {key: np.stack([value] * execution.observation_steps)[None] for key, value in observation.items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times = []
    for call in range(calls + 10):
        started = time.perf_counter()
        policy.predict_chunk(batch, nfe=nfe, seed=call)
        times.append(1000 * (time.perf_counter() - started))
    torch.set_num_threads(threads)
    return {"p50": float(np.percentile(times[10:], 50)), "p95": float(np.percentile(times[10:], 95))}


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
                policy, lambda: make_env(render_mode="rgb_array"), execution, seed=seed, nfe=options["nfe"]
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


def _run_of(checkpoint: Path) -> Path:
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint
