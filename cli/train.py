"""flowchunk train: learn a policy from demonstrations.

usage: flowchunk train task=TASK dataset.path=PATH [KEY=VALUE ...]        a robot's policy
       flowchunk train task=DOMAIN [dataset=NAME] [KEY=VALUE ...]         see below

  task=pusht_state|pusht_keypoints|pusht_image|pickplace_state|pickplace_image
  task=own                         a data set of your own, by the specifications stored in it; no simulation is needed
  dataset.path=PATH                a zarr store: ours (flowchunk collect) or diffusion_policy's
  experiment=NAME                  another recipe than the task's own; none leaves it out
  network=mlp|mixer|dit|unet1d|gru [network.width=512 ...]
  hardware=cpu|gpu                 of the _image tasks: small convolutions, or ResNet-18 in bf16, compiled
  vision=small_conv|resnet18|timm|transformers  vision.crop=[84,84] vision.weights=PATH|NAME vision.share_weights=true …
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
  --cfg job                        print all options as YAML, defaults included, and train nothing
  seed=0  device=auto|cpu|cuda|cuda:N|mps  output_dir=DIR  logging.wandb=true

The same loss, sampler and trainer for other data (then: flowchunk generate RUN):
  task=toy2d                       dataset=8gaussians|two_moons|checkerboard|spiral
  task=obstacle|torus              chunks round an obstacle; the inverse kinematics of an arm
  task=images                      dataset=digits, or dataset=folder dataset.path=FOLDER|ZIP; dataset.size=32
                                   dataset.invert=true  dataset.half=0  model.augment=true
  dataset.samples=N                train on so many; model.coupling=ot  model.label_dropout=0.1  model.solver=…

writes DIR/checkpoints/{last,best}, DIR/metrics.jsonl, DIR/config.yaml, DIR/loss.png, DIR/tensorboard.
Two processes on a CPU: torchrun --nproc-per-node 2 --no-python flowchunk train ... output_dir=DIR device=cpu
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from flowchunk.cli.domains import DOMAINS
from flowchunk.cli.fine_tuning import CHANGEABLE, with_checkpoint
from flowchunk.cli.options import fill, read_options, take_cfg, to_yaml
from flowchunk.cli.runs import check_folder, finish, training_config, with_output_dir, write_options
from flowchunk.datasets.errors import ConfigurationError, SpecMismatchError
from flowchunk.datasets.image_cache import ImageCacheOptions
from flowchunk.datasets.specs import require_observations, require_same_actions
from flowchunk.datasets.store import ACTION, Store
from flowchunk.datasets.symmetry import Symmetry
from flowchunk.envs.contract import specs_of
from flowchunk.envs.evaluation import evaluate_in
from flowchunk.envs.simulation import MakeEnv, environment_maker
from flowchunk.policy.chunk_policy import ChunkPolicy, PolicyConfig
from flowchunk.policy.demonstrations import DatasetOptions, Specs
from flowchunk.policy.fitting import fit, require_specs_of
from flowchunk.policy.sampling import SamplingOptions


def run(arguments: list[str]) -> None:
    """Train as the arguments say, or print the options that they make."""
    arguments = ["dataset.skip_corrupt=true" if one == "--skip-corrupt" else one for one in arguments]
    arguments, is_only_printed = take_cfg(arguments)
    task = next((argument.partition("=")[2] for argument in reversed(arguments) if argument.startswith("task=")), None)
    config = "train_generative" if task in DOMAINS else "train"
    if is_only_printed:
        print(to_yaml(read_options(config, arguments, all_given=False)), end="")
    elif task in DOMAINS:
        from flowchunk.cli.train_generative import train_generative

        train_generative(with_output_dir(read_options(config, arguments)))
    else:
        given = frozenset(argument.partition("=")[0] for argument in arguments)
        train(with_output_dir(read_options(config, arguments)), given=given)


def train(options: dict[str, Any], *, given: Collection[str] = ()) -> Path:
    """Train with the options of ``schemas.TRAIN``; returns the run's directory.

    given: names of the options that somebody asked for, which fine-tuning has to heed or refuse.
    """
    init_from = options["training"]["init_from"]
    if init_from is not None:
        options = with_checkpoint(options, given)
    env_id, evaluation = options["task"]["env_id"], options["evaluation"]
    if (episodes := evaluation["episodes"]) < 0:
        raise ConfigurationError(f"evaluation.episodes={episodes} must be at least 0")
    make_env = None if env_id is None else environment_maker(env_id, options["env"])
    resume = check_folder(options)
    store = Store.open(options["dataset"]["path"], sources=options["dataset"]["sources"])
    specs = task_specs(store, make_env)
    policy = policy_config(options) if init_from is None else _policy_to_tune(options, specs, store)
    evaluate = None
    if make_env is not None and episodes > 0:
        _require_admitted(policy if isinstance(policy, PolicyConfig) else policy.config, evaluation["nfe"])
        evaluate = evaluate_in(make_env, episodes=episodes, seed=evaluation["seed"], nfe=evaluation["nfe"])
    fit(
        store,
        policy,
        training_config(options),
        output_dir=options["output_dir"],
        specs=(specs[0].cropped(_crop(options["vision"])), specs[1]),
        dataset=dataset_options(options, specs, make_env),
        vision_weights=options["vision"].get("weights"),
        evaluate=evaluate,
        device=options["device"],
        resume=resume,
        metadata={"task": options["task"]["name"], "env_id": env_id, "env": options["env"]},
        wandb=options["logging"]["wandb"],
        write_run_files=lambda directory: write_options(directory, options),
    )
    return finish(options)


def policy_config(options: Mapping[str, Any]) -> PolicyConfig:
    """The policy that the options of ``schemas.TRAIN`` ask for. Raises ConfigurationError."""
    network, vision = dict(options["network"]), dict(options["vision"])
    chosen = {
        "network": network.pop("name"),
        "network_options": network,
        "vision": vision.pop("name"),
        "vision_options": {key: value for key, value in vision.items() if key not in ("crop", "weights")},
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


def dataset_options(options: Mapping[str, Any], specs: Specs, make_env: MakeEnv | None) -> DatasetOptions:
    """How the policy learns from its store. Raises ConfigurationError."""
    dataset = options["dataset"]
    return DatasetOptions(
        validation_fraction=dataset["validation_fraction"],
        normalizer=dataset["normalizer"],
        symmetry=_symmetry(dataset["symmetry"], specs, make_env),
        cache=ImageCacheOptions(
            dataset["cache"], dataset["cache_dir"], dataset["cache_limit_gb"], dataset["skip_corrupt"]
        ),
    )


def task_specs(store: Store, make_env: MakeEnv | None) -> Specs:
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
        specs = specs_of(env)
    finally:
        env.close()
    if store.observation_spec is not None and store.action_spec is not None:
        sides = {"expected_by": "the environment", "got_from": str(store.path)}
        require_same_actions(specs[1], store.action_spec, **sides)
        require_observations(specs[0], store.observation_spec, **sides)
    return specs


def _policy_to_tune(options: Mapping[str, Any], specs: Specs, store: Store) -> ChunkPolicy:
    init_from = options["training"]["init_from"]
    policy = ChunkPolicy.load(init_from)
    require_specs_of(policy, specs, expected_by=str(init_from), got_from=str(store.path))
    changes = {name: options["policy"][name] for name in CHANGEABLE if name in options["policy"]}
    return policy.with_options(**changes, sampling=sampling_options(options))


def _require_admitted(config: PolicyConfig, nfe: int | None) -> None:
    """Refuse a number of network evaluations before anything is trained."""
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
        _require_goal_kept(make_env, symmetry)
    return symmetry


def _require_goal_kept(make_env: MakeEnv, symmetry: Symmetry) -> None:
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
