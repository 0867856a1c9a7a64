"""Vision backbones of ``transformers`` by name, such as DINOv2 and SigLIP (extra ``vision-backbones``)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowchunk.datasets.errors import CheckpointError, ConfigurationError
from flowchunk.policy.encoders.image_input import IMAGENET_MEAN, IMAGENET_STD, ImageInput, whole_patches
from flowchunk.policy.encoders.spatial_softmax import SpatialSoftmax
from flowchunk.policy.encoders.timm_backbone import PRETRAINED, import_backbone_library, loading_error_message


class TransformersBackbone(nn.Module):
    """Images (N, 3, h, w) in [0, 1] to (N, features): the last hidden state as a map, then a spatial softmax.

    image_size: (h, w) in pixels. backbone: a name on the Hugging Face hub, such as "facebook/dinov2-small", or a folder.
    architecture: what ``read_architecture`` returns for it, stored in checkpoints so that they load without the hub. resize:
    side in pixels that images are resized to; by default they are only enlarged to whole patches. The backbone is trained
    with a tenth of the learning rate. Raises ConfigurationError if the library is not installed or cannot make the backbone.
    """

    def __init__(
        self,
        *,
        image_size: Sequence[int],
        backbone: str,
        architecture: Mapping[str, Any] | None = None,
        resize: int | None = None,
        keypoints: int = 32,
    ) -> None:
        super().__init__()
        self.backbone, self.learning_rate_scales = backbone, {"body": 0.1}
        architecture = read_architecture(backbone) if architecture is None else architecture
        transformers = import_backbone_library("transformers")
        try:
            options = dict(architecture["config"])
            config = transformers.AutoConfig.for_model(options.pop("model_type"), **options)
            self.body = transformers.AutoModel.from_config(config)
        except Exception as error:  # many types of errors
            raise ConfigurationError(f"vision.backbone={backbone}: transformers cannot make it ({error})") from error
        patch = getattr(config, "patch_size", 1)
        size = whole_patches(image_size, patch, resize)
        self.grid = [side // patch for side in size]
        self.input = ImageInput(size=size, mean=architecture["mean"], std=architecture["deviation"])
        interpolate = "interpolate_pos_encoding"
        self._options = {interpolate: True} if interpolate in inspect.signature(self.body.forward).parameters else {}
        channels = config.hidden_sizes[-1] if hasattr(config, "hidden_sizes") else config.hidden_size
        self.keypoints = SpatialSoftmax(channels, keypoints=keypoints)
        self.features = self.keypoints.features
        self._freeze_unused(image_size)

    def _freeze_unused(self, image_size: Sequence[int]) -> None:
        """Freeze the parameters that no feature depends on, such as mask tokens and pooling heads.

        They never get a gradient, which resuming an optimizer and sharing gradients between processes need.
        """
        was_training = self.training
        with torch.inference_mode(False), torch.enable_grad():
            features = self.eval()(torch.zeros(1, 3, *image_size))
            parameters = list(self.body.parameters())
            gradients = torch.autograd.grad(features.sum(), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)
        self.train(was_training)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.body(pixel_values=self.input(images), **self._options).last_hidden_state
        if hidden.ndim == 3:  # tokens (N, extra + patches, channels): the class token and registers come first
            patches = self.grid[0] * self.grid[1]
            hidden = hidden[:, -patches:].unflatten(1, self.grid).permute(0, 3, 1, 2)
        return self.keypoints(hidden)

    def load_weights(self, weights: str) -> None:
        """Initialize with the weights that the hub has for the backbone ("pretrained"), or from a folder of such weights.

        Raises CheckpointError if they cannot be fetched or read, or belong to another network.
        """
        transformers = import_backbone_library("transformers")
        source = self.backbone if weights == PRETRAINED else weights
        try:
            trained = transformers.AutoModel.from_pretrained(source, config=self.body.config)
            self.body.load_state_dict(trained.state_dict())
        except Exception as error:  # offline, no such folder, another network: many types of errors
            raise CheckpointError(loading_error_message(weights, self.backbone, error)) from error


def read_architecture(backbone: str) -> dict[str, Any]:
    """What is needed to make a backbone without the hub, as JSON values: ``config``, ``mean`` and ``deviation`` (std).

    Raises ConfigurationError if transformers does not know the name.
    """
    transformers = import_backbone_library("transformers")
    try:
        config = transformers.AutoConfig.from_pretrained(backbone)
    except Exception as error:  # many types of errors
        reason = str(error).splitlines()[0]
        raise ConfigurationError(f"vision.backbone={backbone}: transformers does not know it ({reason})") from error
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(backbone)
        statistics = {"mean": list(processor.image_mean), "deviation": list(processor.image_std)}
    except Exception:  # a folder with only a model
        statistics = {"mean": list(IMAGENET_MEAN), "deviation": list(IMAGENET_STD)}
    vision = getattr(config, "vision_config", config)  # without the text model of SigLIP and CLIP
    return {"config": vision.to_dict(), **statistics}
