"""A chunk policy: from what the robot saw to the actions it should take next.

``ChunkPolicy.load(path).predict_chunk(observation, nfe=4, seed=0)`` is all that deployment needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from flowchunk.datasets.errors import CheckpointError, ConfigurationError, SpecMismatchError
from flowchunk.datasets.specs import ActionSpec, ObservationSpec
from flowchunk.policy.checkpoint import find_checkpoint, read_checkpoint, write_checkpoint
from flowchunk.policy.diffusers_sampling import DIFFUSERS_SOLVERS
from flowchunk.policy.encoders.observation import ObservationEncoder
from flowchunk.policy.flow import prefix_mask
from flowchunk.policy.networks import NETWORKS
from flowchunk.policy.normalizer import Normalizer
from flowchunk.policy.objectives import objective_of
from flowchunk.policy.relative_actions import check_relative_to, reference
from flowchunk.policy.solvers import Generators, draw_normal

KIND = "chunk_policy"
ACTION = "action"


@dataclass(frozen=True)
class PolicyConfig:
    """What a chunk policy is made of; saved with it.

    horizon: H actions predicted; n_action_steps: how many of them are executed before looking again. prefix_max: the
    longest prefix of already committed actions that training shows (0: none). mask_padding: leave the held actions
    behind an episode's end out of the loss. relative_to: for each action dimension the observed value, as KEY.INDEX,
    that the network predicts it relative to, or None; policies take and give absolute actions all the same. vision,
    vision_options: the network that looks at pictures, see ``ObservationEncoder``. noise_draws: how many times each
    encoded observation is learned from, with noise and a time of their own (default: 4 with pictures, whose encoding
    is what costs, else 1). noise_scale: what acting multiplies the starting noise by: below 1, chunks are more alike and
    nearer to the mean one. objective, schedule, time_density, time_density_options, snr_cap, solver, eta: see
    ``make_objective``.
    """

    network: str = "mlp"
    network_options: Mapping[str, Any] = field(default_factory=dict)
    observation_steps: int = 2
    horizon: int = 16
    n_action_steps: int = 8
    objective: str = "flow"
    schedule: str | None = None
    time_density: str = "beta"
    time_density_options: Mapping[str, float] = field(default_factory=dict)
    snr_cap: float | None = None
    solver: str | None = None
    eta: float = 1.0
    prefix_max: int = 0
    mask_padding: bool = False
    relative_to: Sequence[str | None] | None = None
    vision: str | None = None
    vision_options: Mapping[str, Any] = field(default_factory=dict)
    noise_draws: int | None = None
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        _require_known("network", self.network, NETWORKS)
        objective = objective_of(self)
        if self.observation_steps < 1 or not 1 <= self.n_action_steps <= self.horizon:
            raise ConfigurationError(
                f"observation_steps={self.observation_steps}, horizon={self.horizon}, "
                f"n_action_steps={self.n_action_steps}: expected 1 <= n_action_steps <= horizon and 1 <= observation_steps"
            )
        if not 0 <= self.prefix_max < self.horizon:
            raise ConfigurationError(f"prefix_max={self.prefix_max} must be from 0 to horizon - 1 = {self.horizon - 1}")
        if self.noise_draws is not None and self.noise_draws < 1:
            raise ConfigurationError(f"noise_draws={self.noise_draws} must be at least 1")
        if self.prefix_max and objective.valid_nfe is not None:
            raise ConfigurationError(f"prefix_max={self.prefix_max}: objective={self.objective} cannot take a prefix")
        if self.prefix_max and objective.solver in DIFFUSERS_SOLVERS:
            raise ConfigurationError(
                f"prefix_max={self.prefix_max}: solver={objective.solver} cannot keep a prefix; use ddim or ancestral"
            )
        if self.noise_scale != 1 and objective.valid_nfe is not None:
            raise ConfigurationError(
                f"noise_scale={self.noise_scale}: objective={self.objective} does not start from noise; leave it out"
            )
        check_noise_scale(self.noise_scale)

    @property
    def draws_a_sample(self) -> int:
        """Noise draws for each encoded observation."""
        return self.noise_draws or (1 if self.vision is None else 4)


def check_noise_scale(noise_scale: float) -> None:
    """Raise ConfigurationError unless it is a finite number from 0 up."""
    if not 0 <= noise_scale < math.inf:
        raise ConfigurationError(
            f"noise_scale={noise_scale} must be at least 0, and finite; 1 is the noise of training"
        )


class ChunkPolicy(nn.Module):
    """Observation histories in raw units to chunks of actions in physical units, by conditional flow matching or a rival."""

    def __init__(
        self, config: PolicyConfig, observation_spec: ObservationSpec, action_spec: ActionSpec, normalizer: Normalizer
    ) -> None:
        super().__init__()
        self.config, self.observation_spec, self.action_spec = config, observation_spec, action_spec
        self.objective = objective_of(config, x_1_limit=normalizer.reach(ACTION))
        self.valid_nfe = self.objective.valid_nfe  # None: any
        self.normalizer = normalizer
        if config.relative_to is not None:
            check_relative_to(config.relative_to, observation_spec, action_spec.size)
        self.encoder = ObservationEncoder(
            observation_spec,
            observation_steps=config.observation_steps,
            vision=config.vision,
            options=config.vision_options,
        )
        try:
            self.network = NETWORKS[config.network](
                action_size=action_spec.size,
                horizon=config.horizon,
                condition_size=self.encoder.condition_size,
                **config.network_options,
            )
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"cannot make network {config.network!r}: {error}") from error

    # -- training -----------------------------------------------------------------------------------------------------

    pair_noise = None  # chunks are conditioned: their noise is independent of them

    def draw(self, batch_size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Everything random in one training step, a row a sample: noise (B, H, D), time (B,), prefix length (B,), …, and
        where to look in pictures; with M > 1 noise draws a sample, (B, M, H, D), (B, M), ….
        """
        config, rows = self.config, batch_size * self.config.draws_a_sample
        draws = self.objective.draw((rows, config.horizon, self.action_spec.size), generator)
        if config.prefix_max:  # P(0) = 1/2, the rest uniform
            length = torch.randint(1, config.prefix_max + 1, (rows,), generator=generator)
            draws["prefix_length"] = length * (torch.rand(rows, generator=generator) < 0.5)
        if rows > batch_size:
            draws = {name: values.reshape(batch_size, -1, *values.shape[1:]) for name, values in draws.items()}
        return draws | self.encoder.draw(batch_size, generator)

    def forward(self, batch: Mapping[str, Tensor], draws: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The loss as its two halves: the weighted sum of squared errors, and the sum of weights.

        batch: ``observation.KEY`` (B, To, …) and ``action`` (B, H, D) in physical units, ``mask`` (B, H). Observations
        are encoded once, and learned from with each of their M noise draws.
        """
        observation = {key: batch[f"observation.{key}"] for key in self.observation_spec.fields}
        seen, noise = self.encoder.split(draws)
        each = {
            "x_1": self.to_network(batch[ACTION], observation),
            "condition": self.encode(observation, seen if self.training else None),
            "mask": batch["mask"],
        }
        if (times := self.config.draws_a_sample) > 1:
            each = {name: rows.repeat_interleave(times, dim=0) for name, rows in each.items()}
            noise = {name: rows.flatten(0, 1) for name, rows in noise.items()}
        prefix_length = noise.get("prefix_length")
        # In bfloat16 only what sees may compute: its 8 bits are too few for places and actions.
        device = each["x_1"].device.type
        with torch.autocast(device, enabled=self.config.vision is None and torch.is_autocast_enabled(device)):
            errors = self.objective.errors(
                self.network, each["x_1"], draws=noise, condition=each["condition"], prefix_length=prefix_length
            ).mean(-1)  # (B · M, H)
        weight = each["mask"].to(errors.dtype) if self.config.mask_padding else torch.ones_like(errors)
        if prefix_length is not None:
            weight = weight * ~prefix_mask(prefix_length, self.config.horizon)
        return (errors * weight).sum(), weight.sum()

    def encode(self, observation: Mapping[str, Tensor], draws: Mapping[str, Tensor] | None = None) -> Tensor:
        """Raw observations {key: (B, To, …)} to the condition (B, C). draws: where to look in pictures while learning."""
        values = {
            key: value if self.observation_spec.fields[key].is_image else self.normalizer.normalize(key, value)
            for key, value in observation.items()
        }
        condition: Tensor = self.encoder(values, draws)
        return condition

    # -- acting -------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def predict_chunk(
        self,
        observation: Mapping[str, np.ndarray],
        *,
        nfe: int | None = None,
        seed: int | Sequence[int] = 0,
        prefix: np.ndarray | None = None,
        noise_scale: float | None = None,
    ) -> np.ndarray:
        """Actions (B, H, D) in physical units for observations {key: (B, To, …)} in raw units.

        nfe: network evaluations, 4 by default. seed: of the noise; a sequence gives every row its own, so that a row
        does not depend on its neighbours. prefix: (B, d, D) actions already committed, for policies trained with them;
        they come back unchanged. noise_scale: what the starting noise is multiplied by (default: the configuration's).
        Raises ConfigurationError for an nfe, a prefix or a noise_scale that this policy does not admit, SpecMismatchError
        where the observation is not what the policy was trained on, or not finite.
        """
        times = self.times(nfe)
        if noise_scale is not None and noise_scale != self.config.noise_scale:
            replace(self.config, noise_scale=noise_scale)  # refuses what does not fit
        tensors = self._observation_tensors(observation)
        _require_finite(tensors, self.observation_spec)
        batch = len(next(iter(tensors.values())))
        device = self.normalizer.get_buffer("action_offset").device
        generators = seeded_rows(batch, seed)
        x_0 = draw_normal((batch, self.config.horizon, self.action_spec.size), generators).to(device)
        x_0 = x_0 * (self.config.noise_scale if noise_scale is None else noise_scale)
        known = {} if prefix is None else {"prefix": self.to_network(self._prefix_tensor(prefix, batch), tensors)}
        x_1 = self.objective.generate(
            self.network, x_0, times, condition=self.encode(tensors), generator=generators, **known
        )
        chunk = self.from_network(x_1, tensors).cpu().numpy()
        if prefix is not None:
            chunk[:, : prefix.shape[1]] = prefix
        return chunk

    def to_network(self, actions: Tensor, observation: Mapping[str, Tensor]) -> Tensor:
        """Physical actions (B, h, D), the first h of chunks, to what the network predicts."""
        if self.config.relative_to is not None:
            actions = actions - reference(observation, self.config.relative_to)
        known = actions.shape[1]  # relative chunks have a scaling for each place in the chunk, so they go in whole
        whole = torch.nn.functional.pad(actions, (0, 0, 0, self.config.horizon - known))
        return self.normalizer.normalize(ACTION, whole)[:, :known]

    def from_network(self, x: Tensor, observation: Mapping[str, Tensor]) -> Tensor:
        """The inverse of ``to_network``, for whole chunks (B, H, D)."""
        actions = self.normalizer.denormalize(ACTION, x)
        return actions if self.config.relative_to is None else actions + reference(observation, self.config.relative_to)

    def times(self, nfe: int | None) -> Tensor:
        """The time grid for so many evaluations. Raises ConfigurationError where this policy does not admit them."""
        nfe = nfe if nfe is not None else (self.valid_nfe or (4,))[0]
        if self.valid_nfe is not None and nfe not in self.valid_nfe:
            raise ConfigurationError(f"nfe={nfe}: this policy was trained for {list(self.valid_nfe)} evaluations alone")
        try:
            return self.objective.times(nfe)
        except ValueError as error:
            raise ConfigurationError(str(error)) from error

    def with_options(self, **options: Any) -> Self:
        """This policy with other options of its configuration that its weights do not depend on, such as ``solver`` or
        ``noise_scale``. Raises ConfigurationError for what does not fit.
        """
        self.config = replace(self.config, **options)
        self.objective = objective_of(self.config, x_1_limit=self.normalizer.reach(ACTION))
        return self

    def out_of_range(self, observation: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Per key that is no picture, the fraction of values outside the range of the training data, or not finite."""
        tensors = self._observation_tensors(observation)
        return {
            key: self.normalizer.out_of_range(key, tensors[key], wraps=field.wraps)
            for key, field in self.observation_spec.values.items()
        }

    def _observation_tensors(self, observation: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        fields = self.observation_spec.fields
        if missing := fields.keys() - observation.keys():
            raise SpecMismatchError(
                f"the policy needs the observations {sorted(fields)}, but {sorted(missing)} are missing"
            )
        tensors, batches = {}, set()
        for key, spec in fields.items():
            # A copy, because torch wants to be able to write.
            value = np.array(observation[key], dtype=None if spec.is_image else np.float32)
            if value.shape[1:] != (self.config.observation_steps, *spec.shape):
                raise SpecMismatchError(
                    f"observation {key!r} must be (B, {self.config.observation_steps}, {', '.join(map(str, spec.shape))}), "
                    f"but is {value.shape}: batch first, then the last {self.config.observation_steps} frames"
                    + (", channels last" if spec.is_image else "")
                )
            if spec.is_image and value.dtype != np.uint8:
                raise SpecMismatchError(
                    f"observation {key!r} is a picture and must be uint8 from 0 to 255, but is {value.dtype} from "
                    f"{value.min():g} to {value.max():g}; multiply pictures in [0, 1] by 255"
                )
            batches.add(len(value))
            tensors[key] = torch.as_tensor(value, device=self.normalizer.get_buffer("action_offset").device)
        if len(batches) != 1:
            raise SpecMismatchError(f"observations disagree about the batch size: {sorted(batches)}")
        return tensors

    def _prefix_tensor(self, prefix: np.ndarray, batch: int) -> Tensor:
        if prefix.ndim != 3 or (len(prefix), prefix.shape[2]) != (batch, self.action_spec.size):
            raise SpecMismatchError(f"prefix must be ({batch}, d, {self.action_spec.size}), but is {prefix.shape}")
        if prefix.shape[1] > self.config.prefix_max:
            raise ConfigurationError(
                f"a prefix of {prefix.shape[1]} actions was given, but this policy was trained with prefix_max="
                f"{self.config.prefix_max}; train with policy.prefix_max={prefix.shape[1]}"
            )
        return torch.tensor(prefix, dtype=torch.float32, device=self.normalizer.get_buffer("action_offset").device)

    # -- keeping ------------------------------------------------------------------------------------------------------

    def save(
        self,
        path: str | Path,
        *,
        training: Mapping[str, Any] | None = None,
        sharded: bool = False,
        write_more: Callable[[Path], None] | None = None,
    ) -> None:
        """Write a checkpoint directory. training: what to remember of how it came about; for the other options see
        ``checkpoint.write_checkpoint``. Raises CheckpointError where it cannot be written.
        """
        write_checkpoint(
            path,
            kind=KIND,
            description={**self.describe(), "training": dict(training or {})},
            weights=self.state_dict(),
            sharded=sharded,
            write_more=write_more,
        )

    def describe(self) -> dict[str, Any]:
        """All of the policy but its weights, as JSON takes it."""
        return {
            "config": asdict(self.config),
            "observation_spec": self.observation_spec.to_json(),
            "action_spec": self.action_spec.to_json(),
            "normalizer": self.normalizer.to_json(),
            "valid_nfe": "any" if self.valid_nfe is None else list(self.valid_nfe),
            "prefix_max": self.config.prefix_max,
        }

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu") -> Self:
        """Read a checkpoint or the best one of a run, ready to act. Raises CheckpointError."""
        description, weights = read_checkpoint(path, kind=KIND)
        try:
            policy = cls(
                PolicyConfig(**description["config"]),
                ObservationSpec.from_json(description["observation_spec"]),
                ActionSpec.from_json(description["action_spec"]),
                Normalizer.from_json(description["normalizer"]),
            )
            valid = description["valid_nfe"]
            policy.valid_nfe = None if valid == "any" else tuple(valid)
            policy.load_state_dict(weights)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, SpecMismatchError) as error:
            raise CheckpointError(f"{find_checkpoint(path)} does not describe a chunk policy: {error}") from error
        return policy.eval().to(device)


def _require_finite(tensors: Mapping[str, Tensor], spec: ObservationSpec) -> None:
    for key in spec.values:
        if not tensors[key].isfinite().all():
            raise SpecMismatchError(
                f"observation {key!r} holds values that are not finite (NaN or infinite): no action follows from it; look "
                "at the sensor, or hold still"
            )


def seeded_rows(batch: int, seed: int | Sequence[int]) -> Generators:
    """One generator for the batch, or one a row. Raises ConfigurationError where the seeds are not as many as the rows."""
    if isinstance(seed, int | np.integer):
        return torch.Generator().manual_seed(int(seed))
    if len(seed) != batch:
        raise ConfigurationError(
            f"{len(seed)} seeds were given for a batch of {batch}; give one a row, or a single one"
        )
    return [torch.Generator().manual_seed(int(s)) for s in seed]


def _require_known(label: str, name: str, known: Mapping[str, Any]) -> None:
    if name not in known:
        raise ConfigurationError(f"unknown {label} {name!r}; there are {', '.join(known)}")
