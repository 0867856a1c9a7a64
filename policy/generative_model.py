"""A network, its objective and the normalizer of its data: the part that all models have in common.

Chunk policies condition it on encoded observations (chunk_policy.py), models of points, images and angles on a class label
or a vector (data_model.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.policy.diffusion.objectives import OBJECTIVES, Objective, make_objective
from flowchunk.policy.diffusion.paths import Generators
from flowchunk.policy.diffusion.predictions import PREDICTIONS
from flowchunk.policy.diffusion.solvers import SOLVERS
from flowchunk.policy.flow import Loss, Velocity, with_guidance
from flowchunk.policy.networks.conditioning import embedded_once
from flowchunk.policy.noise import PathNoise
from flowchunk.policy.normalizer import Normalizer
from flowchunk.policy.registry import Registry
from flowchunk.policy.sampling import SamplingOptions
from flowchunk.policy.shapes import Condition, Data, Mask

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What a network is trained for and how it is sampled: the options that all models have in common.

    network, network_options: a name in ``NETWORKS``, and its arguments. objective, schedule, time_density,
    time_density_options, min_snr_gamma: see ``make_objective``. sampling: see ``SamplingOptions``.
    """

    network: str = "mlp"
    network_options: Mapping[str, Any] = field(default_factory=dict)
    objective: str = "flow"
    schedule: str | None = None
    time_density: str = "uniform"
    time_density_options: Mapping[str, float] = field(default_factory=dict)
    min_snr_gamma: float | None = None
    sampling: SamplingOptions = SamplingOptions()  # noqa: RUF009 -- frozen

    def make_objective(self, *, clip_sample_range: float | None = None, wrapped: bool = False) -> Objective:
        """The objective. Raises ConfigurationError if options, ``sampling`` among them, do not fit together."""
        objective = make_objective(
            self.objective,
            schedule=self.schedule,
            time_density=self.time_density,
            time_density_options=self.time_density_options,
            min_snr_gamma=self.min_snr_gamma,
            clip_sample_range=clip_sample_range,
            wrapped=wrapped,
        )
        objective.check(self.sampling)
        return objective

    def plugins(self, networks: Registry[Any]) -> list[dict[str, str]]:
        """The plug-ins that the model needs, for its checkpoint to name: kind, name and module of each."""
        used = (
            (networks, self.network),
            (OBJECTIVES, self.objective),
            (PREDICTIONS, self.objective),
            (SOLVERS, self.sampling.solver),
        )
        return [
            {"kind": registry.kind, "name": name, "module": source}
            for registry, name in used
            if name is not None and name in registry and (source := registry.source(name)) is not None
        ]

    def to_json(self) -> dict[str, Any]:
        """A value that ``json.dumps`` accepts and ``from_json`` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The configuration that ``to_json`` described."""
        return cls(**{**value, "sampling": SamplingOptions(**value["sampling"])})


def shallow_copy(module: M) -> M:
    """A module with the same parameters and submodules, whose attributes can be changed without changing the original's."""
    copied = copy.copy(module)
    copied.__dict__["_modules"] = dict(module._modules)
    return copied


class Layout(Protocol):
    """The arrangement of data in the network's input."""

    def to_network(self, x: Tensor) -> Tensor:
        """Data (B, *shape) in the shape that the network takes."""

    def to_data(self, x: Tensor) -> Tensor:
        """The inverse of ``to_network``."""


