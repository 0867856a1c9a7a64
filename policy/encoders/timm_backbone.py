"""Any vision backbone of ``timm`` by its name, DINOv2 and SigLIP among them (extra ``vision-backbones``)."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from flowchunk.datasets.errors import CheckpointError, ConfigurationError
from flowchunk.policy.encoders.image_input import PictureInput, whole_patches
from flowchunk.policy.encoders.spatial_softmax import SpatialSoftmax

PUBLISHED = "pretrained"


class TimmBackbone(nn.Module):
    """Pictures (N, 3, h, w) in [0, 1] to ``features`` numbers: the backbone's last feature map, then a spatial softmax.

    backbone: as ``timm.list_models()`` has it, such as "vit_small_patch14_dinov2". resize: side in pixels that pictures
    are brought to; by default they are enlarged to whole patches alone. The optimiser moves the backbone at a tenth of
    its rate. Raises ConfigurationError where timm is not installed, does not know the name or cannot give its features
    as a map.
    """

    def __init__(
        self, *, picture_size: Sequence[int], backbone: str, resize: int | None = None, keypoints: int = 32
    ) -> None:
        super().__init__()
        self.backbone, self.learning_rate_scales = backbone, {"body": 0.1}
        timm = backbone_library("timm")
        try:
            published = timm.get_pretrained_cfg(backbone)
            self._options = {"features_only": True, "out_indices": [-1]}
            if is_fixed := bool(published and published.fixed_input_size):
                self._options["dynamic_img_size"] = True  # a transformer: its places are interpolated
            self.body = timm.create_model(backbone, **self._options)
        except Exception as error:  # timm raises errors of many kinds
            raise ConfigurationError(f"vision.backbone={backbone}: timm cannot make it ({error})") from error
        patch = self.body.feature_info.reduction()[-1] if is_fixed else 1
        statistics = {"mean": published.mean, "deviation": published.std} if published else {}
        self.input = PictureInput(size=whole_patches(picture_size, patch, resize), **statistics)
        self.keypoints = SpatialSoftmax(self.body.feature_info.channels()[-1], keypoints=keypoints)
        self.features = self.keypoints.features

    def forward(self, pictures: Tensor) -> Tensor:
        return self.keypoints(self.body(self.input(pictures))[-1])

    def load_weights(self, weights: str) -> None:
        """Start from what timm publishes under this name ("pretrained"), or from a file of such weights.

        Raises CheckpointError where they cannot be fetched or read, or are another network's.
        """
        where = {} if weights == PUBLISHED else {"pretrained_cfg_overlay": {"file": weights}}
        try:
            trained = backbone_library("timm").create_model(self.backbone, pretrained=True, **self._options, **where)
        except Exception as error:  # no network, no file, another network: errors of many kinds
            raise CheckpointError(cannot_load(weights, self.backbone, error)) from error
        self.body.load_state_dict(trained.state_dict())


def backbone_library(name: str) -> Any:
    """``timm`` or ``transformers``. Raises ConfigurationError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigurationError(
            f"vision={name} needs the package {name} ({error}): pip install 'flowchunk[vision-backbones]'"
        ) from error


def cannot_load(weights: str, backbone: str, error: Exception) -> str:
    """What to say of weights that could not be loaded."""
    reason = (str(error) or repr(error)).splitlines()[0]
    return (
        f"cannot load vision.weights={weights} for {backbone}: {reason}; connect to the internet once, "
        "give the path of its weights, or give vision.weights=null to train from scratch"
    )
