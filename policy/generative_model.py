"""A model of any data, toys or pictures: the chunk policy's loss, sampler and checkpoints, without a robot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from flowchunk.datasets.errors import CheckpointError, ConfigurationError, SpecMismatchError
from flowchunk.policy.checkpoint import find_checkpoint, read_checkpoint, write_checkpoint
from flowchunk.policy.coupling import optimal_coupling
from flowchunk.policy.flow import guided
from flowchunk.policy.networks import NETWORKS
from flowchunk.policy.networks.angles import AngleNetwork
from flowchunk.policy.networks.pictures import PICTURE_NETWORKS
from flowchunk.policy.normalizer import Normalizer
from flowchunk.policy.objectives import Objective, objective_of
from flowchunk.policy.picture_augmentation import augment, draw_augmentation

KIND = "generative_model"
X, CONDITION = "x", "condition"
COUPLINGS = ("independent", "ot")
DEFAULT_NFE = 16

Labels = int | np.integer | Sequence[int] | np.ndarray | Tensor
"""A class for all, or one for each."""


@dataclass(frozen=True)
class GenerativeConfig:
    """What a generative model is made of; saved with it.

    shape: of one datum, (H, D) tokens or (C, height, width) pictures. condition_size: of a known vector, 0 for none.
    classes: of labels, 0 for none; label_dropout: how often training hides the label, which guidance needs. is_wrapped: the
    data are angles in radians. coupling: independent, or ot for unconditional data. augment: small random shifts,
    turns and scalings of pictures. For the others see ``make_objective``.
    """

    shape: Sequence[int]
    condition_size: int = 0
    classes: int = 0
    is_wrapped: bool = False
    network: str = "mlp"
    network_options: Mapping[str, Any] = field(default_factory=dict)
    objective: str = "flow"
    schedule: str | None = None
    time_density: str = "uniform"
    time_density_options: Mapping[str, float] = field(default_factory=dict)
    snr_cap: float | None = None
    solver: str | None = None
    eta: float = 1.0
    coupling: str = "independent"
    label_dropout: float = 0.1
    augment: bool = False

    def __post_init__(self) -> None:
        if self.coupling not in COUPLINGS:
            raise ConfigurationError(f"unknown coupling {self.coupling!r}; there are {', '.join(COUPLINGS)}")
        if self.coupling == "ot" and (self.condition_size or self.classes):
            raise ConfigurationError(
                "coupling=ot is for unconditional data: paired within a batch, the noise would come to depend on the "
                "condition, which it does not at inference (the samples would be skewed); use coupling=independent"
            )
        if self.coupling == "ot" and self.is_wrapped:
            raise ConfigurationError("coupling=ot measures straight distances; angles need coupling=independent")
        if not 0 <= self.label_dropout < 1:
            raise ConfigurationError(f"label_dropout={self.label_dropout} must be at least 0 and below 1")
        if self.is_wrapped and len(self.shape) != 2:
            raise ConfigurationError(f"angles come as tokens (H, D), not in the shape {tuple(self.shape)}")
        if self.augment and len(self.shape) != 3:
            raise ConfigurationError("augment=true is for pictures alone")
        self.make_objective()

    def make_objective(self, *, x_1_limit: float | None = None) -> Objective:
        """The objective that this configuration names. Raises ConfigurationError."""
        return objective_of(self, x_1_limit=x_1_limit, wrapped=self.is_wrapped)

    def make_network(self) -> nn.Module:
        """The network that this configuration names. Raises ConfigurationError."""
        size = self.condition_size + self.classes + 1  # the last says that the class is hidden, or that there is none
        networks = {**NETWORKS, **(PICTURE_NETWORKS if len(self.shape) == 3 else {})}
        if self.network not in networks:
            raise ConfigurationError(f"network {self.network!r} cannot make data of shape {tuple(self.shape)}; there are "
                                     f"{', '.join(networks)}")  # fmt: skip
        make, options = networks[self.network], dict(self.network_options)
        try:
            if self.network in PICTURE_NETWORKS:
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
        """(H, D) as the networks of action chunks see it: a picture's rows are its tokens."""
        if len(self.shape) == 2:
            return self.shape[0], self.shape[1]
        channels, height, width = self.shape
        return height, channels * width


