"""ResNet-18 as robot policies use it: with group norm, and a spatial softmax in place of average pooling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from flowchunk.datasets.errors import CheckpointError
from flowchunk.policy.encoders.image_input import ImageInput
from flowchunk.policy.encoders.spatial_softmax import SpatialSoftmax

CHANNELS_PER_GROUP = 16
UNUSED_WEIGHTS = ("fc.", "running_mean", "running_var", "num_batches_tracked")


class ResNet18(nn.Module):
    """Images (N, 3, h, w) in [0, 1] to (N, features) by torchvision's ResNet-18, as in Diffusion Policy (2303.04137).

    Group norm replaces batch norm: it does not mix samples, and so works with averaged weights. A spatial softmax replaces
    the average pooling, which would lose where things are.
    """

    def __init__(self, *, keypoints: int = 32) -> None:
        from torchvision.models import resnet18  # takes a second to import, and few need it

        super().__init__()
        network = resnet18(weights=None, norm_layer=group_norm)
        self.body = nn.ModuleDict(
            {name: child for name, child in network.named_children() if name not in ("avgpool", "fc")}
        )
        self.keypoints = SpatialSoftmax(512, keypoints=keypoints)
        self.features = self.keypoints.features
        self.input = ImageInput()

    def forward(self, images: Tensor) -> Tensor:
        x = self.input(images)
        for layer in self.body.values():
            x = layer(x)
        return self.keypoints(x)

    def load_weights(self, weights: str) -> None:
        """Initialize from a file of torchvision's ResNet-18 (.pth, .safetensors), or from weights by torchvision's name.

        Group norm takes over the learned scales and shifts of batch norm. Raises CheckpointError if the weights cannot be
        read or fetched, or belong to another network.
        """
        tensors = _read(weights)
        used = {name: value for name, value in tensors.items() if not any(part in name for part in UNUSED_WEIGHTS)}
        try:
            self.body.load_state_dict(used)
        except RuntimeError as error:
            raise CheckpointError(
                f"vision.weights={weights} are not those of torchvision's ResNet-18: {error}"
            ) from error


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm with groups of 16 channels."""
    return nn.GroupNorm(max(1, channels // CHANNELS_PER_GROUP), channels)


def _read(weights: str) -> dict[str, Any]:
    """The tensors of a file, or of the weights that torchvision has by this name."""
    path = Path(weights).expanduser()
    is_file = path.exists() or bool(path.suffix)
    try:
        tensors: dict[str, Any] = _from_file(path) if is_file else _published(weights)
    except CheckpointError:
        raise
    except Exception as error:  # a missing file, a broken one, no network: torch raises many types of errors
        raise CheckpointError(
            f"cannot load vision.weights={weights}: {error}; give the path of a file, or leave it out to train from scratch"
        ) from error
    return tensors


def _from_file(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _published(name: str) -> Any:
    from torchvision.models import ResNet18_Weights

    if name not in ResNet18_Weights.__members__:
        known = ", ".join(ResNet18_Weights.__members__)
        raise CheckpointError(f"vision.weights={name} is neither a file nor a name of torchvision's weights: {known}")
    return ResNet18_Weights[name].get_state_dict(progress=True, check_hash=True)
