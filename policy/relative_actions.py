"""Actions relative to the latest observation: their precision is then that of the motion, not of the workspace.

All actions of a chunk are relative to the *same* observation, the one at its start (Chi et al., UMI, 2402.10329), so errors
do not accumulate along the chunk as they do with step-to-step deltas.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.observed_values import ObservedValue, find_observed_value
from flowchunk.datasets.specs import ActionSpec, ObservationField, ObservationSpec
from flowchunk.policy.planar_frame import PlanarFrame

if TYPE_CHECKING:
    from flowchunk.datasets.windows import Windows  # a policy that acts reads no data
    from flowchunk.policy.policy_config import PolicyConfig

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


@dataclass(frozen=True)
class ActionCoordinates:
    """How the network sees actions: relative to observed values, and in the frame of an observed object.

    references: see ``find_references``; None if no dimension is relative. frame: None for actions in the world.
    """

    references: References | None = None
    frame: PlanarFrame | None = None

    @property
    def are_absolute(self) -> bool:
        """Whether the network sees actions as they are."""
        return self.references is None and self.frame is None

    def encode(self, actions: Tensor, observation: Mapping[str, Tensor]) -> Tensor:
        """Actions (B, h, D) as the network sees them. observation: {key: (B, To, …)}; both in physical units."""
        if self.references is not None:
            actions = actions - reference_values(observation, self.references)
        return actions if self.frame is None else self.frame.into(actions, observation)

    def decode(self, actions: Tensor, observation: Mapping[str, Tensor]) -> Tensor:
        """The inverse of ``encode``."""
        if self.frame is not None:
            actions = self.frame.out_of(actions, observation)
        return actions if self.references is None else actions + reference_values(observation, self.references)


def find_coordinates(
    config: PolicyConfig, observation_spec: ObservationSpec, action_spec: ActionSpec
) -> ActionCoordinates:
    """The coordinates that a policy's options describe. Raises ConfigurationError if they do not fit the specifications."""
    entries = [None] * action_spec.size if config.relative_to is None else config.relative_to
    references = find_references(entries, observation_spec, action_spec.size)
    frame = None
    if config.frame is not None:
        relative = [reference is not None for reference in references]
        frame = PlanarFrame(
            config.frame, observation_spec, action_spec, relative=relative, observation_steps=config.observation_steps
        )
    return ActionCoordinates(None if config.relative_to is None else references, frame)


def encoded_chunks(windows: Windows, coordinates: ActionCoordinates, *, block: int = 8192) -> Iterator[np.ndarray]:
    """All chunks of the windows as the network sees them, in blocks (N, H, D): what their normalizer is fitted to."""
    windows = replace(windows, images=None)  # actions depend on values, never on images
    for batch in windows.batches(block):
        observation = {key: batch[f"observation.{key}"] for key in windows.observations}
        yield coordinates.encode(batch["action"], observation).cpu().numpy()
