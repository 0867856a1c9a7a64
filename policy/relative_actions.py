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
from flowchunk.datasets.observed_values import ObservedValue, find_observed_value
from flowchunk.datasets.specs import ObservationField, ObservationSpec

if TYPE_CHECKING:
    from flowchunk.datasets.windows import Windows  # a policy that acts reads no data

RelativeTo = Sequence[str | None]
"""For each action dimension an observed value, as KEY.NAME, or None."""


References = Sequence[ObservedValue | None]


def find_references(relative_to: RelativeTo, observation_spec: ObservationSpec, action_size: int) -> References:
    """The observed value for each action dimension, or None.

    Names are those of the specification; without names, and in early checkpoints, it is KEY.INDEX. Raises
    ConfigurationError unless there is an entry for each action dimension, and for values that do not exist, are images, or
    are angles that wrap.
    """
    if len(relative_to) != action_size:
        raise ConfigurationError(
            f"policy.relative_to has {len(relative_to)} entries for {action_size} action dimensions"
        )
    return [None if entry is None else _find(entry, observation_spec.values) for entry in relative_to]


def _find(entry: str, fields: Mapping[str, ObservationField]) -> ObservedValue:
    found = find_observed_value(entry, fields, option="policy.relative_to")
    if found.index in fields[found.key].wraps:
        raise ConfigurationError(
            f"policy.relative_to: {entry} is an angle that wraps, so a chunk across ±π would have a jump; give null "
            "for this action dimension"
        )
    return found


def reference_values(observation: Mapping[str, Tensor], references: References) -> Tensor:
    """(B, 1, D): for each action dimension the observed value at the chunk's start, or 0 if it is absolute.

    observation: {key: (B, To, …)} in physical units.
    """
    columns = []
    for reference in references:
        if reference is None:
            columns.append(torch.zeros_like(next(iter(observation.values())).flatten(1)[:, 0]))
        else:
            columns.append(observation[reference.key][:, -1:].flatten(1)[:, reference.index])
    return torch.stack(columns, dim=-1)[:, None]


def relative_chunks(windows: Windows, references: References, *, block: int = 8192) -> Iterator[np.ndarray]:
    """All chunks of the windows, relative, in blocks (N, H, D) of at most ``block``: what their normalizer is fitted to."""
    windows = replace(windows, images=None)  # actions are relative to values, never to images
    for start in range(0, len(windows), block):
        batch = windows.batch(torch.arange(start, min(start + block, len(windows)), device=windows.frames.device))
        observation = {key: batch[f"observation.{key}"] for key in windows.observations}
        yield (batch["action"] - reference_values(observation, references)).cpu().numpy()
