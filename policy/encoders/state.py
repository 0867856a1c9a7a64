"""The encoder of low-dimensional observations: angles as cosine and sine, the history as one vector."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flowchunk.datasets.specs import ObservationSpec


class StateEncoder(nn.Module):
    """Flattens normalized observations {key: (B, To, …)} to a condition (B, condition_size); it has no weights.

    Dimensions that wrap, unnormalized and in radians, are replaced by their cosine and sine.
    """

    def __init__(self, observation_spec: ObservationSpec, *, observation_steps: int) -> None:
        super().__init__()
        self.wraps = {key: list(field.wraps) for key, field in observation_spec.fields.items()}
        values = sum(field.size + len(field.wraps) for field in observation_spec.fields.values())
        self.condition_size = observation_steps * values

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        parts = []
        for key, wraps in self.wraps.items():
            values = observation[key].reshape(
                *observation[key].shape[:2], -1
            )  # (B, To, size), also of a field of shape ()
            if wraps:
                angles = values[..., wraps]
                others = [index for index in range(values.shape[-1]) if index not in wraps]
                values = torch.cat([values[..., others], angles.cos(), angles.sin()], dim=-1)
            parts.append(values.flatten(1))
        return torch.cat(parts, dim=-1)
