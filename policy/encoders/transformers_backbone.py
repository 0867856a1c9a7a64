"""Any vision backbone of ``transformers`` by its name, DINOv2 and SigLIP among them (extra ``vision-backbones``)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowchunk.datasets.errors import CheckpointError, ConfigurationError
from flowchunk.policy.encoders.image_input import IMAGENET_DEVIATION, IMAGENET_MEAN, PictureInput, whole_patches
from flowchunk.policy.encoders.spatial_softmax import SpatialSoftmax
from flowchunk.policy.encoders.timm_backbone import PUBLISHED, backbone_library, cannot_load


class TransformersBackbone(nn.Module):
    """Pictures (N, 3, h, w) in [0, 1] to ``features`` numbers: the last hidden state as a map, then a spatial softmax.

    backbone: a name on the hub or a folder, such as "facebook/dinov2-small". architecture: what ``architecture_of`` says
    of it, kept in checkpoints so that they load without the hub. resize: side in pixels that pictures are brought to; by
    default they are enlarged to whole patches alone. The optimiser moves the backbone at a tenth of its rate. Raises
    ConfigurationError where the library is not installed or cannot make the backbone.
    """

    def __init__(
        self,
        *,
        picture_size: Sequence[int],
        backbone: str,
        architecture: Mapping[str, Any] | None = None,
        resize: int | None = None,
        keypoints: int = 32,
    ) -> None:
        super().__init__()
        self.backbone, self.learning_rate_scales = backbone, {"body": 0.1}
        known = architecture_of(backbone) if architecture is None else architecture
        transformers = backbone_library("transformers")
        try:
            options = dict(known["config"])
            config = transformers.AutoConfig.for_model(options.pop("model_type"), **options)
            self.body = transformers.AutoModel.from_config(config)
        except Exception as error:  # errors of many kinds
            raise ConfigurationError(f"vision.backbone={backbone}: transformers cannot make it ({error})") from error
        patch = getattr(config, "patch_size", 1)
        size = whole_patches(picture_size, patch, resize)
        self.grid = [side // patch for side in size]
        self.input = PictureInput(size=size, mean=known["mean"], deviation=known["deviation"])
        places = "interpolate_pos_encoding"
        self._options = {places: True} if places in inspect.signature(self.body.forward).parameters else {}
        channels = config.hidden_sizes[-1] if hasattr(config, "hidden_sizes") else config.hidden_size
        self.keypoints = SpatialSoftmax(channels, keypoints=keypoints)
        self.features = self.keypoints.features
        self._freeze_unused(picture_size)

    def _freeze_unused(self, picture_size: Sequence[int]) -> None:
        """Leave out of training what no feature depends on, such as mask tokens and pooling heads.

        It never gets a gradient, which an optimiser that is resumed and processes that share gradients would wait for.
        """
        was_training = self.training
        with torch.inference_mode(False), torch.enable_grad():
            features = self.eval()(torch.zeros(1, 3, *picture_size))
            parameters = list(self.body.parameters())
            gradients = torch.autograd.grad(features.sum(), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)
        self.train(was_training)

    def forward(self, pictures: Tensor) -> Tensor:
        found = self.body(pixel_values=self.input(pictures), **self._options).last_hidden_state
        if found.ndim == 3:  # tokens (N, extra + patches, channels): the class token and registers come first
            patches = self.grid[0] * self.grid[1]
            found = found[:, -patches:].unflatten(1, self.grid).permute(0, 3, 1, 2)
        return self.keypoints(found)

    def load_weights(self, weights: str) -> None:
        """Start from what the hub has under this name ("pretrained"), or from a folder of such weights.

        Raises CheckpointError where they cannot be fetched or read, or are another network's.
        """
        transformers = backbone_library("transformers")
        source = self.backbone if weights == PUBLISHED else weights
        try:
            trained = transformers.AutoModel.from_pretrained(source, config=self.body.config)
            self.body.load_state_dict(trained.state_dict())
        except Exception as error:  # no network, no folder, another network: errors of many kinds
            raise CheckpointError(cannot_load(weights, self.backbone, error)) from error


def architecture_of(backbone: str) -> dict[str, Any]:
    """All that is needed to make a backbone without the hub, as JSON takes it. Raises ConfigurationError."""
    transformers = backbone_library("transformers")
    try:
        config = transformers.AutoConfig.from_pretrained(backbone)
    except Exception as error:  # errors of many kinds
        reason = str(error).splitlines()[0]
        raise ConfigurationError(f"vision.backbone={backbone}: transformers does not know it ({reason})") from error
    try:
        seen = transformers.AutoImageProcessor.from_pretrained(backbone)
        statistics = {"mean": list(seen.image_mean), "deviation": list(seen.image_std)}
    except Exception:  # a folder with a model alone
        statistics = {"mean": list(IMAGENET_MEAN), "deviation": list(IMAGENET_DEVIATION)}
    vision = getattr(config, "vision_config", config)  # SigLIP's and CLIP's other half reads text
    return {"config": vision.to_dict(), **statistics}
