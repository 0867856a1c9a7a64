"""Chunk policies: from what a robot observed to the actions that it should take next.

``ChunkPolicy.load(path).predict_chunk(observation, nfe=4)`` is all that deployment needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from flowchunk.datasets.errors import CheckpointError, ConfigurationError, SpecMismatchError
from flowchunk.datasets.specs import ActionSpec, ObservationSpec
from flowchunk.policy.action_limits import ActionLimits
from flowchunk.policy.checkpoint import find_checkpoint, read_checkpoint, write_checkpoint
from flowchunk.policy.diffusion.objectives import Objective
from flowchunk.policy.diffusion.paths import Generators, row_generators
from flowchunk.policy.encoders.observation import ObservationEncoder
from flowchunk.policy.encoders.value_estimator import split_estimated
from flowchunk.policy.execution.executor import ChunkExecution
from flowchunk.policy.flow import Loss
from flowchunk.policy.generative_model import GenerativeModel, shallow_copy
from flowchunk.policy.networks import NETWORKS
from flowchunk.policy.noise import PolicyNoise
from flowchunk.policy.normalizer import Normalizer
from flowchunk.policy.planar_frame import moved_landmarks, outside_the_frame, seen_in_training
from flowchunk.policy.policy_config import PolicyConfig
from flowchunk.policy.policy_inputs import action_tensor, observation_tensors, require_finite
from flowchunk.policy.real_time_chunking import PREFIX_METHODS, TRAINED, check_continuation, objection
from flowchunk.policy.relative_actions import find_coordinates
from flowchunk.policy.sampling import SamplingOptions
from flowchunk.policy.shapes import Chunk, Condition

KIND = "chunk_policy"
ACTION = "action"


class ChunkPolicy(nn.Module):
    """A policy from observation histories to chunks of actions, both in physical units.

    An encoder of observations, a ``GenerativeModel`` of chunks, and the specifications of observations and actions.
    observation_spec: of all that its demonstrations hold (``data_spec``); its attribute of that name is what it observes, and
    ``estimated_spec`` what it estimates. action_limits: how fast its demonstrations moved, for the safety of robots; None if
    unknown. Raises ConfigurationError or SpecMismatchError if they do not fit together.
    """

    default_nfe = 4

    def __init__(
        self,
        config: PolicyConfig,
        observation_spec: ObservationSpec,
        action_spec: ActionSpec,
        normalizer: Normalizer,
        *,
        action_limits: ActionLimits | None = None,
    ) -> None:
        super().__init__()
        self.action_limits = action_limits
        self.config, self.action_spec = config, action_spec
        self.observation_spec, self.estimated_spec = split_estimated(observation_spec, config.estimated)
        self.data_spec = ObservationSpec({**self.observation_spec.fields, **self.estimated_spec.fields})
        self.coordinates = find_coordinates(config, self.data_spec, action_spec)
        self.frame = self.coordinates.frame
        self.encoder = ObservationEncoder(
            outside_the_frame(self.data_spec, self.frame),
            observation_steps=config.observation_steps,
            vision=config.vision,
            options=config.vision_options,
            estimated=self.estimated_spec if config.estimated else None,
        )
        shape = (config.horizon, action_spec.size)
        framed = 0 if self.frame is None else self.frame.condition_size
        try:
            network = NETWORKS[config.network](
                action_size=action_spec.size,
                horizon=config.horizon,
                condition_size=self.encoder.condition_size + framed,
                **config.network_options,
            )
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"cannot make network {config.network!r}: {error}") from error
        objective = config.make_objective(clip_sample_range=normalizer.max_abs(ACTION))
        self.model = GenerativeModel(
            network, objective, normalizer, key=ACTION, shape=shape, default_nfe=self.default_nfe
        )

    @property
    def execution(self) -> ChunkExecution:
        """How its chunks are executed unless somebody says otherwise."""
        config = self.config
        return ChunkExecution(
            config.observation_steps, config.horizon, config.n_action_steps, longest_prefix=self.longest_prefix
        )

    @property
    def network(self) -> nn.Module:
        """The network of the generative model."""
        return self.model.network

    @property
    def objective(self) -> Objective:
        """The objective that it is trained for."""
        return self.model.objective

    @property
    def valid_nfe(self) -> tuple[int, ...] | None:
        """The numbers of network evaluations that its objective admits; None for any."""
        return self.objective.valid_nfe

    @property
    def prefix_method(self) -> str:
        """How it continues the old chunk, a name in ``PREFIX_METHODS``."""
        return self.config.sampling.prefix_method or TRAINED

    @property
    def prefix_methods(self) -> tuple[str, ...]:
        """The methods by which it can continue the old chunk: ``with_sampling`` takes each of them."""
        sampling, prefix_max = self.config.sampling, self.config.prefix_max
        admitted = (name for name in PREFIX_METHODS if objection(name, self.objective, sampling) is None)
        return tuple(name for name in admitted if prefix_max or name != TRAINED)

    @property
    def longest_prefix(self) -> int:
        """The longest prefix that ``predict_chunk`` takes; 0 if it takes none."""
        return self.config.prefix_max if self.prefix_method == TRAINED else self.config.horizon - 1

    @property
    def normalizer(self) -> Normalizer:
        """The normalizer of its observations and actions."""
        return self.model.normalizer

    # -- training -----------------------------------------------------------------------------------------------------

    pair_noise = None  # chunks depend on a condition, so their noise must be independent of them

    def sample_noise(self, batch_size: int, generator: torch.Generator) -> PolicyNoise:
        """All random numbers of a training step, a row per observation."""
        config, repeats = self.config, self.config.noise_samples_per_observation
        rows = batch_size * repeats
        path, prefix_length = self.model.sample_noise(rows, generator), None
        if config.prefix_max:  # P(0) = 1/2, the rest uniform
            length = torch.randint(1, config.prefix_max + 1, (rows,), generator=generator)
            prefix_length = length * (torch.rand(rows, generator=generator) < 0.5)
        noise = PolicyNoise(path, prefix_length, {})
        if repeats > 1:
            noise = noise.map(lambda values: values.reshape(batch_size, repeats, *values.shape[1:]))
        return replace(noise, augmentation=self.encoder.sample_augmentation(batch_size, generator))

    def forward(self, batch: Mapping[str, Tensor], noise: PolicyNoise) -> tuple[Tensor, Tensor]:
        """The weighted sum of squared errors, and the sum of the weights; see ``loss``."""
        return self.loss(batch, noise).sums()

    def loss(self, batch: Mapping[str, Tensor], noise: PolicyNoise) -> Loss:
        """The loss of each action of each chunk, (B · M, H).

        batch: ``observation.KEY`` (B, To, …) and ``action`` (B, H, D) in physical units, ``mask`` (B, H), False for padding.
        Each observation is encoded once, and used with all of its M noise samples.
        """
        observation = seen_in_training(batch, self.data_spec.fields)
        x_1 = self.coordinates.encode(batch[ACTION], observation)
        augmentation = noise.augmentation if self.training else None
        condition = self.encode(observation, augmentation)
        missed = self._estimation_errors(observation, augmentation)
        mask = batch["mask"] if self.config.mask_padding else torch.ones_like(batch["mask"])
        path, prefix_length = noise.path, noise.prefix_length
        if (repeats := self.config.noise_samples_per_observation) > 1:
            x_1, condition, mask, missed = (
                rows.repeat_interleave(repeats, dim=0) for rows in (x_1, condition, mask, missed)
            )
            path = path.map(lambda values: values.flatten(0, 1))
            prefix_length = None if prefix_length is None else prefix_length.flatten(0, 1)
        # If images are encoded, only their encoder runs in bfloat16: its 8 bits are too few for positions and actions.
        # Without images the network is all there is to speed up, so it stays under the autocast that training asked for.
        device = x_1.device.type
        with torch.autocast(device, enabled=self.config.vision is None and torch.is_autocast_enabled(device)):
            loss = self.model.loss(x_1, noise=path, condition=condition, mask=mask, prefix_length=prefix_length)
        return Loss(loss.errors + missed[:, None], loss.weight)

    def encode(self, observation: Mapping[str, Tensor], augmentation: Mapping[str, Tensor] | None = None) -> Condition:
        """Observations {key: (B, To, …)} in physical units to the condition (B, C). augmentation: of images, in training.

        What the policy estimates is taken from the observation, too: true in training, and otherwise ``with_estimates``.
        """
        values = {
            key: observation[key] if field.is_image else self.normalizer.normalize(key, observation[key])
            for key, field in self.data_spec.fields.items()
        }
        parts = [self.encoder(values, augmentation)] if self.encoder.condition_size else []
        if self.frame is not None:
            parts.append(self.frame.encode(observation, self.normalizer))
        return torch.cat(parts, dim=-1)

    def _estimation_errors(
        self, observation: Mapping[str, Tensor], augmentation: Mapping[str, Tensor] | None
    ) -> Tensor:
        """(B,), see ``ValueEstimator.errors``; rows without images have that of the last with images. 0 without estimates."""
        rows = max(len(values) for values in observation.values())
        if self.encoder.estimator is None:
            return torch.zeros(rows, device=self.model.device)
        features = self.encoder.encode_images(observation, augmentation)
        every = rows // len(features)
        true = {key: observation[key][::every] for key in self.estimated_spec.fields}
        with torch.autocast(features.device.type, enabled=False):
            errors = self.encoder.estimator.errors(features.float(), true, self.normalizer)
        return errors.repeat_interleave(every)

    # -- acting -------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def predict_chunk(
        self,
        observation: Mapping[str, np.ndarray],
        *,
        nfe: int | None = None,
        seed: int | Sequence[int] | None = None,
        prefix: np.ndarray | None = None,
        tail: np.ndarray | None = None,
        noise_scale: float | None = None,
    ) -> np.ndarray:
        """Actions (B, H, D) for observations {key: (B, To, …)}, both in physical units.

        seed: of the noise; a sequence has one seed per row, so that no row depends on the others. By default the noise comes
        from torch's global generator and differs from call to call: a robot that starts every chunk from the same noise
        gets stuck. prefix: (B, d, D) actions that are already committed, d at most ``longest_prefix``; they are returned
        unchanged. tail: (B, m, D) what the old chunk planned after them, d + m at most H; only guided methods use it, see
        ``real_time_chunking``. nfe, noise_scale: override the policy's own, see ``SamplingOptions``; 4 network evaluations
        by default. Raises ConfigurationError for an nfe, a prefix or a noise_scale that this policy does not admit,
        SpecMismatchError if observation, prefix or tail do not match the specification, or are not finite.
        """
        sampling = self.config.sampling.with_given(nfe=nfe, noise_scale=noise_scale)
        self.model.resolve_nfe(sampling)  # raises before anything is computed
        tensors = self._observation_tensors(observation)
        require_finite(tensors, self.observation_spec)
        batch = len(next(iter(tensors.values())))
        prefix, tail = (None if actions is None else np.asarray(actions) for actions in (prefix, tail))
        to_tensor = partial(action_tensor, batch=batch, size=self.action_spec.size, device=self.model.device)
        committed, planned = to_tensor("prefix", prefix), to_tensor("tail", tail)
        check_continuation(self, committed.shape[1], planned.shape[1])
        generators = row_generators(batch, seed)
        chunks = self.sample_chunks(tensors, sampling=sampling, generator=generators, prefix=committed, tail=planned)
        chunk = chunks.cpu().numpy()
        if prefix is not None:
            chunk[:, : prefix.shape[1]] = prefix
        return chunk

    def sample_chunks(
        self,
        observation: Mapping[str, Tensor],
        *,
        sampling: SamplingOptions,
        generator: Generators,
        prefix: Tensor | None = None,
        tail: Tensor | None = None,
    ) -> Chunk:
        """``predict_chunk`` for tensors on the policy's device, which are not checked."""
        observation = self.with_estimates(observation)
        condition = self.encode(observation)
        if any(actions is not None and actions.shape[1] for actions in (prefix, tail)):
            none = condition.new_empty(len(condition), 0, self.action_spec.size)
            prefix, tail = (none if x is None else self.coordinates.encode(x, observation) for x in (prefix, tail))
            method = PREFIX_METHODS[self.prefix_method]
            actions = method(self.model, condition, prefix=prefix, tail=tail, sampling=sampling, generator=generator)
        else:
            actions = self.model.sample(condition, sampling=sampling, generator=generator)
        return self.coordinates.decode(actions, observation)

    def with_estimates(self, observation: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The observation {key: (B, To, …)} and what the policy estimates from its images, the same for all To steps."""
        if self.encoder.estimator is None:
            return observation
        estimates = self.encoder.estimator(self.encoder.encode_images(observation), self.normalizer)
        steps = self.config.observation_steps
        repeated = {key: values[:, None].repeat_interleave(steps, dim=1) for key, values in estimates.items()}
        return {**observation, **repeated}

    def with_sampling(self, **options: Any) -> Self:
        """This policy with other ``SamplingOptions``, sharing its weights: ``policy.with_sampling(nfe=1)``.

        Raises ConfigurationError if they do not fit.
        """
        bound = shallow_copy(self)
        bound.config = replace(self.config, sampling=replace(self.config.sampling, **options))
        self.model.resolve_nfe(bound.config.sampling)
        return bound

    def with_options(self, **options: Any) -> Self:
        """This policy with other values of options that no weight depends on, such as ``n_action_steps``.

        It shares the weights. Raises ConfigurationError if the options do not fit together.
        """
        bound = shallow_copy(self)
        bound.config = replace(self.config, **options)
        bound.coordinates = find_coordinates(bound.config, self.data_spec, self.action_spec)
        bound.frame = None if bound.coordinates.frame is None else bound.coordinates.frame.to(self.model.device)
        bound.model = shallow_copy(self.model)
        bound.model.objective = bound.config.make_objective(clip_sample_range=self.normalizer.max_abs(ACTION))
        return bound

    def with_landmarks(self, poses: Mapping[str, Sequence[float]]) -> Self:
        """This policy with landmarks [x, y, angle] of its frame elsewhere, such as a goal; it shares the weights.

        Raises ConfigurationError for landmarks that it has not.
        """
        return self.with_options(frame=moved_landmarks(self.config.frame, poses))

    def out_of_range(self, observation: Mapping[str, np.ndarray]) -> dict[str, float]:
        """For each key that is no image, the fraction of values outside the range of the training data, or not finite."""
        tensors = self._observation_tensors(observation)
        return {
            key: self.normalizer.out_of_range(key, tensors[key], wraps=field.wraps)
            for key, field in self.observation_spec.values.items()
        }

    def _observation_tensors(self, observation: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        steps, device = self.config.observation_steps, self.model.device
        return observation_tensors(observation, self.observation_spec, steps=steps, device=device)

    # -- checkpointing --------------------------------------------------------------------------------------------------

    def save(
        self,
        path: str | Path,
        *,
        training: Mapping[str, Any] | None = None,
        sharded: bool = False,
        write_extra_files: Callable[[Path], None] | None = None,
    ) -> None:
        """Write a checkpoint directory.

        training: a description of the training, as JSON values. sharded, write_extra_files: see
        ``checkpoint.write_checkpoint``. Raises CheckpointError if it cannot be written.
        """
        write_checkpoint(
            path,
            kind=KIND,
            description={**self.describe(), "training": dict(training or {})},
            weights=self.state_dict(),
            sharded=sharded,
            write_extra_files=write_extra_files,
        )

    def describe(self) -> dict[str, Any]:
        """Everything but the weights, as JSON values."""
        return {
            "config": self.config.to_json(),
            "plugins": self.config.plugins(NETWORKS),
            "observation_spec": self.observation_spec.to_json(),
            **({"estimated_spec": self.estimated_spec.to_json()} if self.config.estimated else {}),
            "action_spec": self.action_spec.to_json(),
            "normalizer": self.normalizer.to_json(),
            "valid_nfe": "any" if self.valid_nfe is None else list(self.valid_nfe),
            "prefix_max": self.config.prefix_max,
            "action_limits": None if self.action_limits is None else self.action_limits.to_json(),
        }

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu") -> Self:
        """Read a checkpoint, or the best one of a run, ready to act. Raises CheckpointError if it cannot be read."""
        description, weights = read_checkpoint(path, kind=KIND)
        limits = description.get("action_limits")  # checkpoints of earlier versions have none
        try:
            policy = cls(
                PolicyConfig.from_json(description["config"]),
                ObservationSpec.from_json({**description["observation_spec"], **description.get("estimated_spec", {})}),
                ActionSpec.from_json(description["action_spec"]),
                Normalizer.from_json(description["normalizer"]),
                action_limits=None if limits is None else ActionLimits.from_json(limits),
            )
            if (valid := description["valid_nfe"]) != (own := policy.describe()["valid_nfe"]):
                raise ValueError(f"valid_nfe={valid}, but its objective admits {own}")
            policy.load_state_dict(weights)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, SpecMismatchError) as error:
            raise CheckpointError(f"{find_checkpoint(path)} does not describe a chunk policy: {error}") from error
        return policy.eval().to(device)
