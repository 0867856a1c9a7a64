"""flowchunk train: learn a policy from demonstrations.

usage: flowchunk train task=TASK dataset.path=PATH [KEY=VALUE ...]

  task=pusht_state|pusht_keypoints|pickplace_state
  dataset.path=PATH                a zarr store: ours (flowchunk collect) or diffusion_policy's
  network=mlp|mixer|dit|unet1d|gru [network.width=512 ...]
  training.steps=10000  training.batch_size=256  training.learning_rate=5e-4
  training.checkpoint_every=1000  training.log_every=100  training.evaluate_every=STEPS
  training.resume=true             go on from the last checkpoint in output_dir, bit for bit
  training.init_from=CHECKPOINT    fine-tune; network, specs and normaliser are the checkpoint's
  policy.horizon=16  policy.n_action_steps=8  policy.observation_steps=2
  evaluation.episodes=50           in simulation; the mean of score and success rate chooses `best` (0: the validation loss)
  env.KEY=VALUE                    an argument of the environment; eval inherits it
  seed=0  device=auto|cpu  output_dir=DIR  logging.wandb=true

writes DIR/checkpoints/{last,best}, DIR/metrics.jsonl, DIR/config.yaml, DIR/loss.png, DIR/tensorboard.
Two processes on a CPU: torchrun --nproc-per-node 2 --no-python flowchunk train ... output_dir=DIR device=cpu
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from omegaconf import OmegaConf
from rich.console import Console

from flowchunk.cli.options import fill, read_options, to_yaml
from flowchunk.cli.plots import plot_loss
from flowchunk.cli.simulation import MakeEnv, environment_maker, execution_of
from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.specs import ActionSpec, ObservationSpec, require_observations, require_same_actions
from flowchunk.datasets.store import Store
from flowchunk.datasets.symmetry import Symmetry
from flowchunk.datasets.windows import Windows, load_windows, split_episodes
from flowchunk.envs.rollout import rollout
from flowchunk.policy.chunk_policy import ACTION, KIND, ChunkPolicy, PolicyConfig
from flowchunk.policy.normalizer import Normalizer, Scaling
from flowchunk.policy.relative_actions import check_relative_to, relative_chunks
from flowchunk.policy.train import Trainer, TrainingConfig, seeded


def run(arguments: list[str]) -> None:
    """Train as the arguments say."""
    options = read_options("train", arguments)
    options["output_dir"] = str(options["output_dir"] or _default_output_dir(options))
    train(options)


def train(options: dict[str, Any]) -> Path:
    """Train with the options of ``configs/train.yaml``; returns the run's directory."""
    _check_ranges(options)
    accelerator = Accelerator(cpu=options["device"] == "cpu")
    console = Console(quiet=not accelerator.is_main_process)
    run_dir = Path(options["output_dir"]).expanduser()
    resume = _check_run(run_dir, options)
    _set_matmul_precision(options["training"]["matmul_precision"])
    make_env = environment_maker(options["task"]["env_id"], options["env"])
    policy, windows, validation = _policy_and_data(options, make_env, accelerator.device)
    if options["evaluation"]["episodes"]:
        policy.times(options["evaluation"]["nfe"])  # refuse what the policy does not admit before it is trained
    training = fill(TrainingConfig, {**options["training"], "seed": options["seed"]}, section="training")
    trainer = Trainer(
        policy,
        windows,
        training,
        output_dir=run_dir,
        accelerator=accelerator,
        evaluate=_evaluation(options, make_env) if options["evaluation"]["episodes"] else None,
        validation=validation,
        wandb=options["logging"]["wandb"],
        remember={"task": options["task"]["name"], "env_id": options["task"]["env_id"], "env": options["env"]},
    )
    if resume:
        trainer.resume(kind=KIND)
        console.print(f"resuming from step {trainer.step}")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.yaml").write_text(to_yaml(options))
    _print_plan(console, trainer, policy, windows, validation)
    trainer.run()
    if accelerator.is_main_process:
        plot_loss(run_dir)
    console.print(f"done: {run_dir}/checkpoints/best, {run_dir}/metrics.jsonl, {run_dir}/loss.png")
    return run_dir


