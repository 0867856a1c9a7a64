"""All random numbers of a training step, as dataclasses of tensors with a row per sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from flowchunk.datasets.shape_repr import shape_repr


@dataclass(frozen=True, repr=False)
class Noise:
    """Base class. Fields are tensors (B, …), None, mappings of names to tensors, or ``Noise`` again."""

    def __repr__(self) -> str:
        return shape_repr(self)

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """A copy with the function applied to every tensor."""
        return replace(self, **{field.name: map_tensors(getattr(self, field.name), function) for field in fields(self)})

    def tensors(self) -> list[Tensor]:
        """All its tensors."""
        found: list[Tensor] = []
        self.map(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
        return found

    def rows(self, rows: slice, device: torch.device | str | None = None) -> Self:
        """These rows of every tensor, on the device (by default, where they are)."""
        return self.map(lambda tensor: tensor[rows].to(device))

    def micro_batch(self, index: int, count: int) -> Self:
        """The rows of one of ``count`` equal parts."""
        return self.map(lambda tensor: tensor.chunk(count)[index])


@dataclass(frozen=True, repr=False)
class PathNoise(Noise):
    """Noise x_0 (B, …), the start of each path, and times t (B,) on it."""

    x_0: Tensor
    t: Tensor


@dataclass(frozen=True, repr=False)
class PolicyNoise(Noise):
    """All random numbers of a training step, a row per observation.

    path: noise and times of the chunks, (B, …), or (B, M, …) with M > 1 noise samples per observation. prefix_length: (B,)
    or (B, M); None without prefixes. augmentation: of the images, see ``ObservationEncoder.sample_augmentation``.
    """

    path: PathNoise
    prefix_length: Tensor | None
    augmentation: Mapping[str, Tensor]


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """``Noise.map`` for the value of a field."""
    if isinstance(value, Noise):
        return value.map(function)
    if isinstance(value, Mapping):
        return {name: map_tensors(entry, function) for name, entry in value.items()}
    return value if value is None else function(value)
