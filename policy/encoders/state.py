"""Encode low-dimensional observations: angles become cosine and sine, and the history one vector."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flowchunk.datasets.specs import ObservationSpec


class StateEncoder(nn.Module):
    """Flatten normalised observations {key: (B, To, …)} into a condition (B, condition_size); nothing to learn."""

    def __init__(self, observation_spec: ObservationSpec, *, observation_steps: int) -> None:
        super().__init__()
        self.wraps = {key: list(field.wraps) for key, field in observation_spec.fields.items()}
        values = sum(field.size + len(field.wraps) for field in observation_spec.fields.values())
        self.condition_size = observation_steps * values

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        parts = []
        for key, wraps in self.wraps.items():
            values = observation[key].flatten(2)  # (B, To, size)
            if wraps:
                angles = values[..., wraps]
                kept = [index for index in range(values.shape[-1]) if index not in wraps]
                values = torch.cat([values[..., kept], angles.cos(), angles.sin()], dim=-1)
            parts.append(values.flatten(1))
        return torch.cat(parts, dim=-1)
