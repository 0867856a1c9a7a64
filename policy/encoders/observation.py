"""From all that a robot observes to one condition vector: pictures through a network, everything else as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.specs import ObservationField, ObservationSpec
from flowchunk.policy.encoders.image_transforms import cropped, jitter_colors
from flowchunk.policy.encoders.resnet import ResNet18
from flowchunk.policy.encoders.small_conv import SmallConv
from flowchunk.policy.encoders.state import StateEncoder
from flowchunk.policy.encoders.timm_backbone import TimmBackbone
from flowchunk.policy.encoders.transformers_backbone import TransformersBackbone

VISION: dict[str, Callable[..., Any]] = {
    "small_conv": SmallConv,
    "resnet18": ResNet18,
    "timm": TimmBackbone,
    "transformers": TransformersBackbone,
}
NEED_SIZE = ("timm", "transformers")
ESCAPED = "camera:"  # begins the name of a network whose camera's own name torch does not allow


class ObservationEncoder(nn.Module):
    """Observations {key: (B, To, …)}, pictures raw and all else normalised, to a condition (B, condition_size).

    vision: the network that sees, from ``VISION``; options: for it, and
    - share_weights: whether all cameras look through the same weights (default: each through its own);
    - image_steps: pictures of how many of the last frames are looked at (default: all To; the other values have all);
    - color_jitter: brightness, contrast and saturation change by up to this factor in training (default: 0).
    Raises ConfigurationError where the vision network and the observation do not go together.
    """

    def __init__(
        self,
        observation_spec: ObservationSpec,
        *,
        observation_steps: int,
        vision: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.pictures = observation_spec.images
        check_vision(vision, self.pictures)
        settings = dict(options or {})
        self.shares_weights = bool(settings.pop("share_weights", False))
        self.image_steps = settings.pop("image_steps", None) or observation_steps
        self.color_jitter = float(settings.pop("color_jitter", 0.0))
        self._check_settings(observation_steps)
        self.state = StateEncoder(ObservationSpec(observation_spec.values), observation_steps=observation_steps)
        self.cameras = nn.ModuleDict()
        self.condition_size = self.state.condition_size
        for key, field in self.pictures.items():
            if not self.shares_weights or not self.cameras:
                network = self.cameras[_module_name(key)] = _make(str(vision), field, settings)
            self.condition_size += self.image_steps * network.features

    def sample_views(self, batch_size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """For each image of a training step where its crop lies (B, 2), and its color jitter (B, 3)."""
        views = {}
        for key, field in self.pictures.items():
            if field.crop is not None:
                views[f"place.{key}"] = torch.rand((batch_size, 2), generator=generator)
            if self.color_jitter:
                span = 2 * torch.rand((batch_size, 3), generator=generator) - 1
                views[f"light.{key}"] = 1 + self.color_jitter * span
        return views

    def forward(self, observation: Mapping[str, Tensor], views: Mapping[str, Tensor] | None = None) -> Tensor:
        """views: of ``sample_views``, in training; without them images stay as they are, and are cropped in the middle."""
        parts = [self.state(observation)] if self.state.condition_size else []
        parts += [self._see(key, observation[key], views or {}) for key in self.pictures]
        return torch.cat(parts, dim=-1)

    def camera(self, key: str) -> nn.Module:
        """The network that looks at this picture."""
        return next(iter(self.cameras.values())) if self.shares_weights else self.cameras[_module_name(key)]

    def load_weights(self, weights: str) -> None:
        """Let every vision network start from these weights. Raises CheckpointError or ConfigurationError."""
        for network in self.cameras.values():
            network.load_weights(weights)  # type: ignore[operator]  # every one in VISION has it

    def _see(self, key: str, pictures: Tensor, views: Mapping[str, Tensor]) -> Tensor:
        """Pictures (B, To, H, W, 3), uint8, to (B, image_steps · features)."""
        pictures = pictures[:, -self.image_steps :]
        if (crop := self.pictures[key].crop) is not None:
            pictures = cropped(pictures, crop, views.get(f"place.{key}"))
        seen = pictures.permute(0, 1, 4, 2, 3).float() / 255  # channels last in memory, which convolutions like
        if (light := views.get(f"light.{key}")) is not None:
            seen = jitter_colors(seen, light)
        features: Tensor = self.camera(key)(seen.flatten(0, 1))
        return features.reshape(len(seen), -1)

    def _check_settings(self, observation_steps: int) -> None:
        if not 1 <= self.image_steps <= observation_steps:
            raise ConfigurationError(
                f"vision.image_steps={self.image_steps} must be from 1 to observation_steps={observation_steps}"
            )
        if not 0 <= self.color_jitter < 1:
            raise ConfigurationError(f"vision.color_jitter={self.color_jitter} must be at least 0 and below 1")
        sizes = {field.crop or field.shape[:2] for field in self.pictures.values()}
        if self.shares_weights and len(sizes) > 1:
            raise ConfigurationError(
                f"vision.share_weights=true needs pictures of one size, but these have {sorted(sizes)}"
            )


def check_vision(vision: str | None, pictures: Mapping[str, ObservationField]) -> None:
    """Raise ConfigurationError unless this vision network and these pictures go together, or neither is there."""
    if vision is not None and vision not in VISION:
        raise ConfigurationError(f"unknown vision {vision!r}; there are {', '.join(VISION)}")
    if pictures and vision is None:
        raise ConfigurationError(
            f"the observation has pictures ({', '.join(pictures)}): choose vision=small_conv|resnet18"
        )
    if vision is not None and not pictures:
        raise ConfigurationError(
            f"vision={vision}, but nothing observed is a picture; leave it out, or use another task"
        )


def _module_name(key: str) -> str:
    """The camera's name where torch allows it for a module, which weights are named by; otherwise escaped, each uniquely."""
    if key and "." not in key and not hasattr(nn.ModuleDict(), key) and not key.startswith(ESCAPED):
        return key
    return ESCAPED + key.replace("%", "%25").replace(".", "%2E")


def _make(vision: str, field: ObservationField, options: Mapping[str, Any]) -> Any:
    size = {"picture_size": field.crop or field.shape[:2]} if vision in NEED_SIZE else {}
    try:
        return VISION[vision](**size, **options)
    except ConfigurationError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"cannot make vision={vision}: {error}") from error
