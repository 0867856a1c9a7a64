"""ResNet-18 as robots use it: group normalisation, and the places of keypoints in place of an average."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from flowchunk.datasets.errors import CheckpointError
from flowchunk.policy.encoders.image_input import PictureInput
from flowchunk.policy.encoders.spatial_softmax import SpatialSoftmax

CHANNELS_A_GROUP = 16
NOT_USED = ("fc.", "running_mean", "running_var", "num_batches_tracked")


class ResNet18(nn.Module):
    """Pictures (N, 3, h, w) in [0, 1] to ``features`` numbers by torchvision's ResNet-18 (Diffusion Policy's choice).

    Batch normalisation gives way to group normalisation, which does not mix samples and so agrees with an average of the
    weights; the last average to a spatial softmax, which keeps where things are.
    """

    def __init__(self, *, keypoints: int = 32) -> None:
        from torchvision.models import resnet18  # a second to import, and few need it

        super().__init__()
        network = resnet18(weights=None, norm_layer=group_norm)
        self.body = nn.ModuleDict(
            {name: child for name, child in network.named_children() if name not in ("avgpool", "fc")}
        )
        self.keypoints = SpatialSoftmax(512, keypoints=keypoints)
        self.features = self.keypoints.features
        self.input = PictureInput()

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.input(pictures)
        for layer in self.body.values():
            x = layer(x)
        return self.keypoints(x)

    def load_weights(self, weights: str) -> None:
        """Start from a file of torchvision's ResNet-18 (.pth, .safetensors) or from weights that torchvision names.

        What batch normalisation had learnt to scale and shift, group normalisation takes over. Raises CheckpointError
        where the weights cannot be read, fetched, or are another network's.
        """
        tensors = _read(weights)
        kept = {name: value for name, value in tensors.items() if not any(part in name for part in NOT_USED)}
        try:
            self.body.load_state_dict(kept)
        except RuntimeError as error:
            raise CheckpointError(
                f"vision.weights={weights} are not a ResNet-18's as torchvision has it: {error}"
            ) from error


def group_norm(channels: int) -> nn.GroupNorm:
    """In groups of 16 channels."""
    return nn.GroupNorm(max(1, channels // CHANNELS_A_GROUP), channels)


def _read(weights: str) -> dict[str, Any]:
    """The tensors of a file, or of what torchvision calls so."""
    path = Path(weights).expanduser()
    is_file = path.exists() or bool(path.suffix)
    try:
        tensors: dict[str, Any] = _from_file(path) if is_file else _published(weights)
    except CheckpointError:
        raise
    except Exception as error:  # a missing file, a broken one, no network: torch raises errors of many kinds
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
        raise CheckpointError(f"vision.weights={name} is neither a file nor one of torchvision's: {known}")
    return ResNet18_Weights[name].get_state_dict(progress=True, check_hash=True)
