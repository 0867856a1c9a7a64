"""flowchunk eval: run a policy in simulation and measure it, or compare it with recorded episodes.

usage: flowchunk eval CHECKPOINT [KEY=VALUE ...]
       flowchunk eval CHECKPOINT dataset.path=PATH [KEY=VALUE ...]

  CHECKPOINT                       a run (its best checkpoint, otherwise its last) or a checkpoint
  episodes=100  seed=100000        episode i is reset with seed + i
  nfe=4                            network evaluations per chunk
  solver=NAME                      another solver than the checkpoint's
  noise_scale=1.0                  factor of the initial noise (default: the policy's own)
  n_action_steps=N                 executed actions per chunk (default: the policy's own)
  strategy=synchronous             what is executed while a chunk is predicted: synchronous (nothing),
                                   asynchronous, temporal_ensemble, real_time
  prefix_method=NAME               how real_time continues the old chunk: trained, guided, guided_vjp,
                                   noise_inversion (default: the policy's own)
  delay.steps=0  delay.jitter=0  delay.drop=0.0  delay.seed=0
                                   control steps that a prediction takes, up to so many more, and
                                   the probability that a chunk is lost, in virtual time
  reanchor_steps=0                 fade the jump at a new chunk's start over so many steps
  env.KEY=VALUE  env_id=ID         another environment than in training; MODULE:ID imports the
                                   module that registers it
  num_envs=50  processes=1         environments in parallel, and the processes that step them; the
                                   results do not depend on these
  device=cpu|auto|cuda|cuda:N|mps  where the policy runs and its latency is measured
  video=1                          episodes to record, with predicted chunks and the policy's images
  output_dir=DIR                   default: RUN/eval

without simulation:
  dataset.path=PATH                measure the error of predicted chunks against the recorded ones: of
                                   the episodes that training held out if PATH is its data set,
                                   otherwise of all. nfe (default: 1, 4 and 10), solver, noise_scale,
                                   seed (of the noise), device and output_dir apply
  dataset.sources.KEY=ARRAY        of stores of another layout (default: as in training)

Writes DIR/eval.json and DIR/videos/*.mp4, or DIR/open_loop.json and DIR/open_loop.png, and prints tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
from rich.console import Console
from rich.progress import Progress

from flowchunk.cli.options import read_options, take_checkpoint
from flowchunk.cli.reports import print_table, print_written, table_of, write_report
from flowchunk.cli.selection_seeds import OVERLAP, overlap_warning, overlaps_selection
from flowchunk.datasets.errors import ConfigurationError, SimulationError, SpecMismatchError
from flowchunk.datasets.specs import require_observations, require_same_actions
from flowchunk.envs.checks import check_isolation
from flowchunk.envs.contract import action_spec_of, landmarks_of, observation_spec_of, require_time_limit
from flowchunk.envs.failed_episodes import described
from flowchunk.envs.rollout import Rollout, record_episode, rollout
from flowchunk.envs.simulation import MakeEnv, environment_maker, inherited_options
from flowchunk.envs.video import write_video
from flowchunk.envs.virtual_delay import VirtualDelay
from flowchunk.policy.checkpoint import DESCRIPTION, find_checkpoint, find_run, read_json
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.devices import choose_device
from flowchunk.policy.evaluation.intervals import wilson_interval
from flowchunk.policy.evaluation.latency import latency_ms
from flowchunk.policy.execution.executor import ChunkExecution

ONLY_IN_SIMULATION = ("episodes", "n_action_steps", "num_envs", "processes", "env_id", "env", "video")
ISOLATION_STEPS = 5
VERSIONS = ("flowchunk", "torch", "mujoco", "gymnasium", "numpy")


def run(arguments: list[str]) -> None:
    """Evaluate with command-line arguments."""
    checkpoint, overrides = take_checkpoint("eval", arguments)
    options = read_options("eval", overrides)
    if options["dataset"]["path"] is None:
        evaluate(checkpoint, options)
        return
    given = [override.partition("=")[0] for override in overrides]
    if unused := [name for name in given if name.partition(".")[0] in ONLY_IN_SIMULATION]:
        raise ConfigurationError(
            f"{', '.join(unused)}: with dataset.path the policy is measured on recorded episodes, without simulation; leave "
            "one or the other out"
        )
    from flowchunk.cli.open_loop import evaluate_open_loop

    evaluate_open_loop(checkpoint, options)


def evaluate(checkpoint: str | Path, options: dict[str, Any]) -> Path:
    """Evaluate with the options of ``schemas.EVAL``; returns the path of ``eval.json``."""
    console = Console()
    directory = find_checkpoint(checkpoint)
    evaluation = PolicyEvaluation.load(directory, options, console=console)
    evaluation.policy.with_sampling(nfe=options["nfe"])  # raises for an invalid number before anything runs
    output_dir = Path(options["output_dir"] or find_run(directory) / "eval").expanduser()
    output_dir.mkdir(parents=True, exist_ok=True)

    latency = evaluation.latency_ms(options["nfe"])
    with Progress(console=console) as progress:
        task = progress.add_task(f"evaluating {options['episodes']} episodes", total=options["episodes"])
        result = evaluation.run(nfe=options["nfe"], advance=lambda done: progress.update(task, completed=done))
    report = {
        **evaluation.identity(directory),
        **evaluation.conditions(),
        **summary([asdict(episode) for episode in result.episodes], read_training(directory)),
        "latency_ms": latency,
        "env_steps_per_second": result.env_steps_per_second,
    }
    for video in (output_dir / "videos").glob(video_name("*")):
        video.unlink()  # of an earlier evaluation, whose report is replaced now
    file = output_dir / "eval.json"
    write_report(file, report)
    _print_table(console, report)
    if report[OVERLAP]:
        console.print(overlap_warning(str(directory)), style="yellow", markup=False, soft_wrap=True)
    seeds = range(options["seed"], options["seed"] + min(options["video"], options["episodes"]))
    record_videos(console, evaluation, output_dir / "videos", seeds)
    print_written(console, file)
    return file


@dataclass(frozen=True)
class PolicyEvaluation:
    """A policy, the environment that it is evaluated in, and the options of ``schemas.EVAL`` or ``schemas.SWEEP``.

    env: the arguments that the environment is made with, inherited ones included.
    """

    policy: ChunkPolicy
    make_env: MakeEnv
    execution: ChunkExecution
    env_id: str
    env: Mapping[str, Any]
    task: str | None
    options: Mapping[str, Any]

    @classmethod
    def load(cls, directory: Path, options: Mapping[str, Any], *, console: Console) -> Self:
        """The policy of a checkpoint in the environment of its training, or in the one that the options name.

        Arguments of the training environment are inherited; those that another environment does not take are printed.
        Raises ConfigurationError for options that cannot be used, SpecMismatchError if policy and environment do not fit
        together.
        """
        policy = load_policy(directory, options)
        training = read_training(directory)
        env_id = options["env_id"] or training.get("env_id")
        if env_id is None:
            raise ConfigurationError(
                f"{directory} does not say which environment it is for; give env_id=…, or dataset.path=… of recordings"
            )
        for name in ("episodes", "num_envs", "processes"):
            if options[name] < 1:
                raise ConfigurationError(f"{name}={options[name]} must be at least 1")
        env = _env_arguments(env_id, options["env"], training, console)
        make_env = environment_maker(env_id, env)
        policy = _at_landmarks(policy, _check_env(policy, make_env, env_id))
        _warn_if_not_isolated(make_env, env_id, console)
        execution = _execution(policy, options)
        return cls(policy, make_env, execution, env_id, env, training.get("task"), options)

    def run(self, *, nfe: int | None, advance: Callable[[int], None] = lambda done: None) -> Rollout:
        """Run the episodes. advance: called with the number of finished episodes."""
        return rollout(
            self.policy,
            self.make_env,
            self.execution,
            episodes=self.options["episodes"],
            seed=self.options["seed"],
            nfe=nfe,
            num_envs=self.options["num_envs"],
            processes=self.options["processes"],
            delay=VirtualDelay(**self.options["delay"]),
            advance=advance,
        )

    def latency_ms(self, nfe: int | None) -> dict[str, float]:
        """Milliseconds to predict one chunk at batch size 1, as percentiles."""
        env = self.make_env()
        observation, _ = env.reset(seed=0)
        env.close()
        steps = self.execution.observation_steps
        batch = {key: np.stack([value] * steps)[None] for key, value in observation.items()}
        return latency_ms(lambda seed: self.policy.predict_chunk(batch, nfe=nfe, seed=seed))

    def identity(self, directory: Path) -> dict[str, Any]:
        """What was evaluated, and on which episodes. directory: of the checkpoint."""
        sampling = self.policy.config.sampling.with_given(nfe=self.options["nfe"])
        return {
            "checkpoint": str(directory),
            "step": read_training(directory).get("step"),
            "seed": self.options["seed"],
            "nfe": self.policy.model.resolve_nfe(sampling),
        }

    def conditions(self) -> dict[str, Any]:
        """Everything that the results depend on besides the checkpoint, the seed and nfe."""
        return {
            "task": self.task,
            "env_id": self.env_id,
            "env": dict(self.env),
            "solver": self.policy.objective.solver_name(self.policy.config.sampling),
            "noise_scale": self.policy.config.sampling.noise_scale,
            "n_action_steps": self.execution.n_action_steps,
            "strategy": self.execution.strategy,
            "prefix_method": self.policy.config.sampling.prefix_method,
            "reanchor_steps": self.execution.reanchor_steps,
            "delay": dict(self.options["delay"]),
            "num_envs": min(self.options["num_envs"], self.options["episodes"]),
            "processes": self.options["processes"],
            "device": str(self.policy.model.device),
            "versions": {name: version(name) for name in VERSIONS},
        }


def _execution(policy: ChunkPolicy, options: Mapping[str, Any]) -> ChunkExecution:
    """How the chunks are executed: as the policy was made to, but for the options that are given."""
    changes = {
        name: options[name] for name in ("n_action_steps", "strategy", "reanchor_steps") if options[name] is not None
    }
    return replace(policy.execution, **changes, delay=options["delay"]["steps"])


def load_policy(directory: Path, options: Mapping[str, Any]) -> ChunkPolicy:
    """The policy of a checkpoint with the options' device, and those of sampling that are given. Raises CheckpointError."""
    policy = ChunkPolicy.load(directory, device=choose_device(options["device"]))
    names = ("solver", "noise_scale", "prefix_method")
    changes = {name: options[name] for name in names if options.get(name) is not None}
    return policy.with_sampling(**changes)


