"""Keypoints learned from only the demonstrations' images, before the policy: images then cost no more than states.

A policy that is trained through its image encoder finds out from actions what matters in an image, which takes long, and
pays for a convolution in every step. Instead the encoder learns keypoints from which the images can be reconstructed (Jakab
et al. 1806.07823; for robots Finn et al. 1509.06113), and is then kept as it is: each image is encoded once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.windows import Windows
from flowchunk.policy.encoders.heatmap_decoder import HeatmapDecoder
from flowchunk.policy.encoders.observation import KEYPOINT_ENCODERS, ObservationEncoder
from flowchunk.policy.training.sample_order import SampleOrder, derive_seed, seeded_generator

BATCH_SIZE = 64
LEARNING_RATE = 1e-3
WARMUP_STEPS = 200
GRADIENT_CLIP = 1.0
RESOLUTION = 24  # of what is reconstructed, on its longer side
STREAM = 1_000_003  # of random numbers, apart from those of the training that follows

Advance = Callable[[int], None]


def require_keypoints(vision: str | None) -> None:
    """Raise ConfigurationError unless this vision network, a name in ``VISION``, has keypoints."""
    if vision not in KEYPOINT_ENCODERS:
        raise ConfigurationError(
            f"vision.pretrain_steps: vision={vision} has no keypoints to learn; choose vision={'|'.join(KEYPOINT_ENCODERS)}, "
            "or leave it out"
        )


def learn_keypoints(
    encoder: ObservationEncoder, windows: Windows, *, steps: int, seed: int, advance: Advance = lambda _: None
) -> float:
    """Train the image encoders to keypoints from which the images can be reconstructed.

    Returns the fraction of the images' variance that the reconstruction explains, in the last tenth of the steps. Images are
    augmented as in training, and reconstructed smaller and without the color jitter. The result is a function of encoder,
    windows, steps and seed. advance: called with 1 after each step.
    """
    torch.manual_seed(derive_seed(seed, 0, stream=STREAM))
    device, size = windows.frames.device, min(BATCH_SIZE, len(windows))
    decoders = nn.ModuleDict({str(index): _decoder(encoder, key) for index, key in enumerate(encoder.images)})
    encoder.to(device).train()
    decoders.to(device)
    parameters = [*encoder.cameras.parameters(), *decoders.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=1e-4, fused=True)
    order = SampleOrder(len(windows), size, derive_seed(seed, 1, stream=STREAM))
    explained = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * _warmup_and_cosine(step, steps)
        frames = windows.frames[order.indices(step).to(device)]
        sampled = encoder.sample_augmentation(size, seeded_generator(seed, step, stream=STREAM))
        augmentation = {name: values.to(device) for name, values in sampled.items()}
        errors = [
            _unexplained(encoder, key, windows.read_images(key, frames[:, None]), augmentation, decoder)
            for key, decoder in zip(encoder.images, decoders.values(), strict=True)
        ]
        error = torch.stack(errors).mean()
        optimizer.zero_grad()
        error.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, GRADIENT_CLIP)
        optimizer.step()
        explained.append(1 - error.detach())
        advance(1)
    optimizer.zero_grad()  # gradients that stay count in the norm by which the training that follows clips its own
    return float(torch.stack(explained[-max(1, steps // 10) :]).mean())


@torch.no_grad()
def encode_images_once(
    encoder: ObservationEncoder, *parts: Windows, advance: Advance = lambda _: None
) -> list[Windows]:
    """The windows with features in place of images: (N, features) float32 for all N frames, 0 for those in no window.

    parts: windows of the same frames. advance: called with the number of frames that were encoded.
    """
    encoder.eval()
    frames = torch.unique(torch.cat([part.frames for part in parts]))
    features: dict[str, Tensor] = {}
    for rows in torch.split(frames, BATCH_SIZE):
        for key in encoder.images:
            encoded = encoder.encode_camera(key, parts[0].read_images(key, rows[:, None]))
            if key not in features:
                features[key] = encoded.new_zeros(len(parts[0].actions), encoded.shape[1])
            features[key][rows] = encoded
        advance(len(rows))
    encoder.train()
    return [replace(part, observations={**part.observations, **features}, images=None) for part in parts]


def _decoder(encoder: ObservationEncoder, key: str) -> HeatmapDecoder:
    height, width = encoder.images[key].crop or encoder.images[key].shape[:2]
    scale = min(1.0, RESOLUTION / max(height, width))
    camera: Any = encoder.camera(key)
    return HeatmapDecoder(
        camera.features // 2, height=max(1, round(scale * height)), width=max(1, round(scale * width))
    )


def _unexplained(
    encoder: ObservationEncoder, key: str, images: Tensor, augmentation: Mapping[str, Tensor], decoder: nn.Module
) -> Tensor:
    """The fraction of the variance of images (B, 1, H, W, 3) that their reconstruction misses."""
    decoded = decoder(encoder.encode_camera(key, images, augmentation))
    target = nn.functional.adaptive_avg_pool2d(encoder.crop(key, images, augmentation)[:, 0], decoded.shape[-2:])
    target = target - target.mean(0)
    return ((decoded - target) ** 2).mean() / (target**2).mean().clamp(min=1e-6)


def _warmup_and_cosine(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARMUP_STEPS) * (1 + math.cos(math.pi * step / steps)) / 2
