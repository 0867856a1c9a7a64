"""Everything random in one training step, as dataclasses of tensors with a row per sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Noise:
    """Base of them: fields are tensors (B, …), None, mappings of tensors, or such dataclasses themselves."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same with the function of every tensor."""
        return replace(self, **{field.name: mapped(getattr(self, field.name), function) for field in fields(self)})

    def tensors(self) -> list[Tensor]:
        """All tensors."""
        found: list[Tensor] = []
        self.map(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
        return found

    def rows(self, rows: slice, device: torch.device | str | None = None) -> Self:
        """Some rows of every tensor, on the device."""
        return self.map(lambda tensor: tensor[rows].to(device))

    def part(self, number: int, parts: int) -> Self:
        """One of so many equal parts."""
        return self.map(lambda tensor: tensor.chunk(parts)[number])


@dataclass(frozen=True)
class PathNoise(Noise):
    """Where on which path training looks: x_0 (B, …) and t (B,)."""

    x_0: Tensor
    t: Tensor


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """``Noise.map`` for one field."""
    if isinstance(value, Noise):
        return value.map(function)
    if isinstance(value, Mapping):
        return {name: mapped(entry, function) for name, entry in value.items()}
    return value if value is None else function(value)
