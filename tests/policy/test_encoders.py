"""Encoders: crops and colors of images, cameras, features, and what does not fit together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from flowchunk.datasets.errors import CheckpointError, ConfigurationError, SpecMismatchError
from flowchunk.datasets.specs import ObservationField, ObservationSpec
from flowchunk.policy.encoders.image_transforms import crop_images, jitter_colors
from flowchunk.policy.encoders.observation import ObservationEncoder
from flowchunk.policy.encoders.resnet import ResNet18
from flowchunk.policy.encoders.small_conv import SmallConv
from flowchunk.policy.encoders.spatial_softmax import SpatialSoftmax

FRONT = ObservationField((20, 24, 3), camera="front", crop=(16, 18))
WRIST = replace(FRONT, camera="wrist")
HAND = ObservationField((3,), wraps=(2,))
SPEC = ObservationSpec({"front": FRONT, "wrist": WRIST, "hand": HAND})
SMALL = {"widths": (8, 8, 8), "keypoints": 4}


def make_observation(batch: int = 2, steps: int = 2, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (2, batch, steps, 20, 24, 3), dtype=torch.uint8, generator=generator)
    return {"front": images[0], "wrist": images[1], "hand": torch.randn(batch, steps, 3, generator=generator)}


def make_encoder(spec: ObservationSpec = SPEC, **options: Any) -> ObservationEncoder:
    torch.manual_seed(0)
    return ObservationEncoder(spec, observation_steps=2, vision="small_conv", options={**SMALL, **options})


# -- crops and colors ----------------------------------------------------------------------------------------------


@given(position=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)), steps=st.integers(1, 3))
def test_a_crop_is_a_part_of_the_image(position: tuple[float, float], steps: int) -> None:
    images = torch.arange(20 * 24).reshape(1, 1, 20, 24, 1).expand(2, steps, 20, 24, 3)
    part = crop_images(images, (16, 18), torch.tensor([position, position]))
    assert part.shape == (2, steps, 16, 18, 3)
    top, left = divmod(int(part[0, 0, 0, 0, 0]), 24)
    assert (top, left) == (int(position[0] * 5), int(position[1] * 7))
    assert torch.equal(part, images[:, :, top : top + 16, left : left + 18])


def test_crops_are_centered_by_default() -> None:
    images = make_observation()["front"]
    assert torch.equal(crop_images(images, (16, 18)), images[:, :, 2:18, 3:21])


def test_a_whole_image_is_its_own_crop() -> None:
    images = make_observation()["front"]
    assert torch.equal(crop_images(images, (20, 24), torch.full((2, 2), 0.999)), images)


def test_factors_of_one_change_nothing_and_smaller_brightness_is_darker() -> None:
    images = torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(jitter_colors(images, torch.ones(2, 3)), images)
    darker = jitter_colors(images, torch.tensor([[0.5, 1, 1], [1, 1, 1]]))
    torch.testing.assert_close(darker[0], images[0] / 2)
    torch.testing.assert_close(darker[1], images[1])
    gray = jitter_colors(images, torch.tensor([[1.0, 1, 0], [1, 0, 1]]))
    torch.testing.assert_close(gray[0, :, 0], gray[0, :, 1])
    flat = gray[1].flatten(2)
    torch.testing.assert_close(flat, flat.mean((1, 2), keepdim=True).expand_as(flat))  # without contrast one gray value


def test_spatial_softmax_finds_where_a_bright_cell_is() -> None:
    softmax = SpatialSoftmax(1, keypoints=1)
    nn.init.constant_(softmax.maps.weight, 50.0)
    features = torch.zeros(1, 1, 5, 9)
    features[0, 0, 4, 2] = 1.0
    torch.testing.assert_close(softmax(features), torch.tensor([[2.5 / 4.5 - 1, 4.5 / 2.5 - 1]]))


# -- names of cameras -------------------------------------------------------------------------------------------------

HARD_NAMES = (
    "images.front",
    "images/front",
    "values",
    "items",
    "type",
    "forward",
    "training",
    "a b%",
    "camera:values",
    "camera",
)


def test_a_camera_may_have_any_name() -> None:
    spec = ObservationSpec({"hand": HAND, **dict.fromkeys(HARD_NAMES, FRONT)})
    encoder = make_encoder(spec)
    images = make_observation()["front"]
    observation = {"hand": make_observation()["hand"], **dict.fromkeys(HARD_NAMES, images)}
    assert encoder(observation, encoder.sample_augmentation(2, torch.Generator())).shape == (2, encoder.condition_size)
    networks = {id(encoder.camera(name)) for name in HARD_NAMES}
    assert len(networks) == len(HARD_NAMES)  # each has its own
    again = make_encoder(spec)
    again.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(again(observation), encoder(observation))


def test_allowed_camera_names_are_the_names_of_their_weights() -> None:
    spec = ObservationSpec(dict.fromkeys(("image", "front_image", "wrist-image", "images/front"), FRONT))
    names = {name.split(".")[1] for name in make_encoder(spec).state_dict() if name.startswith("cameras.")}
    assert names == set(spec.fields)


# -- encoders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [SmallConv(keypoints=5), ResNet18(keypoints=5)], ids=["small_conv", "resnet18"])
def test_vision_networks_have_the_declared_number_of_features(network: SmallConv | ResNet18) -> None:
    network.eval()
    images = torch.rand(3, 3, 40, 36)
    features = network(images)
    assert features.shape == (3, network.features) == (3, 10)
    assert features.abs().max() <= 1  # positions in the image
    torch.testing.assert_close(features[:1], network(images[:1]))  # samples do not depend on each other
    torch.testing.assert_close(network(images.contiguous(memory_format=torch.channels_last)), features)


def test_resnet_has_no_batch_norm() -> None:
    kinds = {type(module) for module in ResNet18().modules()}
    assert nn.GroupNorm in kinds
    assert nn.BatchNorm2d not in kinds


def test_the_condition_has_the_declared_size() -> None:
    encoder = make_encoder()
    assert encoder(make_observation()).shape == (2, encoder.condition_size) == (2, 2 * 4 + 2 * 2 * 8)
    state_only = ObservationEncoder(ObservationSpec({"hand": HAND}), observation_steps=2)
    assert state_only.condition_size == 8
    images_only = make_encoder(ObservationSpec({"front": FRONT}))
    assert images_only(make_observation()).shape == (2, images_only.condition_size) == (2, 16)


def test_cameras_have_their_own_weights_or_shared_ones() -> None:
    own, shared = make_encoder(), make_encoder(share_weights=True)
    assert list(own.cameras) == ["front", "wrist"]
    assert list(shared.cameras) == ["front"]
    swapped = make_observation()
    swapped["front"], swapped["wrist"] = swapped["wrist"], swapped["front"]
    front, wrist = shared(make_observation())[:, 8:].chunk(2, dim=1)
    torch.testing.assert_close(shared(swapped)[:, 8:], torch.cat([wrist, front], dim=1))


def test_only_the_latest_images_are_encoded() -> None:
    encoder = make_encoder(image_steps=1)
    observation = make_observation()
    assert encoder.condition_size == 2 * 4 + 2 * 8
    before = encoder(observation)
    for key in ("front", "wrist"):
        observation[key][:, 0] = 0
    assert torch.equal(encoder(observation), before)
    observation["hand"][:, 0] += 1
    assert not torch.equal(encoder(observation), before)


def test_augmentation_moves_the_crop_and_changes_the_colors() -> None:
    encoder = make_encoder(color_jitter=0.3)
    augmentation = encoder.sample_augmentation(2, torch.Generator().manual_seed(0))
    assert {name: tuple(rows.shape) for name, rows in augmentation.items()} == {
        "crop.front": (2, 2),
        "color.front": (2, 3),
        "crop.wrist": (2, 2),
        "color.wrist": (2, 3),
    }
    observation = make_observation()
    assert not torch.equal(encoder(observation, augmentation), encoder(observation))
    middle = {"crop.front": torch.full((2, 2), 0.5), "crop.wrist": torch.full((2, 2), 0.5)}
    assert torch.equal(encoder(observation, middle), encoder(observation))
    assert (
        make_encoder(ObservationSpec({"front": replace(FRONT, crop=None)})).sample_augmentation(2, torch.Generator())
        == {}
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_steps": 3}, r"image_steps=3 must be from 1 to observation_steps=2"),
        ({"image_steps": -1}, r"image_steps=-1 must be from 1"),
        ({"color_jitter": 1.0}, r"color_jitter=1.0 must be at least 0 and below 1"),
        ({"widths": (8,)}, r"widths=\[8\]: expected two or more multiples of 8"),
        ({"widths": (8, 12)}, r"widths=\[8, 12\]"),
        ({"depth": 3}, r"cannot make vision=small_conv: .*depth"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_encoder(**options)


def test_images_of_two_sizes_cannot_share_weights() -> None:
    spec = ObservationSpec({"front": FRONT, "wrist": replace(WRIST, crop=None)})
    assert make_encoder(spec).condition_size == 32
    with pytest.raises(
        ConfigurationError, match=r"share_weights=true needs images of the same size, but these have \[\(16, 18\), \("
    ):
        make_encoder(spec, share_weights=True)


def test_vision_network_and_observation_must_fit_together() -> None:
    with pytest.raises(ConfigurationError, match=r"the observation has images \(front, wrist\): choose vision="):
        ObservationEncoder(SPEC, observation_steps=2)
    with pytest.raises(ConfigurationError, match="vision=resnet18, but the observation has no images"):
        ObservationEncoder(ObservationSpec({"hand": HAND}), observation_steps=2, vision="resnet18")
    with pytest.raises(ConfigurationError, match="unknown vision 'eyes'; there are small_conv, resnet18, timm"):
        ObservationEncoder(SPEC, observation_steps=2, vision="eyes")


def test_only_images_are_cropped_and_the_crop_must_fit() -> None:
    smaller = SPEC.cropped((8, 9))
    assert (smaller.fields["front"].crop, smaller.fields["hand"]) == ((8, 9), HAND)
    with pytest.raises(SpecMismatchError, match=r"crop=\(21, 9\) must be \(height, width\) in pixels and fit into"):
        SPEC.cropped((21, 9))


# -- weights from elsewhere ------------------------------------------------------------------------------------------


def torchvision_weights(folder: Path, suffix: str) -> tuple[Path, dict[str, Tensor]]:
    from torchvision.models import resnet18

    torch.manual_seed(1)
    weights = resnet18(weights=None).state_dict()
    path = folder / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)
    return path, weights


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_resnet_loads_weights_from_a_file(suffix: str, tmp_path: Path) -> None:
    path, weights = torchvision_weights(tmp_path, suffix)
    encoder = ObservationEncoder(SPEC, observation_steps=2, vision="resnet18")
    encoder.load_weights(str(path))
    for network in encoder.cameras.values():
        body = network.get_submodule("body").state_dict()
        assert torch.equal(body["conv1.weight"], weights["conv1.weight"])
        assert torch.equal(body["layer4.1.bn2.weight"], weights["layer4.1.bn2.weight"])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("nowhere.pth", "cannot load vision.weights=.*nowhere.pth: .*give the path of a file, or leave it out"),
        ("broken.pth", "cannot load vision.weights=.*broken.pth"),
        ("other.pth", "are not those of torchvision's ResNet-18"),
        ("IMAGENET9K", "neither a file nor a name of torchvision's weights: IMAGENET1K_V1"),
    ],
)
def test_weights_that_cannot_be_loaded(
    weights: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.pth").write_bytes(b"not weights")
    torch.save({"a": torch.zeros(1)}, "other.pth")
    with pytest.raises(CheckpointError, match=message):
        ResNet18().load_weights(weights)


def test_downloading_weights_needs_the_internet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match=r"cannot load vision.weights=IMAGENET1K_V1: .*give the path of a file"):
        ResNet18().load_weights("IMAGENET1K_V1")


def test_small_convolutions_have_no_published_weights() -> None:
    with pytest.raises(ConfigurationError, match="no weights for vision=small_conv"):
        make_encoder().load_weights("IMAGENET1K_V1")