def _set_matmul_precision(precision: str) -> None:
    try:
        torch.set_float32_matmul_precision(precision)
    except RuntimeError as error:
        raise ConfigurationError(f"training.matmul_precision={precision} must be highest, high or medium") from error


def _policy_and_data(
    options: Mapping[str, Any], make_env: MakeEnv, device: torch.device
) -> tuple[ChunkPolicy, Windows, Windows]:
    dataset, init_from = options["dataset"], options["training"]["init_from"]
    store = Store.open(dataset["path"], sources=dataset["sources"])
    observation_spec, action_spec = _specs(store, make_env)
    if init_from is not None:
        policy = ChunkPolicy.load(init_from).train()
        require_observations(
            policy.observation_spec, observation_spec, expected_by=str(init_from), got_from=str(store.path)
        )
        require_same_actions(policy.action_spec, action_spec, expected_by=str(init_from), got_from=str(store.path))
        config = policy.config
    else:
        network = dict(options["network"])
        config = fill(
            PolicyConfig,
            {**options["policy"], "network": network.pop("name"), "network_options": network},
            section="policy",
        )
    train_episodes, validation_episodes = split_episodes(
        len(store.episode_ends), validation_fraction=dataset["validation_fraction"], seed=options["seed"]
    )
    symmetry = _symmetry(dataset["symmetry"], observation_spec, action_spec)
    windows, validation = (
        load_windows(
            store,
            observation_spec,
            action_spec,
            episodes=episodes,
            observation_steps=config.observation_steps,
            horizon=config.horizon,
            symmetry=symmetry,
            device=device,
        )
        for episodes in (train_episodes, validation_episodes)
    )
    if init_from is None:
        normalizer = fit_normalizer(store, observation_spec, dataset["normalizer"], symmetry)
        if config.relative_to is not None:
            check_relative_to(config.relative_to, observation_spec, action_spec.size)
            chunks = relative_chunks(windows, config.relative_to)
            normalizer = normalizer.with_scaling(ACTION, Scaling.fit("gaussian", chunks))
        torch.manual_seed(options["seed"])
        policy = ChunkPolicy(config, observation_spec, action_spec, normalizer)
    return policy, windows, validation


def fit_normalizer(
    store: Store, observation_spec: ObservationSpec, modes: Mapping[str, Any], symmetry: Symmetry | None = None
) -> Normalizer:
    """Fit every key in one pass over the store, and over its image in the symmetry.

    Raises ConfigurationError where ``modes`` names a key that is not there.
    """
    wraps = {key: field.wraps for key, field in observation_spec.fields.items()} | {ACTION: ()}
    if unknown := modes.keys() - wraps.keys():
        raise ConfigurationError(f"dataset.normalizer names {sorted(unknown)}, but the keys are {sorted(wraps)}")

    def fit(key: str) -> Scaling:
        blocks = store.blocks(key) if symmetry is None else symmetry.both(key, store.blocks(key))
        return Scaling.fit(modes.get(key, "min_max"), blocks, identity=wraps[key])

    return Normalizer({key: fit(key) for key in wraps})


def _symmetry(
    options: Mapping[str, Any], observation_spec: ObservationSpec, action_spec: ActionSpec
) -> Symmetry | None:
    if not options:
        return None
    sizes = {key: field.size for key, field in observation_spec.fields.items()} | {ACTION: action_spec.size}
    return Symmetry.from_options(options, sizes)


def _specs(store: Store, make_env: MakeEnv) -> tuple[ObservationSpec, ActionSpec]:
    env = make_env()
    try:
        observation_spec: ObservationSpec = env.get_wrapper_attr("observation_spec")
        action_spec: ActionSpec = env.get_wrapper_attr("action_spec")
    finally:
        env.close()
    if store.observation_spec is not None and store.action_spec is not None:
        require_same_actions(action_spec, store.action_spec, expected_by="the environment", got_from=str(store.path))
        require_observations(
            observation_spec, store.observation_spec, expected_by="the environment", got_from=str(store.path)
        )
    return observation_spec, action_spec


