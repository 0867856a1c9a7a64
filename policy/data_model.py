"""Generative models of points, images or angles: the loss, sampler and checkpoints of chunk policies, without a robot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from flowchunk.datasets.errors import CheckpointError, ConfigurationError, SpecMismatchError
from flowchunk.policy.checkpoint import find_checkpoint, read_checkpoint, write_checkpoint
from flowchunk.policy.diffusion.coupling import optimal_coupling
from flowchunk.policy.diffusion.objectives import Objective
from flowchunk.policy.flow import Loss
from flowchunk.policy.generative_model import GenerativeModel, ModelConfig, shallow_copy
from flowchunk.policy.image_augmentation import augment, sample_augmentation
from flowchunk.policy.networks import NETWORKS
from flowchunk.policy.networks.angles import AngleNetwork
from flowchunk.policy.networks.image_networks import IMAGE_NETWORKS
from flowchunk.policy.noise import Noise, PathNoise
from flowchunk.policy.normalizer import Normalizer
from flowchunk.policy.registry import Registry

KIND = "generative_model"
X, CONDITION = "x", "condition"
COUPLINGS = ("independent", "ot")

Labels = int | np.integer | Sequence[int] | np.ndarray | Tensor
"""One class for all samples, or (n,) a class for each."""


@dataclass(frozen=True)
class DataConfig(ModelConfig):
    """What a model of points, images or angles is made of; saved with it.

    shape: of one datum, (H, D) tokens or a (C, height, width) image. condition_size: length of the condition vector, 0 for
    none. classes: number of labels, 0 for none. label_dropout: how often training hides the label, from 0 to below 1;
    guidance needs it. is_wrapped: the data are angles in radians. coupling: "independent", or "ot" (minibatch optimal
    transport) for unconditional data. augment: small random shifts, rotations and scalings of images. For the others see
    ``ModelConfig``. Raises ConfigurationError for options that do not fit together.
    """

    shape: Sequence[int]
    condition_size: int = 0
    classes: int = 0
    is_wrapped: bool = False
    coupling: str = "independent"
    label_dropout: float = 0.1
    augment: bool = False

    def __post_init__(self) -> None:
        if self.coupling not in COUPLINGS:
            raise ConfigurationError(f"unknown coupling {self.coupling!r}; there are {', '.join(COUPLINGS)}")
        if self.coupling == "ot" and (self.condition_size or self.classes):
            raise ConfigurationError(
                "coupling=ot is for unconditional data: paired within a batch, the noise would depend on the "
                "condition, which it does not at inference (the samples would be skewed); use coupling=independent"
            )
        if self.coupling == "ot" and self.is_wrapped:
            raise ConfigurationError("coupling=ot uses Euclidean distances; angles need coupling=independent")
        if self.sampling.prefix_method is not None:
            raise ConfigurationError(f"prefix_method={self.sampling.prefix_method} is for chunk policies; leave it out")
        if not 0 <= self.label_dropout < 1:
            raise ConfigurationError(f"label_dropout={self.label_dropout} must be at least 0 and below 1")
        if self.is_wrapped and len(self.shape) != 2:
            raise ConfigurationError(f"angles must be tokens (H, D), not of shape {tuple(self.shape)}")
        if self.augment and len(self.shape) != 3:
            raise ConfigurationError("augment=true is only for images")
        self.make_objective(wrapped=self.is_wrapped)

    @property
    def networks(self) -> Registry[Callable[..., nn.Module]]:
        """The registry that has the network."""
        return IMAGE_NETWORKS if len(self.shape) == 3 and self.network in IMAGE_NETWORKS else NETWORKS

    def make_network(self) -> nn.Module:
        """The network that this configuration names. Raises ConfigurationError."""
        size = self.condition_size + self.classes + 1  # the last is for a hidden label, or none
        if self.network not in self.networks:
            known = (*NETWORKS, *(IMAGE_NETWORKS if len(self.shape) == 3 else ()))
            raise ConfigurationError(
                f"network {self.network!r} cannot make data of shape {tuple(self.shape)}; there are {', '.join(known)}"
            )
        make, options = self.networks[self.network], dict(self.network_options)
        try:
            if self.networks is IMAGE_NETWORKS:
                channels, height, _ = self.shape
                return make(channels=channels, size=height, condition_size=size, **options)
            horizon, width = self.token_shape
            if self.is_wrapped:
                return AngleNetwork(
                    lambda inputs: make(action_size=inputs, horizon=horizon, condition_size=size, **options),
                    angles=width,
                )
            return make(action_size=width, horizon=horizon, condition_size=size, **options)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"cannot make network {self.network!r}: {error}") from error

    @property
    def token_shape(self) -> tuple[int, int]:
        """(H, D) for the networks of action chunks: the rows of an image are its tokens."""
        if len(self.shape) == 2:
            return self.shape[0], self.shape[1]
        channels, height, width = self.shape
        return height, channels * width

    def make_layout(self) -> RowLayout | None:
        """Rows as tokens, for images and the networks of action chunks; None for data as they are."""
        if len(self.shape) != 3 or self.networks is IMAGE_NETWORKS:
            return None
        return RowLayout(self.shape[0], self.shape[2])

    @property
    def guidance_objection(self) -> str | None:
        """Why the model cannot be guided; None if it can."""
        if not self.classes:
            return "has no classes"
        return None if self.label_dropout else "was trained with label_dropout=0"


@dataclass(frozen=True)
class RowLayout:
    """Images (B, C, height, width) as tokens (B, height, C·width), one per row."""

    channels: int
    width: int

    def to_network(self, x: Tensor) -> Tensor:
        return x.movedim(1, 2).flatten(2)

    def to_data(self, x: Tensor) -> Tensor:
        return x.view(len(x), x.shape[1], self.channels, self.width).movedim(2, 1)


@dataclass(frozen=True, repr=False)
class DataNoise(Noise):
    """All random numbers of a training step. is_label_hidden: (B,) booleans. augmentation: (B, 4), of ``augment``."""

    path: PathNoise
    is_label_hidden: Tensor | None = None
    augmentation: Tensor | None = None


class DataModel(nn.Module):
    """A generative model of points, images or angles, conditioned on a class, a vector, or nothing."""

    default_nfe = 16

    def __init__(self, config: DataConfig, normalizer: Normalizer) -> None:
        super().__init__()
        self.config = config
        self.model = GenerativeModel(
            config.make_network(),
            config.make_objective(clip_sample_range=normalizer.max_abs(X), wrapped=config.is_wrapped),
            normalizer,
            key=X,
            shape=tuple(config.shape) if config.networks is IMAGE_NETWORKS else config.token_shape,
            default_nfe=self.default_nfe,
            layout=config.make_layout(),
            guidance_objection=config.guidance_objection,
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
    def normalizer(self) -> Normalizer:
        """The normalizer of its data and conditions."""
        return self.model.normalizer

    # -- training -----------------------------------------------------------------------------------------------------

    def sample_noise(self, batch_size: int, generator: torch.Generator) -> DataNoise:
        """All random numbers of a training step, a row per sample."""
        config = self.config
        noise = DataNoise(self.model.sample_noise(batch_size, generator))
        if config.classes:
            hidden = torch.rand(batch_size, generator=generator) < config.label_dropout
            noise = replace(noise, is_label_hidden=hidden)
        if config.augment:
            noise = replace(noise, augmentation=sample_augmentation(batch_size, generator))
        return noise

    def forward(self, batch: Mapping[str, Tensor], noise: DataNoise) -> tuple[Tensor, Tensor]:
        """The sum of the samples' losses, and their number; see ``loss``."""
        return self.loss(batch, noise).sums()

    def loss(self, batch: Mapping[str, Tensor], noise: DataNoise) -> Loss:
        """The mean squared error of each sample, (B,).

        batch: ``x`` (B, *shape), unnormalized, and ``condition`` (B, condition_size) or ``label`` (B,) if the model has
        one.
        """
        label = batch.get("label")
        if label is not None and noise.is_label_hidden is not None:
            label = torch.where(noise.is_label_hidden, self.config.classes, label)
        condition = self.encode(len(batch[X]), batch.get(CONDITION), label)
        return self.model.loss(self._augmented(batch, noise), noise=noise.path, condition=condition)

    @property
    def pair_noise(self) -> Callable[[Mapping[str, Tensor], DataNoise], DataNoise] | None:
        """With coupling=ot, a function of a whole batch and its noise that reorders x_0 to match the data; otherwise None."""
        return self._pair_noise if self.config.coupling == "ot" else None

    def _pair_noise(self, batch: Mapping[str, Tensor], noise: DataNoise) -> DataNoise:
        x_1 = self.model.normalize(self._augmented(batch, noise.map(lambda values: values.to(batch[X].device))))
        return replace(noise, path=replace(noise.path, x_0=optimal_coupling(x_0=noise.path.x_0.to(x_1), x_1=x_1)))

    def _augmented(self, batch: Mapping[str, Tensor], noise: DataNoise) -> Tensor:
        return batch[X] if noise.augmentation is None else augment(batch[X], noise.augmentation)

    def encode(self, batch_size: int, condition: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        """The network's condition (B, condition_size + classes + 1): vector and one-hot label; ``classes`` is "no label"."""
        label = torch.full((batch_size,), self.config.classes, device=self.model.device) if label is None else label
        one_hot = nn.functional.one_hot(label, self.config.classes + 1).float()
        if condition is None:
            return one_hot
        return torch.cat([self.normalizer.normalize(CONDITION, condition), one_hot], dim=-1)

    # -- sampling -----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def generate(
        self,
        n: int,
        *,
        condition: Tensor | None = None,
        label: Labels | None = None,
        guidance: float | None = None,
        nfe: int | None = None,
        seed: int = 0,
        callback: Callable[[Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """n samples (n, *shape), unnormalized.

        condition: (n, condition_size), for models that need one. label: one class for all or (n,) a class for each; None for
        any class. guidance, nfe: override the model's own, see ``SamplingOptions``; 16 network evaluations by default.
        callback: called with (t, unnormalized x) at every time. Raises ConfigurationError for what the model does not
        admit.
        """
        device = self.model.device
        condition = None if condition is None else condition.to(device)
        labels = None if label is None else self._labels(n, label).to(device)
        self._check_condition(n, condition)
        return self.model.sample(
            self.encode(n, condition, labels),
            sampling=self.config.sampling.with_given(guidance=guidance, nfe=nfe),
            generator=torch.Generator().manual_seed(seed),
            unconditional=self.encode(n, condition),
            callback=callback,
        )

    def with_sampling(self, **options: Any) -> Self:
        """This model with other ``SamplingOptions``, sharing its weights. Raises ConfigurationError if they do not fit."""
        bound = shallow_copy(self)
        bound.config = replace(self.config, sampling=replace(self.config.sampling, **options))
        self.model.resolve_nfe(bound.config.sampling)
        return bound

    def _labels(self, n: int, label: Labels) -> Tensor:
        classes, labels = self.config.classes, torch.as_tensor(label)
        if not classes:
            raise ConfigurationError(f"label={label}: this model has no classes")
        if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
            raise ConfigurationError(f"label={label} must be integers from 0 to {classes - 1}")
        if ((labels < 0) | (labels >= classes)).any():
            raise ConfigurationError(f"label={label} must be from 0 to {classes - 1}")
        if labels.ndim and labels.shape != (n,):
            raise ConfigurationError(f"labels of shape {tuple(labels.shape)} for {n} samples: give {n}, or one for all")
        return labels.long().expand(n)

    def _check_condition(self, n: int, condition: Tensor | None) -> None:
        size = self.config.condition_size
        given = None if condition is None else tuple(condition.shape)
        if given != (expected := (n, size) if size else None):
            raise ConfigurationError(f"this model needs a condition of shape {expected}, but got {given}")

    # -- checkpointing --------------------------------------------------------------------------------------------------

    def save(
        self,
        path: str | Path,
        *,
        training: Mapping[str, Any] | None = None,
        write_extra_files: Callable[[Path], None] | None = None,
    ) -> None:
        """Write a checkpoint directory; see ``ChunkPolicy.save``. Raises CheckpointError if it cannot be written."""
        description = {**self.describe(), "training": dict(training or {})}
        write_checkpoint(
            path, kind=KIND, description=description, weights=self.state_dict(), write_extra_files=write_extra_files
        )

    def describe(self) -> dict[str, Any]:
        """Everything but the weights, as JSON values."""
        valid = self.objective.valid_nfe
        return {
            "config": self.config.to_json(),
            "plugins": self.config.plugins(self.config.networks),
            "normalizer": self.normalizer.to_json(),
            "valid_nfe": "any" if valid is None else list(valid),
        }

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu") -> Self:
        """Read a checkpoint, or the best one of a run, ready to generate. Raises CheckpointError if it cannot be read."""
        description, weights = read_checkpoint(path, kind=KIND)
        try:
            model = cls(DataConfig.from_json(description["config"]), Normalizer.from_json(description["normalizer"]))
            model.load_state_dict(weights)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, SpecMismatchError) as error:
            raise CheckpointError(f"{find_checkpoint(path)} does not describe a generative model: {error}") from error
        return model.eval().to(device)
