"""flowchunk train: learn a policy from demonstrations, or a model of generated data.

usage: flowchunk train task=TASK dataset.path=PATH [KEY=VALUE ...]
       flowchunk train task=DOMAIN [dataset=NAME] [KEY=VALUE ...]

data of policies:
  task=NAME                        pusht_state | pusht_keypoints | pusht_image | pusht_image_pose | pickplace_state |
                                   pickplace_image | adroit_door | fetch_pick_and_place | metaworld |
                                   robomimic | gym | own
                                   metaworld/NAME: one of its 50 tasks; robomimic/lift|can|square;
                                   gym: any Gymnasium environment; own: a data set of your own, by its
                                   stored specifications
  task.env_id=ID                   of task=gym ("task." may be left out); MODULE:ID imports the module
                                   that registers it
  dataset.path=PATH                zarr, robomimic HDF5, LeRobot, or a mapping (.yaml) of other files
  dataset.cache=MODE               auto | disk | ram | device: where images are kept
  dataset.cache_dir=DIR            the folder of dataset.cache=disk
  --skip-corrupt                   leave out episodes with damaged images, and list them
  env.KEY=VALUE                    an argument of the environment; flowchunk eval inherits it

data of other models (samples: flowchunk generate RUN):
  task=toy2d                       dataset=8gaussians|two_moons|checkerboard|spiral
  task=obstacle                    chunks that pass an obstacle on either side
  task=torus                       inverse kinematics of a planar arm
  task=images                      dataset=digits, or dataset=folder dataset.path=FOLDER|ZIP
                                   dataset.size=32  dataset.invert=true  dataset.half=0
  dataset.samples=N                train on N data

model:
  objective=NAME                   flow | noise_prediction | data_prediction | v | posterior |
                                   regression | mip | flow_map
  schedule=NAME                    linear | linear_beta | cosine | sigmoid
  network=NAME                     mlp | mixer | dit | unet1d | gru; for images also unet2d |
                                   patch_dit | local_conv; options: network.width=512 …
  vision=NAME                      image encoder: small_conv | resnet18 | timm | transformers
                                   vision.crop=[84,84]  vision.weights=PATH|NAME
                                   vision.image_steps=1  vision.share_weights=true …
  vision.pretrain_steps=4000       learn keypoints from only the images before, and keep them
  policy.solver=NAME  policy.time_density=beta|uniform|logit_normal|mode
  policy.observation_steps=2  policy.horizon=16  policy.n_action_steps=8
  policy.num_noise_samples=4       noise samples per encoded observation in each step
  model.solver=NAME                like policy.solver, for other models; also model.time_density,
                                   model.coupling=ot  model.label_dropout=0.1  model.augment=true

training:
  experiment=NAME                  another recipe than the task's; none: the plain defaults
  hardware=cpu|gpu                 of tasks with images: a small CNN, or ResNet-18 in bf16, compiled
  training.steps=10000  training.batch_size=256  training.learning_rate=5e-4
  training.precision=fp32|bf16  training.compile=true  training.channels_last=true
  training.num_micro_batches=N     split each batch to save memory
  training.log_every=100  training.checkpoint_every=1000  training.evaluate_every=STEPS
  training.resume=true             continue from the last checkpoint in output_dir
  training.init_from=CHECKPOINT    fine-tune a policy: network, specifications and normalizer are
                                   the checkpoint's; policy.n_action_steps, mask_padding,
                                   prefix_max, num_noise_samples, time_density, solver, … may change
  evaluation.episodes=50           simulated episodes per evaluation; the mean of score and success
                                   rate chooses the best checkpoint (0, and task=own: the action
                                   error on held-out episodes does)
  evaluation.noise_scale=1.0       factor of the initial noise in simulation; saved with the policy
  seed=0  device=auto|cpu|cuda|cuda:N|mps  output_dir=DIR  logging.wandb=true
  --cfg job                        print all options with their defaults as YAML, without training

Writes DIR/checkpoints/{last,best}, DIR/metrics.jsonl, DIR/config.yaml, DIR/loss.png and
DIR/tensorboard; without simulated episodes also DIR/open_loop.json and DIR/open_loop.png, the error
of predicted chunks on held-out episodes.
Two processes on a CPU:
  torchrun --nproc-per-node 2 --no-python flowchunk train ... output_dir=DIR device=cpu
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from rich.console import Console

from flowchunk.cli.domains import DOMAINS
from flowchunk.cli.fine_tuning import CHANGEABLE, with_checkpoint
from flowchunk.cli.options import fill, read_options, take_cfg, to_yaml
from flowchunk.cli.own_data import derived_overrides, open_source, specs_of_source
from flowchunk.cli.runs import check_folder, finish, training_config, with_output_dir, write_options
from flowchunk.datasets.derived_specs import DerivedSpecs, SpecOptions
from flowchunk.datasets.episode_source import ACTION, EpisodeSource
from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.image_cache import ImageCacheOptions
from flowchunk.datasets.specs import ObservationSpec, require_observations, require_same_actions
from flowchunk.datasets.symmetry import Symmetry
from flowchunk.envs.contract import landmarks_of, recorded_fields_of, require_time_limit, specs_of
from flowchunk.envs.evaluation import evaluate_in
from flowchunk.envs.simulation import MakeEnv, environment_maker
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.demonstrations import DatasetOptions, Specs
from flowchunk.policy.encoders.value_estimator import split_estimated
from flowchunk.policy.fitting import fit, require_specs_of
from flowchunk.policy.policy_config import PolicyConfig
from flowchunk.policy.sampling import SamplingOptions

ABOUT_DATA = ("task=", "task.", "env_id=", "env.", "dataset.", "device=", "training.init_from=", "policy.horizon=")
"""Options that are needed before others can be derived from the data set."""
MISSING = "???"
OUTSIDE_THE_ENCODER = ("crop", "weights", "pretrain_steps")  # options of vision that are not its arguments


def run(arguments: list[str]) -> None:
    """Train with command-line arguments, or print the options."""
    arguments = ["dataset.skip_corrupt=true" if argument == "--skip-corrupt" else argument for argument in arguments]
    arguments, prints_only = take_cfg(arguments)
    if prints_only:
        print(to_yaml(read_options(config_of(arguments), arguments, all_given=False)), end="")
    elif config_of(arguments) == "train_generative":
        from flowchunk.cli.train_generative import train_generative

        train_generative(with_output_dir(read_options("train_generative", arguments)))
    else:
        given = frozenset(argument.partition("=")[0] for argument in arguments)
        options = read_options("train", [*_derived(arguments, given), *arguments])
        options["dataset"]["path"] = str(Path(options["dataset"]["path"]).expanduser().absolute())  # for later commands
        train(with_output_dir(options), given=given)


def config_of(arguments: Sequence[str]) -> str:
    """The configuration that arguments are options of: ``train``, or ``train_generative`` if their task is such a domain."""
    task = next((argument.partition("=")[2] for argument in reversed(arguments) if argument.startswith("task=")), None)
    return "train_generative" if task in DOMAINS else "train"


def _derived(arguments: list[str], given: Collection[str]) -> list[str]:
    """Options that follow from the data set, if there is no environment that decides."""
    about_data = [argument for argument in arguments if argument.startswith(ABOUT_DATA)]
    options = read_options("train", about_data, all_given=False)
    _require_environment(options)
    if options["task"]["env_id"] is not None or options["dataset"]["path"] == MISSING:
        return []
    console = Console() if os.environ.get("RANK", "0") == "0" else None  # before any process group is made
    horizon = options["policy"]["horizon"] if "policy.horizon" in given else None
    derived = derived_overrides(options, given, horizon=horizon, console=console)
    if options["training"]["init_from"] is not None:  # the checkpoint decides about the policy
        derived = [override for override in derived if override.startswith("dataset.")]
    return derived


def train(options: dict[str, Any], *, given: Collection[str] = ()) -> Path:
    """Train with the options of ``schemas.TRAIN``; returns the run's directory.

    given: names of the options that were given explicitly, which fine-tuning must use or refuse.
    """
    init_from = options["training"]["init_from"]
    if init_from is not None:
        options = with_checkpoint(options, given)
    env_id, evaluation = options["task"]["env_id"], options["evaluation"]
    if (episodes := evaluation["episodes"]) < 0:
        raise ConfigurationError(f"evaluation.episodes={episodes} must be at least 0")
    _require_environment(options)
    if env_id is not None and (ignored := _about_numbers(given)):
        raise ConfigurationError(
            f"{', '.join(f'{key}=…' for key in ignored)}: task={options['task']['name']} has an environment, which says what "
            "the numbers mean; leave this out, or train on the data without it: task=own"
        )
    make_env = None if env_id is None else environment_maker(env_id, options["env"])
    resume = check_folder(options)
    store = open_source(options)
    specs = task_specs(store, make_env, options)
    placed = _with_landmarks(options, make_env)
    policy = policy_config(placed) if init_from is None else _load_policy(placed, specs, store)
    evaluate = None
    if make_env is not None and episodes > 0:
        _require_valid_nfe(policy if isinstance(policy, PolicyConfig) else policy.config, evaluation["nfe"])
        evaluate = evaluate_in(make_env, episodes=episodes, seed=evaluation["seed"], nfe=evaluation["nfe"])
    fit(
        store,
        policy,
        training_config(options),
        output_dir=options["output_dir"],
        specs=_shown_to_policy(specs, make_env, options),
        dataset=dataset_options(options, specs, make_env),
        vision_weights=options["vision"].get("weights"),
        vision_pretrain_steps=options["vision"].get("pretrain_steps"),
        evaluate=evaluate,
        device=options["device"],
        resume=resume,
        metadata={
            "task": options["task"]["name"],
            "env_id": env_id,
            "env": options["env"],
            "evaluation": {"seed": evaluation["seed"], "episodes": episodes if evaluate else 0},
        },
        wandb=options["logging"]["wandb"],
        write_run_files=lambda directory: write_options(directory, options),
    )
    directory = finish(options)
    if evaluate is None and PartialState().is_main_process:
        from flowchunk.cli.open_loop import report_training  # which reads the options of this command

        report_training(directory, options)
    return directory


def _require_environment(options: Mapping[str, Any]) -> None:
    """Raise ConfigurationError if options need an environment, and none is given."""
    if options["task"]["env_id"] is not None:
        return
    if options["task"]["name"] == "gym":
        raise ConfigurationError(
            "task=gym needs env_id=ID, or MODULE:ID with the module that registers the environment"
        )
    if options["env"]:
        listed = ", ".join(f"env.{name}=…" for name in options["env"])
        raise ConfigurationError(
            f"{listed}: there is no environment that could take this; give env_id=ID, or leave it out"
        )


def _about_numbers(given: Collection[str]) -> list[str]:
    """Of the options that were given, those that say what the numbers of a data set mean."""
    sections = tuple(f"dataset.{field.name}" for field in fields(SpecOptions))
    return [key for key in given if key in sections or key.rpartition(".")[0] in sections]


def _with_landmarks(options: dict[str, Any], make_env: MakeEnv | None) -> dict[str, Any]:
    """The options with the landmarks of the policy's frame, if they are null, where the environment has them.

    Raises ConfigurationError for those that are given elsewhere than the environment has them.
    """
    frame = options["policy"]["frame"] or {}
    landmarks = dict(frame.get("landmarks") or {})
    if make_env is None or not landmarks:
        return options
    env = make_env()
    try:
        known = landmarks_of(env)
    finally:
        env.close()
    for name in landmarks.keys() & known.keys():
        given, pose = landmarks[name], list(known[name])
        if given is not None and not np.allclose(given, pose, atol=1e-3):
            raise ConfigurationError(
                f"policy.frame.landmarks.{name}={given}, but the environment has it at {pose}; leave it out, or change the "
                "environment"
            )
        landmarks[name] = pose
    return {**options, "policy": {**options["policy"], "frame": {**frame, "landmarks": landmarks}}}


def _shown_to_policy(specs: Specs, make_env: MakeEnv | None, options: Mapping[str, Any]) -> Specs | DerivedSpecs:
    observation_spec = specs[0].cropped(_crop(options["vision"]))
    return DerivedSpecs(observation_spec, specs[1], {}) if make_env is None else (observation_spec, specs[1])


def policy_config(options: Mapping[str, Any]) -> PolicyConfig:
    """The configuration of the policy in the options of ``schemas.TRAIN``. Raises ConfigurationError."""
    network, vision = dict(options["network"]), dict(options["vision"])
    chosen = {
        "network": network.pop("name"),
        "network_options": network,
        "vision": vision.pop("name"),
        "vision_options": {key: value for key, value in vision.items() if key not in OUTSIDE_THE_ENCODER},
        "objective": options["objective"],
        "schedule": options["schedule"],
        "sampling": sampling_options(options),
    }
    return fill(PolicyConfig, {**options["policy"], **chosen}, section="policy")


def sampling_options(options: Mapping[str, Any]) -> SamplingOptions:
    """The default sampling options of the policy, during and after training."""
    policy, noise_scale = options["policy"], options["evaluation"]["noise_scale"]
    values = {"solver": policy["solver"], "eta": policy["eta"], "noise_scale": noise_scale}
    return fill(SamplingOptions, values, section="policy")


def dataset_options(options: Mapping[str, Any], specs: Specs, make_env: MakeEnv | None) -> DatasetOptions:
    """The options of its data set. Raises ConfigurationError."""
    dataset = options["dataset"]
    return DatasetOptions(
        validation_fraction=dataset["validation_fraction"],
        stored_split=dataset["stored_split"],
        normalizer=dataset["normalizer"],
        symmetry=_symmetry(dataset["symmetry"], specs, make_env),
        cache=ImageCacheOptions(
            dataset["cache"], dataset["cache_dir"], dataset["cache_limit_gb"], dataset["skip_corrupt"]
        ),
    )


def task_specs(store: EpisodeSource, make_env: MakeEnv | None, options: Mapping[str, Any]) -> Specs:
    """The specifications of the environment, or those of the data set and the options if make_env is None.

    What the policy is to estimate is among them. Raises SpecMismatchError if those of the data set differ from the
    environment's, ConfigurationError if it cannot be estimated.
    """
    if make_env is None:
        derived = specs_of_source(store, options)
        return derived.observation_spec, derived.action_spec
    env = make_env()
    try:
        require_time_limit(env)
        specs, recorded = specs_of(env), recorded_fields_of(env)
        if env.has_wrapper_attr("check_recordings"):
            env.get_wrapper_attr("check_recordings")(store)
    finally:
        env.close()
    if store.observation_spec is not None and store.action_spec is not None:
        sides = {"expected_by": "the environment", "got_from": str(store.path)}
        require_same_actions(specs[1], store.action_spec, **sides)
        require_observations(specs[0], store.observation_spec, **sides)
    known = {**(store.observation_spec or ObservationSpec({})).fields, **recorded.fields}
    estimated = options.get("policy", {}).get("estimated", ())
    held = ObservationSpec({**specs[0].fields, **{key: known[key] for key in estimated if key in known}})
    split_estimated(held, estimated)  # raises for what nobody knows
    return held, specs[1]


def _load_policy(options: Mapping[str, Any], specs: Specs, store: EpisodeSource) -> ChunkPolicy:
    init_from = options["training"]["init_from"]
    policy = ChunkPolicy.load(init_from)
    require_specs_of(policy, specs, expected_by=str(init_from), got_from=str(store.path))
    changes = {name: options["policy"][name] for name in CHANGEABLE if name in options["policy"]}
    landmarks = (options["policy"]["frame"] or {}).get("landmarks") or {}
    if poses := {name: pose for name, pose in landmarks.items() if pose is not None}:
        policy = policy.with_landmarks(poses)
    return policy.with_options(**changes, sampling=sampling_options(options))


def _require_valid_nfe(config: PolicyConfig, nfe: int | None) -> None:
    """Raise ConfigurationError for an invalid number of network evaluations before training."""
    if nfe is not None:
        config.make_objective().times(nfe, sampling=config.sampling)


def _crop(vision: Mapping[str, Any]) -> tuple[int, ...] | None:
    crop = vision.get("crop")
    return None if crop is None else tuple(crop)


def _symmetry(options: Mapping[str, Any] | None, specs: Specs, make_env: MakeEnv | None) -> Symmetry | None:
    if not options:
        return None
    observation_spec, action_spec = specs
    sizes = {key: field.size for key, field in observation_spec.values.items()} | {ACTION: action_spec.size}
    shapes = {key: field.shape for key, field in observation_spec.images.items()}
    symmetry = Symmetry.from_options(options, sizes, shapes)
    if make_env is not None:
        _require_preserved_goal(make_env, symmetry)
    return symmetry


def _require_preserved_goal(make_env: MakeEnv, symmetry: Symmetry) -> None:
    env = make_env()
    try:
        if env.has_wrapper_attr("preserves_goal") and not env.get_wrapper_attr("preserves_goal")(
            symmetry.value_transforms[ACTION]
        ):
            goal = [float(value) for value in env.get_wrapper_attr("goal_pose")]
            raise ConfigurationError(
                f"dataset.symmetry moves the goal, env.goal_pose={goal}, so mirrored demonstrations would lead elsewhere; "
                "add dataset.symmetry=null"
            )
    finally:
        env.close()