class GenerativeModel(nn.Module):
    """A generative model of data given a condition (B, C).

    key: of the data in the normalizer. shape: of one datum as the network takes it. default_nfe: number of network
    evaluations unless ``SamplingOptions`` has one; the objective may restrict it. layout: for a network that takes data in
    another shape than they have. guidance_objection: why guidance is impossible; None if it is possible.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        normalizer: Normalizer,
        *,
        key: str,
        shape: tuple[int, ...],
        default_nfe: int,
        layout: Layout | None = None,
        guidance_objection: str | None = "has no classes",
    ) -> None:
        super().__init__()
        self.network, self.objective, self.normalizer = network, objective, normalizer
        self.key, self.shape, self.default_nfe, self.layout = key, shape, default_nfe, layout
        self.guidance_objection = guidance_objection

    @property
    def device(self) -> torch.device:
        """The device that it computes on."""
        return next(self.normalizer.buffers()).device

    def sample_noise(self, batch_size: int, generator: torch.Generator) -> PathNoise:
        """All random numbers of a training step."""
        return self.objective.sample_noise((batch_size, *self.shape), generator)

    def loss(
        self,
        x_1: Data,
        *,
        noise: PathNoise,
        condition: Condition | None = None,
        mask: Mask | None = None,
        prefix_length: Tensor | None = None,
    ) -> Loss:
        """The objective's loss on unnormalized data x_1 (B, …), given noise of ``sample_noise``.

        condition: (B, C). mask, prefix_length: see ``Loss.from_errors``.
        """
        return self.objective.loss(
            self.network,
            self.normalize(x_1),
            noise=noise,
            condition=condition,
            mask=mask,
            prefix_length=prefix_length,
        )

    def sample(
        self,
        condition: Condition,
        *,
        sampling: SamplingOptions,
        generator: Generators,
        x_0: Tensor | None = None,
        prefix: Tensor | None = None,
        unconditional: Condition | None = None,
        wrap_velocity: Callable[[Velocity], Velocity] | None = None,
        callback: Callable[[Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """Unnormalized samples, one for each row of the condition (B, C).

        x_0: the noise to start from, by default ``starting_noise``. prefix: (B, d, D) known first tokens, unnormalized.
        unconditional: (B, C), the condition that guidance extrapolates away from. wrap_velocity: changes the velocity, of
        normalized data, of models whose network predicts it. callback: called with (t, unnormalized x) at every time.
        Raises ConfigurationError if the model cannot be sampled with these options.
        """
        nfe = self.resolve_nfe(sampling)
        if x_0 is None:
            x_0 = self.starting_noise(len(condition), sampling=sampling, generator=generator)
        network: Any = self.network if wrap_velocity is None else wrap_velocity(self.network)
        if sampling.guidance != 1.0:
            network = with_guidance(network, guidance=sampling.guidance, unconditional=unconditional)
            nfe = nfe // 2
        with embedded_once(self.network, condition):
            x_1 = self.objective.sample(
                network,
                x_0,
                nfe=nfe,
                sampling=sampling,
                condition=condition,
                prefix=None if prefix is None else self.normalize(prefix),
                generator=generator,
                callback=None if callback is None else lambda t, x: callback(t, self.denormalize(x)),
            )
        return self.denormalize(x_1)

    def starting_noise(self, batch_size: int, *, sampling: SamplingOptions, generator: Generators) -> Tensor:
        """The noise (B, *shape) that samples start from."""
        x_0 = self.objective.path.sample_noise((batch_size, *self.shape), generator=generator).to(self.device)
        return x_0 * sampling.noise_scale

    def resolve_nfe(self, sampling: SamplingOptions) -> int:
        """The number of network evaluations per sample. Raises ConfigurationError if the options do not fit the model."""
        self.objective.check(sampling)
        per_step = 1 if sampling.guidance == 1.0 else 2
        if per_step == 2 and self.guidance_objection is not None:
            raise ConfigurationError(
                f"guidance={sampling.guidance}: this model {self.guidance_objection}, so it has no unconditional prediction "
                "to be guided away from"
            )
        valid = self.objective.valid_nfe
        nfe = sampling.nfe
        if nfe is None:
            nfe = per_step * (self.default_nfe // per_step if valid is None else valid[0])
        if nfe % per_step:
            raise ConfigurationError(
                f"nfe={nfe}: with guidance each step takes two network evaluations; give an even number"
            )
        self.objective.times(nfe // per_step, sampling=sampling)
        return nfe

    def normalize(self, x: Tensor) -> Tensor:
        """Unnormalized data (B, …), or only their first tokens, as the network takes them."""
        known = x.shape[1]
        if self.layout is None and known < self.shape[0]:  # the scaling may differ between tokens
            whole = nn.functional.pad(x, (0, 0, 0, self.shape[0] - known))
            return self.normalizer.normalize(self.key, whole)[:, :known]
        x = self.normalizer.normalize(self.key, x)
        return x if self.layout is None else self.layout.to_network(x)

    def denormalize(self, x: Tensor) -> Tensor:
        """The inverse of ``normalize``, for whole data; what is constant in the training data stays so."""
        x = self.normalizer.denormalize(self.key, x if self.layout is None else self.layout.to_data(x))
        return self.normalizer.with_constants(self.key, x)
