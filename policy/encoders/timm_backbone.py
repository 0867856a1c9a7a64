"""Vision backbones of ``timm`` by name, such as DINOv2 and SigLIP (extra ``vision-backbones``)."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from flowchunk.datasets.errors import CheckpointError, ConfigurationError
from flowchunk.policy.encoders.image_input import ImageInput, whole_patches
from flowchunk.policy.encoders.spatial_softmax import SpatialSoftmax

PRETRAINED = "pretrained"  # the option's word for the weights that the library publishes


class TimmBackbone(nn.Module):
    """Images (N, 3, h, w) in [0, 1] to (N, features): the backbone's last feature map, then a spatial softmax.

    image_size: (h, w) in pixels. backbone: a name in ``timm.list_models()``, such as "vit_small_patch14_dinov2". resize: side
    in pixels that images are resized to; by default they are only enlarged to whole patches. The backbone is trained with a
    tenth of the learning rate. Raises ConfigurationError if timm is not installed, does not know the name, or has no feature
    maps for it.
    """

    def __init__(
        self, *, image_size: Sequence[int], backbone: str, resize: int | None = None, keypoints: int = 32
    ) -> None:
        super().__init__()
        self.backbone, self.learning_rate_scales = backbone, {"body": 0.1}
        timm = import_backbone_library("timm")
        try:
            pretrained = timm.get_pretrained_cfg(backbone)
            self._options = {"features_only": True, "out_indices": [-1]}
            if is_fixed := bool(pretrained and pretrained.fixed_input_size):
                self._options["dynamic_img_size"] = True  # a transformer, whose position embeddings are interpolated
            self.body = timm.create_model(backbone, **self._options)
        except Exception as error:  # timm raises many types of errors
            raise ConfigurationError(f"vision.backbone={backbone}: timm cannot make it ({error})") from error
        patch = self.body.feature_info.reduction()[-1] if is_fixed else 1
        statistics = {"mean": pretrained.mean, "std": pretrained.std} if pretrained else {}
        self.input = ImageInput(size=whole_patches(image_size, patch, resize), **statistics)
        self.keypoints = SpatialSoftmax(self.body.feature_info.channels()[-1], keypoints=keypoints)
        self.features = self.keypoints.features

    def forward(self, images: Tensor) -> Tensor:
        return self.keypoints(self.body(self.input(images))[-1])

    def load_weights(self, weights: str) -> None:
        """Initialize with the weights that timm publishes for the backbone ("pretrained"), or from a file of such weights.

        Raises CheckpointError if they cannot be fetched or read, or belong to another network.
        """
        source = {} if weights == PRETRAINED else {"pretrained_cfg_overlay": {"file": weights}}
        try:
            trained = import_backbone_library("timm").create_model(
                self.backbone, pretrained=True, **self._options, **source
            )
        except Exception as error:  # offline, no such file, another network: many types of errors
            raise CheckpointError(loading_error_message(weights, self.backbone, error)) from error
        self.body.load_state_dict(trained.state_dict())


def import_backbone_library(name: str) -> Any:
    """``timm`` or ``transformers``. Raises ConfigurationError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigurationError(
            f"vision={name} needs the package {name} ({error}): pip install 'flowchunk[vision-backbones]'"
        ) from error


def loading_error_message(weights: str, backbone: str, error: Exception) -> str:
    """The message about weights that could not be loaded."""
    reason = (str(error) or repr(error)).splitlines()[0]
    return (
        f"cannot load vision.weights={weights} for {backbone}: {reason}; connect to the internet once, "
        "give the path of its weights, or give vision.weights=null to train from scratch"
    )
