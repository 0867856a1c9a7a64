"""Values that the demonstrations hold but a robot does not observe, such as an object's pose, estimated from its images.

Simulations and motion capture record where the objects are. A policy that learns to see that, and acts on what it sees, needs
far fewer demonstrations than one that has to find out from actions alone what matters in an image: training sees more than
deployment does (privileged information, Pinto et al. 1710.06542).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.specs import ObservationSpec
from flowchunk.policy.encoders.state import StateEncoder
from flowchunk.policy.normalizer import Normalizer

WIDTH = 256
HUBER_DELTA = 0.1  # of a normalized value in [-1, 1]: one image that was misread does not outweigh all others


class ValueEstimator(nn.Module):
    """Features of images (B, features) to the values of a specification, all those of the latest step.

    Angles that wrap are estimated as cosine and sine.
    """

    def __init__(self, features: int, spec: ObservationSpec) -> None:
        super().__init__()
        self.spec = spec
        self.targets = StateEncoder(spec, observation_steps=1)
        self.network = nn.Sequential(
            nn.Linear(features, WIDTH),
            nn.SiLU(),
            nn.Linear(WIDTH, WIDTH),
            nn.SiLU(),
            nn.Linear(WIDTH, self.targets.condition_size),
        )

    def errors(self, features: Tensor, observation: Mapping[str, Tensor], normalizer: Normalizer) -> Tensor:
        """The Huber loss of each row, (B,). observation: the true values {key: (B, To, …)} in physical units."""
        latest = {key: normalizer.normalize(key, observation[key][:, -1:]) for key in self.spec.fields}
        estimated = self.network(features)
        losses = nn.functional.huber_loss(estimated, self.targets(latest), reduction="none", delta=HUBER_DELTA)
        return losses.mean(1)

    def forward(self, features: Tensor, normalizer: Normalizer) -> dict[str, Tensor]:
        """Estimates {key: (B, *shape)} in physical units; angles in [-π, π]."""
        estimates, found = {}, self.network(features)
        for key, field in self.spec.fields.items():
            angles = list(field.wraps)
            others = [index for index in range(field.size) if index not in field.wraps]
            linear, cos, sin, found = found.split(
                [len(others), len(angles), len(angles), found.shape[1] - field.size - len(angles)], dim=1
            )
            values = linear.new_empty(len(linear), field.size)
            values[:, others], values[:, angles] = linear, torch.atan2(sin, cos)
            estimates[key] = normalizer.denormalize(key, values.view(-1, *field.shape))
        return estimates


def split_estimated(spec: ObservationSpec, estimated: Collection[str]) -> tuple[ObservationSpec, ObservationSpec]:
    """What a policy observes, and what it estimates from the images in it, of all that its demonstrations hold.

    Raises ConfigurationError for keys that are not there or are images, and if there are no images to estimate them from.
    """
    known = [key for key in spec.values if key not in estimated]
    if unknown := [key for key in estimated if key not in spec.values]:
        raise ConfigurationError(
            f"policy.estimated={list(estimated)}: expected keys of the demonstrations that are not images, but there is no "
            f"{unknown[0]!r}; there are {', '.join([*known, *(key for key in estimated if key in spec.values)]) or 'none'} "
            "(dataset.observe leaves out all keys that it does not name)"
        )
    if estimated and not spec.images:
        raise ConfigurationError(
            f"policy.estimated={list(estimated)}: there are no images to estimate them from; leave it out, or observe images"
        )
    return spec.without(estimated), spec.without(spec.fields.keys() - set(estimated))
