"""Actions relative to the latest observation: their precision is then that of the motion, not of the workspace.

All actions of a chunk are relative to the *same* observation, the one at its start (Chi et al., UMI, 2402.10329), so errors
do not accumulate along the chunk as they do with step-to-step deltas.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.specs import ObservationSpec

if TYPE_CHECKING:
    from flowchunk.datasets.windows import Windows  # a policy that acts reads no data

RelativeTo = Sequence[str | None]


def check_relative_to(relative_to: RelativeTo, observation_spec: ObservationSpec, action_size: int) -> None:
    """Raise ConfigurationError unless ``relative_to`` has a value, as KEY.INDEX, or None for each action dimension."""
    if len(relative_to) != action_size:
        raise ConfigurationError(
            f"policy.relative_to has {len(relative_to)} entries for {action_size} action dimensions"
        )
    for entry in relative_to:
        key, _, index = (entry or "").rpartition(".")
        field = observation_spec.fields.get(key)
        if entry is not None and (field is None or not index.isdigit() or int(index) >= field.size):
            raise ConfigurationError(
                f"policy.relative_to: expected KEY.INDEX of an observed value or null, got {entry!r}; the keys are "
                f"{ {key: field.size for key, field in observation_spec.fields.items()} }"
            )
        if field is not None and int(index) in field.wraps:
            raise ConfigurationError(
                f"policy.relative_to: {entry} is an angle that wraps, so a chunk across ±π would have a jump; give null "
                "for this action dimension"
            )


def reference(observation: Mapping[str, Tensor], relative_to: RelativeTo) -> Tensor:
    """(B, 1, D): for each action dimension the observed value at the chunk's start, or 0 if it is absolute.

    observation: {key: (B, To, …)} in physical units. relative_to: per action dimension ``"KEY.INDEX"``, with the flattened
    index, or None.
    """
    columns = []
    for entry in relative_to:
        if entry is None:
            columns.append(torch.zeros_like(next(iter(observation.values())).flatten(1)[:, 0]))
        else:
            key, _, index = entry.rpartition(".")
            columns.append(observation[key][:, -1].flatten(1)[:, int(index)])
    return torch.stack(columns, dim=-1)[:, None]


def relative_chunks(windows: Windows, relative_to: RelativeTo, *, block: int = 8192) -> Iterator[np.ndarray]:
    """All chunks of the windows, relative, in blocks (N, H, D) of at most ``block``: what their normalizer is fitted to."""
    windows = replace(windows, images=None)  # actions are relative to values, never to images
    for start in range(0, len(windows), block):
        batch = windows.batch(torch.arange(start, min(start + block, len(windows)), device=windows.frames.device))
        observation = {key: batch[f"observation.{key}"] for key in windows.observations}
        yield (batch["action"] - reference(observation, relative_to)).cpu().numpy()
