"""flowchunk train: learn a policy from demonstrations.

usage: flowchunk train task=TASK dataset.path=PATH [KEY=VALUE ...]        a robot's policy
       flowchunk train task=DOMAIN [dataset=NAME] [KEY=VALUE ...]         see below

  task=pusht_state|pusht_keypoints|pusht_image|pickplace_state|pickplace_image
  task=own                         a data set of your own, by the specifications stored in it; no simulation is needed
  dataset.path=PATH                a zarr store: ours (flowchunk collect) or diffusion_policy's
  network=mlp|mixer|dit|unet1d|gru [network.width=512 ...]
  hardware=cpu|gpu                 of the _image tasks: small convolutions, or ResNet-18 in bf16, compiled
  vision=small_conv|resnet18|timm|transformers  vision.crop=[84,84] vision.weights=PATH|NAME vision.shared=true …
  policy.num_noise_samples=4             times each encoded observation is learned from
  dataset.cache=auto|disk|ram|device  dataset.cache_dir=DIR    where pictures are kept
  --skip-corrupt                   leave out episodes with frames that cannot be read, and say which
  training.precision=fp32|bf16  training.compile=true  training.channels_last=true  training.num_micro_batches=PARTS
  training.steps=10000  training.batch_size=256  training.learning_rate=5e-4
  training.checkpoint_every=1000  training.log_every=100  training.evaluate_every=STEPS
  training.resume=true             go on from the last checkpoint in output_dir, bit for bit
  training.init_from=CHECKPOINT    fine-tune; network, specs and normaliser are the checkpoint's; policy.n_action_steps,
                                   mask_padding, prefix_max, num_noise_samples, time_density, solver, … may be others
  objective=flow|noise_prediction|data_prediction|v|posterior|regression|mip|flow_map
  schedule=linear|linear_beta|cosine|sigmoid
  policy.solver=…  policy.time_density=beta|uniform|logit_normal|mode
  policy.horizon=16  policy.n_action_steps=8  policy.observation_steps=2
  evaluation.episodes=50           in simulation; the mean of score and success rate chooses `best` (0: the validation loss)
  evaluation.noise_scale=1.0       what acting multiplies the starting noise by; saved with the policy
  env.KEY=VALUE                    an argument of the environment; eval inherits it
  seed=0  device=auto|cpu  output_dir=DIR  logging.wandb=true

The same loss, sampler and trainer for other data (then: flowchunk generate RUN):
  task=toy2d                       dataset=8gaussians|two_moons|checkerboard|spiral
  task=obstacle|torus              chunks round an obstacle; the inverse kinematics of an arm
  task=images                      dataset=digits|FOLDER|ZIP [size=32] [invert=true] [half=0] [model.augment=true]
  samples=N                        train on so many; model.coupling=ot  model.label_dropout=0.1  model.solver=…

writes DIR/checkpoints/{last,best}, DIR/metrics.jsonl, DIR/config.yaml, DIR/loss.png, DIR/tensorboard.
Two processes on a CPU: torchrun --nproc-per-node 2 --no-python flowchunk train ... output_dir=DIR device=cpu
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowchunk.cli.domains import DOMAINS
from flowchunk.cli.fine_tuning import CHANGEABLE, with_checkpoint
from flowchunk.cli.options import fill, read_options
from flowchunk.cli.simulation import MakeEnv, environment_maker, execution_of
from flowchunk.cli.training_run import TrainingRun, prepare, with_output_dir
from flowchunk.datasets.errors import ConfigurationError, SpecMismatchError
from flowchunk.datasets.image_cache import ImageCacheOptions
from flowchunk.datasets.specs import ActionSpec, ObservationSpec, require_observations, require_same_actions
from flowchunk.datasets.store import Store
from flowchunk.datasets.symmetry import Symmetry
from flowchunk.datasets.windows import (
    ImageTensors,
    Windows,
    load_image_tensors,
    load_windows,
    memory_bytes,
    split_episodes,
)
from flowchunk.envs.contract import action_spec_of, observation_spec_of
from flowchunk.envs.rollout import rollout
from flowchunk.policy.chunk_policy import ACTION, KIND, ChunkPolicy, PolicyConfig
from flowchunk.policy.encoders.observation import check_vision
from flowchunk.policy.encoders.transformers_backbone import architecture_of
from flowchunk.policy.normalizer import Normalizer, Scaling
from flowchunk.policy.relative_actions import check_relative_to, relative_chunks
from flowchunk.policy.sampling import SamplingOptions


def run(arguments: list[str]) -> None:
    """Train as the arguments say."""
    arguments = ["dataset.skip_corrupt=true" if one == "--skip-corrupt" else one for one in arguments]
    task = next((argument.partition("=")[2] for argument in reversed(arguments) if argument.startswith("task=")), None)
    if task in DOMAINS:
        from flowchunk.cli.train_generative import train_generative

        train_generative(with_output_dir(read_options("train_generative", arguments)))
    else:
        given = frozenset(argument.partition("=")[0] for argument in arguments)
        train(with_output_dir(read_options("train", arguments)), given=given)


def train(options: dict[str, Any], *, given: Collection[str] = ()) -> Path:
    """Train with the options of ``configs/train.yaml``; returns the run's directory.

    given: names of the options that somebody asked for, which fine-tuning has to heed or refuse.
    """
    _check_ranges(options)
    if options["training"]["init_from"] is not None:
        options = with_checkpoint(options, given)
    env_id = options["task"]["env_id"]
    make_env = None if env_id is None else environment_maker(env_id, options["env"])
    run = prepare(options)
    policy, windows, validation = _policy_and_data(options, make_env, run)
    evaluates = make_env is not None and options["evaluation"]["episodes"] > 0
    if evaluates:
        policy.with_sampling(nfe=options["evaluation"]["nfe"])  # refuses what does not fit before it is trained
    run.train(
        policy,
        windows,
        kind=KIND,
        described=f"{len(windows):,} windows to train on and {len(validation):,} to validate",
        nbytes=memory_bytes(windows, validation),
        validation=validation,
        evaluate=_evaluation(options, make_env) if make_env is not None and evaluates else None,
        metadata={"env_id": options["task"]["env_id"], "env": options["env"]},
    )
    return run.directory


def _policy_and_data(
    options: Mapping[str, Any], make_env: MakeEnv | None, run: TrainingRun
) -> tuple[ChunkPolicy, Windows, Windows]:
    dataset, init_from = options["dataset"], options["training"]["init_from"]
    store = Store.open(dataset["path"], sources=dataset["sources"])
    observation_spec, action_spec = task_specs(store, make_env)
    if init_from is not None:
        policy = ChunkPolicy.load(init_from).train()
        require_observations(
            policy.observation_spec, observation_spec, expected_by=str(init_from), got_from=str(store.path)
        )
        require_same_actions(policy.action_spec, action_spec, expected_by=str(init_from), got_from=str(store.path))
        changes = {name: options["policy"][name] for name in CHANGEABLE if name in options["policy"]}
        policy = policy.with_options(**changes, sampling=sampling_options(options))
        config = policy.config
    else:
        observation_spec = observation_spec.cropped(_crop(options["vision"]))
        config = policy_config(options, observation_spec)
    symmetry = _symmetry(dataset["symmetry"], observation_spec, action_spec, make_env)
    pictures = _pictures(store, observation_spec, dataset, run)
    usable = np.delete(np.arange(len(store.episode_ends)), [] if pictures is None else list(pictures.cache.dropped))
    chosen = split_episodes(len(usable), validation_fraction=dataset["validation_fraction"], seed=options["seed"])
    windows, validation = (
        load_windows(
            store,
            observation_spec,
            action_spec,
            episodes=usable[episodes],
            observation_steps=config.observation_steps,
            horizon=config.horizon,
            symmetry=symmetry,
            images=pictures,
            device=run.accelerator.device,
        )
        for episodes in chosen
    )
    if init_from is None:
        normalizer = fit_normalizer(store, observation_spec, dataset["normalizer"], symmetry)
        if config.relative_to is not None:
            check_relative_to(config.relative_to, observation_spec, action_spec.size)
            chunks = relative_chunks(windows, config.relative_to)
            normalizer = normalizer.with_scaling(ACTION, Scaling.fit("gaussian", chunks))
        torch.manual_seed(options["seed"])
        policy = ChunkPolicy(config, observation_spec, action_spec, normalizer)
        if (weights := options["vision"].get("weights")) is not None:
            policy.encoder.load_weights(weights)
    return policy, windows, validation


def policy_config(options: Mapping[str, Any], observation_spec: ObservationSpec) -> PolicyConfig:
    """The policy that the options of ``configs/train.yaml`` ask for. Raises ConfigurationError."""
    network, vision = dict(options["network"]), dict(options["vision"])
    name = vision.pop("name")
    check_vision(name, observation_spec.images)  # before the hub is asked for a backbone
    settings = {key: value for key, value in vision.items() if key not in ("crop", "weights")}
    if name == "transformers":
        settings["architecture"] = architecture_of(settings["backbone"])
    chosen = {
        "network": network.pop("name"),
        "network_options": network,
        "vision": name,
        "vision_options": settings,
        "objective": options["objective"],
        "schedule": options["schedule"],
        "sampling": sampling_options(options),
    }
    return fill(PolicyConfig, {**options["policy"], **chosen}, section="policy")


def sampling_options(options: Mapping[str, Any]) -> SamplingOptions:
    """How the policy will be sampled, in the evaluations of training and afterwards."""
    policy, noise_scale = options["policy"], options["evaluation"]["noise_scale"]
    values = {"solver": policy["solver"], "eta": policy["eta"], "noise_scale": noise_scale}
    return fill(SamplingOptions, values, section="policy")


def _pictures(
    store: Store, observation_spec: ObservationSpec, dataset: Mapping[str, Any], run: TrainingRun
) -> ImageTensors | None:
    options = ImageCacheOptions(
        dataset["cache"], dataset["cache_dir"], dataset["cache_limit_gb"], dataset["skip_corrupt"]
    )
    with run.accelerator.local_main_process_first():  # one of each machine expands the frames, the others find them
        return load_image_tensors(
            store, observation_spec, options, device=run.accelerator.device, say=run.console.print
        )


def _crop(vision: Mapping[str, Any]) -> tuple[int, ...] | None:
    crop = vision.get("crop")
    return None if crop is None else tuple(crop)


def fit_normalizer(
    store: Store, observation_spec: ObservationSpec, modes: Mapping[str, Any], symmetry: Symmetry | None = None
) -> Normalizer:
    """Fit every key in one pass over the store, and over its image in the symmetry.

    Raises ConfigurationError where ``modes`` names a key that is not there.
    """
    wraps = {key: field.wraps for key, field in observation_spec.values.items()} | {ACTION: ()}
    if unknown := modes.keys() - wraps.keys():
        raise ConfigurationError(f"dataset.normalizer names {sorted(unknown)}, but the keys are {sorted(wraps)}")

    def fit(key: str) -> Scaling:
        blocks = store.blocks(key) if symmetry is None else symmetry.augment(key, store.blocks(key))
        return Scaling.fit(modes.get(key, "min_max"), blocks, identity=wraps[key])

    return Normalizer({key: fit(key) for key in wraps})


def _symmetry(
    options: Mapping[str, Any], observation_spec: ObservationSpec, action_spec: ActionSpec, make_env: MakeEnv | None
) -> Symmetry | None:
    if not options:
        return None
    sizes = {key: field.size for key, field in observation_spec.values.items()} | {ACTION: action_spec.size}
    shapes = {key: field.shape for key, field in observation_spec.images.items()}
    symmetry = Symmetry.from_options(options, sizes, shapes)
    if make_env is None:
        return symmetry
    env = make_env()
    try:
        transform = symmetry.value_transforms[ACTION]
        if env.has_wrapper_attr("preserves_goal") and not env.get_wrapper_attr("preserves_goal")(transform):
            goal = [float(value) for value in env.get_wrapper_attr("goal_pose")]
            raise ConfigurationError(
                f"dataset.symmetry moves the goal, env.goal_pose={goal}, so mirrored demonstrations would lead elsewhere; "
                "add dataset.symmetry=null"
            )
    finally:
        env.close()
    return symmetry


def task_specs(store: Store, make_env: MakeEnv | None) -> tuple[ObservationSpec, ActionSpec]:
    """The environment's specifications, or without one the store's.

    Raises SpecMismatchError where the store has its own, and they differ, or where neither has any.
    """
    if make_env is None:
        if store.observation_spec is None or store.action_spec is None:
            raise SpecMismatchError(
                f"{store.path} does not say what its numbers mean, and task=own has no environment that does: record it with "
                "StoreWriter, which stores specifications, or give the task that it belongs to"
            )
        return store.observation_spec, store.action_spec
    env = make_env()
    try:
        observation_spec, action_spec = observation_spec_of(env), action_spec_of(env)
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
    if not 0 <= (fraction := options["dataset"]["validation_fraction"]) < 1:
        raise ConfigurationError(f"dataset.validation_fraction={fraction} must be at least 0 and below 1")
    if (episodes := options["evaluation"]["episodes"]) < 0:
        raise ConfigurationError(f"evaluation.episodes={episodes} must be at least 0")