def _env_arguments(
    env_id: str, given: Mapping[str, Any], training: Mapping[str, Any], console: Console
) -> dict[str, Any]:
    """The arguments of training, as far as the environment takes them, and those given instead of them."""
    trained = training.get("env", {})
    inherited = trained if env_id == training.get("env_id") else inherited_options(env_id, trained)
    env = {**inherited, **given}
    if dropped := {name: value for name, value in trained.items() if name not in env}:
        listed = ", ".join(f"env.{name}={value}" for name, value in dropped.items())
        console.print(
            f"{env_id} takes no {listed} (given in training), or sets it itself",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )
    return env


def summary(episodes: Sequence[Mapping[str, Any]], training: Mapping[str, Any]) -> dict[str, Any]:
    """Everything in a report that follows from its episodes. training: of the checkpoint, ``read_training``."""
    successes = sum(episode["success"] for episode in episodes)
    return {
        "episodes": list(episodes),
        "score_mean": float(np.mean([episode["score"] for episode in episodes])),
        "success_rate": successes / len(episodes),
        "success_ci95": list(wilson_interval(successes, len(episodes))),
        OVERLAP: overlaps_selection(training, [episode["seed"] for episode in episodes]),
    }


def read_training(directory: Path) -> dict[str, Any]:
    """What a checkpoint says about its training. Raises CheckpointError if it cannot be read."""
    return dict(read_json(directory / DESCRIPTION)["training"])