class GenerativeModel(nn.Module):
    """Noise to data, for a class, a known vector, or nothing at all."""

    def __init__(self, config: GenerativeConfig, normalizer: Normalizer) -> None:
        super().__init__()
        self.config, self.normalizer = config, normalizer
        self.objective = config.make_objective(x_1_limit=normalizer.reach(X))
        self.network = config.make_network()

    # -- training -----------------------------------------------------------------------------------------------------

    def draw(self, batch_size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Everything random in one training step, a row a sample."""
        config = self.config
        draws = self.objective.draw((batch_size, *self._network_shape), generator)
        if config.classes:
            draws["is_hidden"] = torch.rand(batch_size, generator=generator) < config.label_dropout
        if config.augment:
            draws["augmentation"] = draw_augmentation(batch_size, generator)
        return draws

    def forward(self, batch: Mapping[str, Tensor], draws: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The sum of the samples' losses, and their number. batch: ``x``, ``condition`` or ``label``."""
        losses = self.losses(batch, draws)
        return losses.sum(), torch.as_tensor(float(len(losses)), device=losses.device)

    def losses(self, batch: Mapping[str, Tensor], draws: Mapping[str, Tensor]) -> Tensor:
        """(B,) mean squared error of each sample."""
        x_1 = self._data(batch, draws)
        label = batch.get("label")
        if label is not None:
            label = torch.where(draws["is_hidden"], self.config.classes, label)
        condition = self.encode(len(x_1), batch.get(CONDITION), label)
        return self.objective.errors(self.network, x_1, draws=draws, condition=condition).flatten(1).mean(1)

    @property
    def pair_noise(self) -> Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]] | None:
        """With coupling=ot, what gives the draws of a whole batch back with each noise at its datum; else None."""
        return self._pair_noise if self.config.coupling == "ot" else None

    def _pair_noise(self, batch: Mapping[str, Tensor], draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x_1 = self._data(batch, {name: value.to(batch[X].device) for name, value in draws.items()})
        return {**draws, "x_0": optimal_coupling(draws["x_0"].to(x_1), x_1)}

    def _data(self, batch: Mapping[str, Tensor], draws: Mapping[str, Tensor]) -> Tensor:
        """x_1 as the network is to make it."""
        x_1 = self.normalizer.normalize(X, batch[X])
        return self._as_network_sees(augment(x_1, draws["augmentation"]) if self.config.augment else x_1)

    def encode(self, batch_size: int, condition: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        """What the network knows: (B, condition_size + classes + 1); the label ``classes`` stands for none."""
        device = self.normalizer.get_buffer("x_offset").device
        label = torch.full((batch_size,), self.config.classes, device=device) if label is None else label
        known = nn.functional.one_hot(label, self.config.classes + 1).float()
        return known if condition is None else torch.cat([self.normalizer.normalize(CONDITION, condition), known], -1)

    # -- generating ---------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def generate(
        self,
        n: int,
        *,
        condition: Tensor | None = None,
        label: Labels | None = None,
        guidance: float = 1.0,
        nfe: int | None = None,
        seed: int = 0,
        callback: Callable[[Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """n data (n, *shape) in their own units.

        condition: (n, condition_size), for models that need one. label: a class for all or (n,) one for each; None: the
        class is left open. guidance: beyond 1, more typical of the class, at two network calls a step. nfe: network
        calls, 16 by default. callback: called with (t, x in its own units) at every instant. Raises ConfigurationError.
        """
        device = self.normalizer.get_buffer("x_offset").device
        condition = None if condition is None else condition.to(device)
        labels = None if label is None else self._labels(n, label).to(device)
        self._check_condition(n, condition)
        times = self.times(nfe, guidance=guidance)
        generator = torch.Generator().manual_seed(seed)
        x_0 = self.objective.path.noise((n, *self._network_shape), generator=generator).to(device)
        network: Any = self.network
        if guidance != 1.0:
            network = guided(network, guidance=guidance, without=self.encode(n, condition))
        told = {} if callback is None else {"callback": lambda t, x: callback(t, self._own_units(x))}
        known = self.encode(n, condition, labels)
        x_1 = self.objective.generate(network, x_0, times, condition=known, generator=generator, **told)
        return self._own_units(x_1)

    def times(self, nfe: int | None, *, guidance: float = 1.0) -> Tensor:
        """The time grid for so many network calls. Raises ConfigurationError where this model does not admit them."""
        passes = 1 if guidance == 1.0 else 2
        if passes == 2 and not (self.config.classes and self.config.label_dropout):
            why = "was trained with label_dropout=0" if self.config.classes else "knows no classes"
            raise ConfigurationError(
                f"guidance={guidance}: this model {why}, so there is nothing to guide it away from"
            )
        if nfe is None:
            nfe = passes * (self.objective.valid_nfe or (DEFAULT_NFE // passes,))[0]
        if nfe % passes:
            raise ConfigurationError(f"nfe={nfe}: with guidance each step costs two network calls; give an even number")
        try:
            return self.objective.times(nfe // passes)
        except ValueError as error:
            raise ConfigurationError(str(error)) from error

    def with_solver(self, solver: str) -> Self:
        """This model, generating with another solver. Raises ConfigurationError where it does not fit the objective."""
        self.config = replace(self.config, solver=solver)
        self.objective = self.config.make_objective(x_1_limit=self.normalizer.reach(X))
        return self

    def _labels(self, n: int, label: Labels) -> Tensor:
        classes, labels = self.config.classes, torch.as_tensor(label)
        if not classes:
            raise ConfigurationError(f"label={label}: this model knows no classes")
        if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
            raise ConfigurationError(f"label={label} must be whole numbers, from 0 to {classes - 1}")
        if ((labels < 0) | (labels >= classes)).any():
            raise ConfigurationError(f"label={label} must be from 0 to {classes - 1}")
        if labels.ndim and labels.shape != (n,):
            raise ConfigurationError(f"labels of shape {tuple(labels.shape)} for {n} data: give {n}, or one for all")
        return labels.long().expand(n)

    def _check_condition(self, n: int, condition: Tensor | None) -> None:
        size = self.config.condition_size
        given = None if condition is None else tuple(condition.shape)
        if given != (expected := (n, size) if size else None):
            raise ConfigurationError(f"this model needs a condition of shape {expected}, but got {given}")

    def _as_network_sees(self, x: Tensor) -> Tensor:
        """Pictures (B, C, height, width) as rows (B, height, C·width) for the networks of action chunks."""
        is_of_rows = len(self.config.shape) == 3 and self.config.network not in PICTURE_NETWORKS
        return x.movedim(1, 2).flatten(2) if is_of_rows else x

    def _own_units(self, x: Tensor) -> Tensor:
        """The inverse of what the network sees, in the data's units."""
        if x.ndim == len(self.config.shape):  # rows
            channels, height, width = self.config.shape
            x = x.view(len(x), height, channels, width).movedim(2, 1)
        return self.normalizer.denormalize(X, x)

    @property
    def _network_shape(self) -> tuple[int, ...]:
        return tuple(self.config.shape) if self.config.network in PICTURE_NETWORKS else self.config.token_shape

    # -- keeping ------------------------------------------------------------------------------------------------------

    def save(
        self,
        path: str | Path,
        *,
        training: Mapping[str, Any] | None = None,
        write_more: Callable[[Path], None] | None = None,
    ) -> None:
        """Write a checkpoint directory. Raises CheckpointError where it cannot be written."""
        description = {**self.describe(), "training": dict(training or {})}
        write_checkpoint(path, kind=KIND, description=description, weights=self.state_dict(), write_more=write_more)

    def describe(self) -> dict[str, Any]:
        """All of the model but its weights, as JSON takes it."""
        valid = self.objective.valid_nfe
        return {
            "config": asdict(self.config),
            "normalizer": self.normalizer.to_json(),
            "valid_nfe": "any" if valid is None else list(valid),
        }

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu") -> Self:
        """Read a checkpoint or the best one of a run, ready to generate. Raises CheckpointError."""
        description, weights = read_checkpoint(path, kind=KIND)
        try:
            model = cls(GenerativeConfig(**description["config"]), Normalizer.from_json(description["normalizer"]))
            model.load_state_dict(weights)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, SpecMismatchError) as error:
            raise CheckpointError(f"{find_checkpoint(path)} does not describe a generative model: {error}") from error
        return model.eval().to(device)
