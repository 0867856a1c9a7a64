"""Baselines of the open-loop error: chunks (n, H, D) without a network, in physical units and on the CPU.

A policy that is no better than ``hold`` has learned little: at high control rates, holding is hard to beat at the first
steps of a chunk. ``nearest`` shows what memorizing the demonstrations is worth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from flowchunk.datasets.specs import ObservationSpec
from flowchunk.datasets.windows import Windows
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.encoders.state import StateEncoder
from flowchunk.policy.evaluation.open_loop import every_kth

THUMBNAIL = (8, 8)  # pixels (height, width)
MAX_IMAGE_CANDIDATES = 4096  # training windows that are compared by their images


def hold_chunks(windows: Windows, indices: Tensor) -> Tensor:
    """The last commanded action, held for the whole chunk: that of the previous frame.

    Before an episode's first frame nothing was commanded, so there it is the action of that frame, which favors the
    baseline. Delta dimensions command no motion.
    """
    held = windows.actions[torch.maximum(windows.frames[indices] - 1, windows.first[indices])]
    if windows.rest is not None:
        held = torch.where(windows.rest.isnan(), held, windows.rest)
    return held[:, None].repeat(1, windows.horizon, 1).cpu()


@torch.inference_mode()
def nearest_chunks(
    policy: ChunkPolicy, windows: Windows, indices: Tensor, training: Windows, *, block: int = 4096
) -> Tensor:
    """The recorded chunk of the training window whose observations are nearest, by Euclidean distance.

    Compared are all values that are not images, normalized as for the policy, with cosine and sine of angles that wrap, over
    the To observed steps. If there are only images, they are compared in shades of grey and averaged to 8 x 8 pixels, with at
    most 4,096 evenly spaced training windows. block: number of training windows that are in memory at a time.
    """
    candidates = torch.arange(len(training), device=training.frames.device)
    if not policy.observation_spec.values:
        candidates, block = every_kth(training, at_most=MAX_IMAGE_CANDIDATES), 32
    wanted = torch.cat([_features(policy, windows, rows) for rows in torch.split(indices, block)])
    least, nearest = wanted.new_full((len(wanted),), torch.inf), candidates.new_zeros(len(wanted))
    for rows in torch.split(candidates, block):
        distance, place = torch.cdist(wanted, _features(policy, training, rows)).min(dim=1)
        is_nearer = (distance < least).to(rows.device)
        nearest = torch.where(is_nearer, rows[place.to(rows.device)], nearest)
        least = torch.minimum(least, distance)
    return replace(training, images=None).batch(nearest)["action"].cpu()


def mean_chunks(
    policy: ChunkPolicy, windows: Windows, indices: Tensor, training: Windows, *, block: int = 8192
) -> Tensor:
    """The mean of all training chunks as the policy predicts them, padding after the ends of episodes included.

    So where it predicts actions relative to an observed value, or in a frame, the mean is taken there, too.
    """
    total = torch.zeros(training.horizon, training.actions.shape[1], dtype=torch.float64)
    for batch in replace(training, images=None).batches(block):
        actions = batch["action"].to(policy.model.device)
        total += policy.coordinates.encode(actions, _observation(policy, batch)).cpu().double().sum(0)
    batch = replace(windows, images=None).batch(indices)
    mean = (total / len(training)).float().to(policy.model.device).expand(len(indices), -1, -1)
    return policy.coordinates.decode(mean, _observation(policy, batch)).cpu()


def _observation(policy: ChunkPolicy, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: batch[f"observation.{key}"].to(policy.model.device) for key in policy.data_spec.values}


def _features(policy: ChunkPolicy, windows: Windows, indices: Tensor) -> Tensor:
    """(n, F) what windows are compared by, on the policy's device."""
    spec, device = policy.observation_spec, policy.model.device
    if not spec.values:
        batch = windows.batch(indices)
        return torch.cat([_thumbnails(batch[f"observation.{key}"].to(device)) for key in spec.images], dim=1)
    batch = replace(windows, images=None).batch(indices)
    values = {key: policy.normalizer.normalize(key, batch[f"observation.{key}"].to(device)) for key in spec.values}
    flatten = StateEncoder(ObservationSpec(spec.values), observation_steps=windows.observation_steps)
    features: Tensor = flatten(values)
    return features


def _thumbnails(images: Tensor) -> Tensor:
    """Images (n, To, H, W, 3) as shades of grey at 8 x 8 pixels: (n, To · 64)."""
    return nn.functional.adaptive_avg_pool2d(images.float().mean(-1), THUMBNAIL).flatten(1)