def _at_landmarks(policy: ChunkPolicy, poses: Mapping[str, Sequence[float]]) -> ChunkPolicy:
    """The policy with the landmarks of its frame where the environment has them, which may be elsewhere than in training."""
    known = {} if policy.frame is None else policy.frame.landmarks
    return policy.with_landmarks({name: pose for name, pose in poses.items() if name in known}) if known else policy


def _check_env(policy: ChunkPolicy, make_env: MakeEnv, env_id: str) -> dict[str, tuple[float, ...]]:
    """The environment's landmarks. Raises SpecMismatchError if policy and environment do not fit together."""
    env = make_env()
    try:
        require_time_limit(env)
        actions, observations = action_spec_of(env), observation_spec_of(env)
        landmarks = landmarks_of(env)
    finally:
        env.close()
    try:
        require_same_actions(policy.action_spec, actions, expected_by="the policy", got_from=env_id)
    except SpecMismatchError as error:
        raise SpecMismatchError(
            f"{error}; evaluate in an environment with the robot and the actions that it was trained for"
        ) from error
    try:
        require_observations(policy.observation_spec, observations, expected_by="the policy", got_from=env_id)
    except SpecMismatchError as error:
        raise SpecMismatchError(
            f"{error}; change the environment by env.KEY=VALUE, for example env.observation=image"
        ) from error
    return landmarks


