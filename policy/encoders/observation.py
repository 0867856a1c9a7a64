"""From everything that a robot observes to one condition vector: images by a vision network, values unchanged.

Or images are what other values are estimated from, see ``ValueEstimator``; then these stand in the condition, not the images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.specs import ObservationField, ObservationSpec
from flowchunk.policy.encoders.image_transforms import crop_images, jitter_colors
from flowchunk.policy.encoders.resnet import ResNet18
from flowchunk.policy.encoders.small_conv import SmallConv
from flowchunk.policy.encoders.state import StateEncoder
from flowchunk.policy.encoders.timm_backbone import TimmBackbone
from flowchunk.policy.encoders.transformers_backbone import TransformersBackbone
from flowchunk.policy.encoders.value_estimator import ValueEstimator
from flowchunk.policy.shapes import Condition, Images

VISION: dict[str, Callable[..., Any]] = {
    "small_conv": SmallConv,
    "resnet18": ResNet18,
    "timm": TimmBackbone,
    "transformers": TransformersBackbone,
}
NEED_IMAGE_SIZE = ("timm", "transformers")
KEYPOINT_ENCODERS = ("small_conv", "resnet18")  # their features are positions of keypoints
ESCAPE_PREFIX = "camera:"  # of modules whose camera has a name that torch does not allow


class ObservationEncoder(nn.Module):
    """Observations {key: (B, To, …)}, images as uint8 and values normalized, to a condition (B, condition_size).

    estimated: values that its ``estimator`` learns to know from the images, which then are no part of the condition. vision:
    the vision network, a name in ``VISION``. options: its arguments, and
    - share_weights: whether all cameras share the weights of one network (default: each has its own);
    - image_steps: of how many of the latest steps images are encoded (default: of all To, as for values);
    - color_jitter: the largest relative change of brightness, contrast and saturation in training (default: 0).
    Raises ConfigurationError if the vision network or its options do not fit the observation.
    """

    def __init__(
        self,
        observation_spec: ObservationSpec,
        *,
        observation_steps: int,
        vision: str | None = None,
        options: Mapping[str, Any] | None = None,
        estimated: ObservationSpec | None = None,
    ) -> None:
        super().__init__()
        self.images = observation_spec.images
        check_vision(vision, self.images)
        arguments = dict(options or {})
        self.shares_weights = bool(arguments.pop("share_weights", False))
        self.image_steps = arguments.pop("image_steps", None) or observation_steps
        self.color_jitter = float(arguments.pop("color_jitter", 0.0))
        self._check_options(observation_steps)
        self.state = StateEncoder(ObservationSpec(observation_spec.values), observation_steps=observation_steps)
        self.cameras = nn.ModuleDict()
        self.features = 0  # of all images
        for key, field in self.images.items():
            if not self.shares_weights or not self.cameras:
                network = self.cameras[_module_name(key)] = _make_network(str(vision), field, arguments)
            self.features += self.image_steps * network.features
        self.estimator = None if estimated is None else ValueEstimator(self.features, estimated)
        self.condition_size = self.state.condition_size + (0 if self.estimator else self.features)

    def sample_augmentation(self, batch_size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """For each image of a training step the position of its crop (B, 2), and the factors of its color jitter (B, 3)."""
        augmentation = {}
        for key, field in self.images.items():
            if field.crop is not None:
                augmentation[f"crop.{key}"] = torch.rand((batch_size, 2), generator=generator)
            if self.color_jitter:
                unit = 2 * torch.rand((batch_size, 3), generator=generator) - 1  # in [-1, 1)
                augmentation[f"color.{key}"] = 1 + self.color_jitter * unit
        return augmentation

    def forward(self, observation: Mapping[str, Tensor], augmentation: Mapping[str, Tensor] | None = None) -> Condition:
        """The condition (B, condition_size).

        augmentation: from ``sample_augmentation``, in training; without it crops are centered and colors do not change.
        """
        parts = [self.state(observation)] if self.state.condition_size else []
        if self.images and self.estimator is None:
            parts.append(self.encode_images(observation, augmentation))
        return torch.cat(parts, dim=-1)

    def encode_images(
        self, observation: Mapping[str, Tensor], augmentation: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The features (B, features) of all images. augmentation: of B rows, or k · B if only every k-th row has images."""
        parts = [self.encode_camera(key, observation[key], augmentation or {}) for key in self.images]
        return torch.cat(parts, dim=-1)

    def encode_camera(
        self, key: str, images: Images | Tensor, augmentation: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The features (B, image_steps · features) of one camera's images (B, To, H, W, 3), uint8.

        Or of images that were encoded before, one by one, and are their features (B, To, features).
        """
        if images.is_floating_point():
            return images[:, -self.image_steps :].flatten(1)
        given, rows = augmentation or {}, len(images)
        cropped = self.crop(key, images[:, -self.image_steps :], given)
        if (factors := given.get(f"color.{key}")) is not None:
            cropped = jitter_colors(cropped, factors[:: len(factors) // rows])
        features: Tensor = self.camera(key)(cropped.flatten(0, 1))
        return features.reshape(rows, -1)

    def crop(self, key: str, images: Images, augmentation: Mapping[str, Tensor]) -> Tensor:
        """What the network of this camera is shown of images (B, T, H, W, 3), uint8: (B, T, 3, h, w) in [0, 1]."""
        if (size := self.images[key].crop) is not None:
            positions = augmentation.get(f"crop.{key}")
            images = crop_images(
                images, size, None if positions is None else positions[:: len(positions) // len(images)]
            )
        return images.permute(0, 1, 4, 2, 3).float() / 255  # channels last in memory, which is fast for convolutions

    def camera(self, key: str) -> nn.Module:
        """The network that encodes the images of this key."""
        return next(iter(self.cameras.values())) if self.shares_weights else self.cameras[_module_name(key)]

    def load_weights(self, weights: str) -> None:
        """Initialize every vision network with these weights. Raises CheckpointError or ConfigurationError if it cannot."""
        for network in self.cameras.values():
            network.load_weights(weights)  # type: ignore[operator]  # every one in VISION has it

    def _check_options(self, observation_steps: int) -> None:
        if not 1 <= self.image_steps <= observation_steps:
            raise ConfigurationError(
                f"vision.image_steps={self.image_steps} must be from 1 to observation_steps={observation_steps}"
            )
        if not 0 <= self.color_jitter < 1:
            raise ConfigurationError(f"vision.color_jitter={self.color_jitter} must be at least 0 and below 1")
        sizes = {field.crop or field.shape[:2] for field in self.images.values()}
        if self.shares_weights and len(sizes) > 1:
            raise ConfigurationError(
                f"vision.share_weights=true needs images of the same size, but these have {sorted(sizes)}"
            )


def check_vision(vision: str | None, images: Mapping[str, ObservationField]) -> None:
    """Raise ConfigurationError unless there are both a known vision network and observed images, or neither."""
    if vision is not None and vision not in VISION:
        raise ConfigurationError(f"unknown vision {vision!r}; there are {', '.join(VISION)}")
    if images and vision is None:
        raise ConfigurationError(f"the observation has images ({', '.join(images)}): choose vision=small_conv|resnet18")
    if vision is not None and not images:
        raise ConfigurationError(
            f"vision={vision}, but the observation has no images; leave it out, or use another task"
        )


def _module_name(key: str) -> str:
    """The name of the camera's module, which is part of the names of its weights: its key, escaped if torch forbids it."""
    if key and "." not in key and not hasattr(nn.ModuleDict(), key) and not key.startswith(ESCAPE_PREFIX):
        return key
    return ESCAPE_PREFIX + key.replace("%", "%25").replace(".", "%2E")


def _make_network(vision: str, field: ObservationField, arguments: Mapping[str, Any]) -> Any:
    size = {"image_size": field.crop or field.shape[:2]} if vision in NEED_IMAGE_SIZE else {}
    try:
        return VISION[vision](**size, **arguments)
    except ConfigurationError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"cannot make vision={vision}: {error}") from error