def _evaluation(options: Mapping[str, Any], make_env: MakeEnv) -> Callable[[ChunkPolicy], dict[str, float]]:
    settings = options["evaluation"]

    def evaluate(policy: ChunkPolicy) -> dict[str, float]:
        result = rollout(
            policy,
            make_env,
            execution_of(policy.config),
            episodes=settings["episodes"],
            seed=settings["seed"],
            nfe=settings["nfe"],
        )
        both = (result.score_mean + result.success_rate) / 2  # either alone is noisy in so few episodes
        return {"score": both, "score_mean": result.score_mean, "success_rate": result.success_rate}

    return evaluate


def _check_ranges(options: Mapping[str, Any]) -> None:
    if options["device"] not in ("auto", "cpu"):
        raise ConfigurationError(f"unknown device {options['device']!r}; there are auto, cpu")
    if not 0 <= (fraction := options["dataset"]["validation_fraction"]) < 1:
        raise ConfigurationError(f"dataset.validation_fraction={fraction} must be at least 0 and below 1")
    if (episodes := options["evaluation"]["episodes"]) < 0:
        raise ConfigurationError(f"evaluation.episodes={episodes} must be at least 0")


def _check_run(run_dir: Path, options: Mapping[str, Any]) -> bool:
    """Whether to resume. Raises ConfigurationError where a run is in the way, or is not the one to resume."""
    saved = run_dir / "config.yaml"
    if not saved.exists():
        return False
    if not options["training"]["resume"]:
        raise ConfigurationError(
            f"{run_dir} holds a training run; add training.resume=true to continue it, or choose another output_dir"
        )
    before, now = _comparable(OmegaConf.to_container(OmegaConf.load(saved))), _comparable(options)
    if different := sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key)):
        changes = ", ".join(f"{key}: {before.get(key)} then, {now.get(key)} now" for key in different)
        raise ConfigurationError(f"{run_dir} was started with other options ({changes}); resume it with the same ones")
    return (run_dir / "checkpoints" / "last").exists() or (run_dir / "checkpoints" / ".last.previous").exists()


def _comparable(options: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in options.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= _comparable(value, f"{path}.")
        elif path not in ("output_dir", "training.resume", "logging.wandb"):
            flat[path] = value
    return flat


def _print_plan(console: Console, trainer: Trainer, policy: ChunkPolicy, windows: Windows, validation: Windows) -> None:
    steps = trainer.config.steps - trainer.step
    seconds = _seconds_a_step(trainer) * steps
    parameters = sum(parameter.numel() for parameter in policy.parameters())
    held = (windows.nbytes + validation.nbytes + 5 * 4 * parameters) / 2**20
    console.print(
        f"{policy.config.network} with {parameters / 1e6:.2f} M parameters, {len(windows):,} windows to train on and "
        f"{len(validation):,} to validate, {held:,.0f} MiB of data, weights and optimiser on {trainer.accelerator.device};\n"
        f"{steps:,} steps of {trainer.config.batch_size}: about {seconds / 60:.1f} minutes without evaluations"
    )


def _seconds_a_step(trainer: Trainer, *, steps: int = 3) -> float:
    """Time a few steps on a copy, which leaves the run as it was."""
    model = copy.deepcopy(trainer.module)
    size = trainer.config.batch_size // trainer.accelerator.num_processes
    device = trainer.accelerator.device
    batch = trainer.data.batch(torch.arange(size, device=device) % len(trainer.data))
    draws = {name: values.to(device) for name, values in model.draw(size, seeded(0, 0)).items()}
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    started = time.perf_counter()
    for step in range(steps + 1):
        total, weight = model(batch, draws)
        (total / weight).backward()
        optimizer.step()
        optimizer.zero_grad()
        started = time.perf_counter() if step == 0 else started
    return (time.perf_counter() - started) / steps


def _default_output_dir(options: Mapping[str, Any]) -> Path:
    if options["training"]["resume"]:
        raise ConfigurationError("training.resume=true needs output_dir=DIR, the run to continue")
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return Path("outputs") / f"{options['task']['name']}-{options['network']['name']}-{now}"