def _warn_if_not_isolated(make_env: MakeEnv, env_id: str, console: Console) -> None:
    """Say if an episode depends on the one before it, so that results would depend on how many run in parallel."""
    try:
        check_isolation(make_env, steps=ISOLATION_STEPS)
    except SimulationError as error:
        console.print(f"warning: {env_id}: {error}", style="yellow", markup=False, soft_wrap=True)
    except Exception:  # whatever an environment raises: episodes that fail are counted and reported
        return


def video_name(seed: int | str) -> str:
    """The name of an episode's video, and with "*" the pattern of all."""
    return f"episode_{seed}.mp4"


def record_videos(console: Console, evaluation: PolicyEvaluation, folder: Path, seeds: Iterable[int]) -> None:
    """Run the episodes of these seeds again, and write ``FOLDER/episode_SEED.mp4``; prints why it cannot."""
    options, policy = evaluation.options, evaluation.policy
    for seed in seeds:
        frames = record_episode(
            policy,
            partial(evaluation.make_env, render_mode="rgb_array"),
            evaluation.execution,
            seed=seed,
            nfe=options["nfe"],
            observation_spec=policy.observation_spec,
            delay=VirtualDelay(**options["delay"]),
        )
        try:
            write_video(folder / video_name(seed), frames, fps=policy.action_spec.control_hz)
        except Exception as error:  # whatever an environment raises that cannot render
            console.print(f"no video: {described(error)}", style="yellow", markup=False, soft_wrap=True)
            return
        print_written(console, folder / video_name(seed))


def _print_table(console: Console, report: Mapping[str, Any]) -> None:
    title = f"{report['env_id']}, {len(report['episodes'])} episodes from seed {report['seed']}"
    table = table_of("measure", "value")
    (low, high), latency = report["success_ci95"], report["latency_ms"]
    for name, value in report["env"].items():
        table.add_row(f"env.{name}", str(value))
    table.add_row("nfe", str(report["nfe"]))
    table.add_row("n_action_steps", str(report["n_action_steps"]))
    if report["strategy"] != "synchronous" or report["delay"]["steps"]:
        table.add_row("strategy", f"{report['strategy']}, delay {report['delay']['steps']} control steps")
    table.add_row("score", f"{report['score_mean']:.3f}")
    table.add_row("success", f"{report['success_rate']:.3f}")
    table.add_row("95 % interval", f"{low:.3f} to {high:.3f}")
    table.add_row("latency p50 / p95", f"{latency['p50']:.1f} / {latency['p95']:.1f} ms")
    table.add_row("env steps / s", f"{report['env_steps_per_second']:,.0f}")
    print_table(console, title, table)
