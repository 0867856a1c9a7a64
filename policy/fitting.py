"""Train a chunk policy from a store of demonstrations, in one call.

    store = Store.open("demonstrations.zarr")
    policy = fit(store, PolicyConfig(horizon=16), TrainingConfig(steps=2000), output_dir="runs/mine")

``flowchunk train`` reads its options and calls the same function.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flowchunk.datasets.derived_specs import DerivedSpecs
from flowchunk.datasets.episode_source import EpisodeSource
from flowchunk.datasets.errors import CheckpointError, ConfigurationError
from flowchunk.datasets.formats import open_dataset
from flowchunk.datasets.progress import progress_if_slow
from flowchunk.datasets.specs import ObservationSpec, require_observations, require_same_actions
from flowchunk.policy.chunk_policy import KIND, ChunkPolicy
from flowchunk.policy.demonstrations import (
    DatasetOptions,
    Demonstrations,
    Specs,
    demonstrated_limits,
    fit_normalizer,
    load_demonstrations,
    matching_specs,
)
from flowchunk.policy.encoders.observation import check_vision
from flowchunk.policy.encoders.transformers_backbone import read_architecture
from flowchunk.policy.encoders.value_estimator import split_estimated
from flowchunk.policy.evaluation.estimation_error import with_estimation_errors
from flowchunk.policy.evaluation.open_loop import evaluate_on
from flowchunk.policy.hindsight import with_hindsight
from flowchunk.policy.policy_config import PolicyConfig
from flowchunk.policy.relative_actions import find_coordinates
from flowchunk.policy.training.config import TrainingConfig
from flowchunk.policy.training.keypoints import encode_images_once, learn_keypoints, require_keypoints
from flowchunk.policy.training.run import Plan, TrainingRun, open_run
from flowchunk.policy.training.trainer import Evaluate


def fit(
    store: EpisodeSource | str | Path,
    policy: PolicyConfig | ChunkPolicy | None = None,
    training: TrainingConfig | None = None,
    *,
    output_dir: str | Path,
    specs: Specs | DerivedSpecs | None = None,
    dataset: DatasetOptions | None = None,
    vision_weights: str | None = None,
    vision_pretrain_steps: int | None = None,
    evaluate: Callable[[ChunkPolicy], Mapping[str, float]] | None = None,
    device: str = "auto",
    resume: bool = False,
    metadata: Mapping[str, Any] | None = None,
    wandb: bool = False,
    write_run_files: Callable[[Path], object] | None = None,
) -> ChunkPolicy:
    """Train on the store's demonstrations, and return the best policy of the run, ready to act.

    store: an opened data set, or its path. policy: what to make (by default ``PolicyConfig()``), or a policy to fine-tune: a
    copy of it is trained, with the same specifications and normalizer. specs: (observation, action), by default those stored
    with the data, or those of ``derive_specs(store)``; a crop in them is what the policy is shown. vision_weights: a file or
    a name that a new image encoder starts from. vision_pretrain_steps: learn its keypoints from only images before, and keep
    them, see ``learn_keypoints``. evaluate: measures a policy; its ``score`` (higher is better) chooses the best. Without it
    the open-loop action error on the held-out episodes does, see ``evaluate_on``; without those, the best is the last. What
    the policy estimates is measured on them, too, see ``with_estimation_errors``. device: auto, cpu, cuda, cuda:N or mps.
    resume: continue the run that ``output_dir`` holds, bit for bit on the CPU. metadata: remembered by the checkpoints;
    ``flowchunk eval`` looks there for ``env_id`` and ``env``. write_run_files: called with the folder before the first step.

    Writes ``checkpoints/{last,best}``, ``metrics.jsonl`` and ``tensorboard`` into ``output_dir``; nothing before data and
    policy fit together. Raises SpecMismatchError for specifications that are not the data's, ConfigurationError for options
    that cannot be used and for a folder that holds another run, DatasetError for damaged data, TrainingError once the loss
    is not finite.
    """
    training, dataset = training or TrainingConfig(), dataset or DatasetOptions()
    store = store if isinstance(store, EpisodeSource) else open_dataset(store)
    matching = matching_specs(store, specs)
    if isinstance(policy, ChunkPolicy):
        require_specs_of(policy, matching, expected_by="the policy to fine-tune", got_from=str(store.path))
        config, matching = policy.config, (policy.data_spec, policy.action_spec)
    else:
        config = with_architecture(policy or PolicyConfig(), matching[0])
        split_estimated(matching[0], config.estimated)  # raises before anything is read
    if vision_pretrain_steps is not None:
        _require_learnable_keypoints(config, vision_pretrain_steps, is_new=not isinstance(policy, ChunkPolicy))
    run = open_run(output_dir, training, device=device, resume=resume)
    _require_whole_shares(config, training, processes=run.accelerator.num_processes)
    with run.accelerator.local_main_process_first():  # one of each machine expands images, the others find them
        data = load_demonstrations(
            store,
            matching,
            dataset,
            observation_steps=config.observation_steps,
            horizon=config.horizon,
            seed=training.seed,
            latest_only=config.estimated,
            device=run.accelerator.device,
            say=run.console.print,
        )
    coordinates = find_coordinates(config, *matching)
    if coordinates.frame is not None:
        frame = coordinates.frame.to(run.accelerator.device)
        data = Demonstrations(with_hindsight(data.training, frame), with_hindsight(data.validation, frame))
    if isinstance(policy, ChunkPolicy):
        model = copy.deepcopy(policy).train()
    else:
        model = new_policy(store, config, matching, dataset, data, seed=training.seed, vision_weights=vision_weights)
    if vision_pretrain_steps is not None:
        data = _with_keypoints(model, data, run, steps=vision_pretrain_steps)
    run.train(
        model,
        replace(data.training, images_every=config.estimate_every),
        kind=KIND,
        plan=Plan(_networks(config), str(data), data.nbytes),
        validation=data.validation,
        evaluate=_held_out_errors(data, config, evaluate),
        metadata=metadata,
        wandb=wandb,
        write_run_files=write_run_files,
    )
    run.accelerator.wait_for_everyone()
    return ChunkPolicy.load(run.directory, device=run.accelerator.device)


def _require_learnable_keypoints(config: PolicyConfig, steps: int, *, is_new: bool) -> None:
    """Raise ConfigurationError unless the keypoints of such a policy can be learned before it is trained."""
    if steps < 1:
        raise ConfigurationError(f"vision.pretrain_steps={steps} must be at least 1, or null")
    if not is_new:
        raise ConfigurationError(
            f"vision.pretrain_steps={steps}: the policy to fine-tune has an image encoder already; leave it out"
        )
    require_keypoints(config.vision)


def _with_keypoints(policy: ChunkPolicy, data: Demonstrations, run: TrainingRun, *, steps: int) -> Demonstrations:
    """The demonstrations with their images encoded by keypoints that are learned now, or were when the run began."""
    encoder, is_visible = policy.encoder, run.accelerator.is_main_process
    if run.is_resumed:
        trained = ChunkPolicy.load(run.directory / "checkpoints" / "last")
        try:
            encoder.load_state_dict(trained.encoder.state_dict())
        except RuntimeError as error:
            raise CheckpointError(f"{run.directory} does not fit this training run: {error}") from error
        encoder.to(run.accelerator.device)
    else:
        with progress_if_slow("learning keypoints", steps, visible=is_visible) as advance:
            explained = learn_keypoints(encoder, data.training, steps=steps, seed=run.config.seed, advance=advance)
        run.console.print(f"{explained:.0%} of the variance of the images can be reconstructed from the keypoints")
    encoder.cameras.requires_grad_(False)
    frames = len(data.training) + len(data.validation)
    with progress_if_slow("encoding images", frames, visible=is_visible) as advance:
        return Demonstrations(*encode_images_once(encoder, data.training, data.validation, advance=advance))


def new_policy(
    store: EpisodeSource,
    config: PolicyConfig,
    specs: Specs,
    dataset: DatasetOptions,
    data: Demonstrations,
    *,
    seed: int,
    vision_weights: str | None = None,
) -> ChunkPolicy:
    """An untrained policy for these demonstrations, whose weights are a function of the seed. Raises ConfigurationError."""
    coordinates = find_coordinates(config, *specs)
    if coordinates.frame is not None:
        coordinates.frame.to(data.training.frames.device)
    normalizer = fit_normalizer(store, specs, dataset, data.training, coordinates=coordinates)
    torch.manual_seed(seed)
    policy = ChunkPolicy(
        config, *specs, normalizer, action_limits=demonstrated_limits(store, specs[1], dataset.symmetry)
    )
    if vision_weights is not None:
        policy.encoder.load_weights(vision_weights)
    return policy


def with_architecture(config: PolicyConfig, observation_spec: ObservationSpec) -> PolicyConfig:
    """The configuration with all that is needed to make its image encoder again without the hub.

    Raises ConfigurationError if encoder and observations do not go together, and for a backbone that is not known.
    """
    check_vision(config.vision, observation_spec.images)  # before the hub is asked
    options = dict(config.vision_options)
    if config.vision != "transformers" or "architecture" in options or "backbone" not in options:
        return config
    return replace(config, vision_options={**options, "architecture": read_architecture(options["backbone"])})


def require_specs_of(policy: ChunkPolicy, specs: Specs, *, expected_by: str, got_from: str) -> None:
    """Raise SpecMismatchError unless a policy can be trained on data of these specifications."""
    require_observations(policy.data_spec, specs[0], expected_by=expected_by, got_from=got_from)
    require_same_actions(policy.action_spec, specs[1], expected_by=expected_by, got_from=got_from)


def _require_whole_shares(config: PolicyConfig, training: TrainingConfig, *, processes: int) -> None:
    """Raise ConfigurationError unless rows with images can be split as the batch is."""
    rows = training.batch_size // (processes * training.num_micro_batches)
    if rows % config.estimate_every:
        raise ConfigurationError(
            f"policy.estimate_every={config.estimate_every}: expected a divisor of the {rows} rows that are computed at once "
            f"(training.batch_size={training.batch_size}, processes: {processes}, "
            f"training.num_micro_batches={training.num_micro_batches})"
        )


def _held_out_errors(data: Demonstrations, config: PolicyConfig, evaluate: Evaluate | None) -> Evaluate | None:
    """``evaluate``, by default the action error, and the errors of what is estimated; without held-out episodes as it is."""
    if not len(data.validation):
        return evaluate
    evaluate = evaluate or evaluate_on(data.validation, data.training)
    return with_estimation_errors(evaluate, data.validation) if config.estimated else evaluate


def _networks(config: PolicyConfig) -> str:
    return config.network if config.vision is None else f"{config.vision} and {config.network}"
