"""Keypoints that are learned from only images, and images that are encoded once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.image_cache import ImageCache
from flowchunk.datasets.specs import ObservationField, ObservationSpec
from flowchunk.datasets.symmetry import ImageTransform
from flowchunk.datasets.windows import ImageTensors, Windows
from flowchunk.policy.encoders.heatmap_decoder import DEVIATION, HeatmapDecoder
from flowchunk.policy.encoders.observation import ObservationEncoder
from flowchunk.policy.training.keypoints import (
    _decoder,
    _unexplained,
    encode_images_once,
    learn_keypoints,
    require_keypoints,
)

SIDE, FRAMES, SQUARE = 16, 240, 5
TINY: dict[str, Any] = {"widths": [8, 8], "keypoints": 4}


class Cache:
    place = "ram"

    def release_pages(self) -> None: ...


def places() -> np.ndarray:
    """(FRAMES, 2), the row and column of the square's corner."""
    return np.random.default_rng(0).integers(0, SIDE - SQUARE + 1, (FRAMES, 2))


def moving_square(*keys: str, symmetric: bool = False) -> Windows:
    """A white square that is somewhere else in every image, on a background that never changes."""
    background = np.random.default_rng(1).integers(0, 100, (SIDE, SIDE, 3), dtype=np.uint8)
    images = np.repeat(background[None], FRAMES, axis=0)
    for image, (row, column) in zip(images, places(), strict=True):
        image[row : row + SQUARE, column : column + SQUARE] = 255
    tensors = ImageTensors({key: torch.from_numpy(images) for key in keys or ("image",)}, cast("ImageCache", Cache()))
    frames = torch.arange(FRAMES * (1 + symmetric))
    return Windows(
        observations={},
        actions=torch.zeros(len(frames), 1),
        frames=frames,
        first=frames,
        last=frames,
        observation_steps=2,
        horizon=1,
        images=tensors,
        image_transforms={key: ImageTransform(True, True, True) for key in tensors.tensors} if symmetric else {},
    )


def make_encoder(*keys: str, crop: tuple[int, int] | None = None, **options: Any) -> ObservationEncoder:
    torch.manual_seed(3)
    spec = ObservationSpec({key: ObservationField((SIDE, SIDE, 3), camera=key) for key in keys or ("image",)})
    return ObservationEncoder(spec.cropped(crop), observation_steps=2, vision="small_conv", options={**TINY, **options})


def test_a_decoder_has_a_bump_at_each_keypoint() -> None:
    decoder = HeatmapDecoder(2, height=10, width=20)
    decoder.network = nn.Sequential()
    decoder.mean = nn.Parameter(torch.zeros(1))
    x, y = -0.55, 0.9  # centers of cells: column 4, row 9
    with torch.no_grad():
        decoder.heights[:, 1] = 3
        bumps = decoder(torch.tensor([[x, y, x, y], [0.05, -0.9, 0.05, -0.9]]))[:, :2]
    assert bumps.shape == (2, 2, 10, 20)
    peaks = [divmod(int(bump.argmax()), 20) for bump in bumps[:, 0]]
    assert peaks == [(9, 4), (0, 10)]
    torch.testing.assert_close(bumps[:, 1], 3 * bumps[:, 0])
    assert float(bumps[0, 0, 9, 4]) == pytest.approx(1, abs=1e-5)
    assert float(bumps[0, 0, 9, 5]) == pytest.approx(np.exp(-0.5 * (0.1 / DEVIATION) ** 2), rel=1e-3)
    assert float(bumps[0, 0, 8, 4]) == pytest.approx(np.exp(-0.5 * (0.2 / DEVIATION) ** 2), rel=1e-3)


def unexplained_variance(features: np.ndarray, values: np.ndarray) -> float:
    """Of values that a linear function of the features predicts."""
    inputs = np.column_stack([features, np.ones(len(features))])
    residual = values - inputs @ np.linalg.lstsq(inputs, values, rcond=None)[0]
    return float(residual.var(0).sum() / values.var(0).sum())


def test_keypoints_follow_what_moves() -> None:
    windows, encoder = moving_square(), make_encoder()
    before = encode_images_once(encoder, windows)[0].observations["image"].numpy()
    explained = learn_keypoints(encoder, windows, steps=200, seed=0)
    after = encode_images_once(encoder, windows)[0].observations["image"].numpy()
    assert 0.6 < explained < 1
    found = [unexplained_variance(features, places().astype(float)) for features in (before, after)]
    assert found[1] < 0.02
    assert found[1] < found[0] / 4


def test_what_is_explained_is_how_images_differ_from_their_mean() -> None:
    encoder, images = make_encoder(), moving_square().read_images("image", torch.arange(8)[:, None])
    shown = encoder.crop("image", images, {})[:, 0]
    for decoded, missed in ((shown - shown.mean(0), 0.0), (torch.zeros_like(shown), 1.0)):
        decoder = nn.Module()
        decoder.forward = lambda _, decoded=decoded: decoded
        assert float(_unexplained(encoder, "image", images, {}, decoder)) == pytest.approx(missed, abs=1e-6)


def test_what_is_reconstructed_is_what_the_encoder_was_shown() -> None:
    encoder, images = make_encoder(crop=(14, 12)), moving_square().read_images("image", torch.arange(8)[:, None])
    augmentation = {"crop.image": torch.rand(8, 2, generator=torch.Generator().manual_seed(0))}
    shown = encoder.crop("image", images, augmentation)[:, 0]
    decoder = _decoder(encoder, "image")
    assert (decoder.height, decoder.width) == shown.shape[-2:] == (14, 12)
    decoder.forward = lambda positions: shown - shown.mean(0)  # type: ignore[method-assign]
    assert float(_unexplained(encoder, "image", images, augmentation, decoder)) == pytest.approx(0, abs=1e-6)


def test_every_step_has_images_and_augmentation_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[list[int], list[float]]] = []
    read, sample = ImageTensors.read, ObservationEncoder.sample_augmentation

    def noted(encoder: ObservationEncoder, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        augmentation = sample(encoder, size, generator)
        drawn.append(([], augmentation["crop.image"].flatten().tolist()))
        return augmentation

    def read_and_noted(tensors: ImageTensors, key: str, rows: Tensor, *rest: Any) -> Tensor:
        drawn[-1][0].extend(rows.flatten().tolist())
        return read(tensors, key, rows, *rest)

    monkeypatch.setattr(ObservationEncoder, "sample_augmentation", noted)
    monkeypatch.setattr(ImageTensors, "read", read_and_noted)
    for seed in (0, 1):
        learn_keypoints(make_encoder(crop=(14, 12)), moving_square(), steps=2, seed=seed)
    for part in (0, 1):
        assert len({tuple(step[part]) for step in drawn}) == 4, "two seeds of two steps"


def test_no_gradient_is_left_for_the_norm_of_the_training_that_follows() -> None:
    encoder = make_encoder()
    learn_keypoints(encoder, moving_square(), steps=2, seed=0)
    assert all(parameter.grad is None for parameter in encoder.parameters())


def weights(encoder: ObservationEncoder) -> Tensor:
    return nn.utils.parameters_to_vector(encoder.parameters())


def test_keypoints_are_a_function_of_the_seed() -> None:
    learned: list[tuple[float, Tensor]] = []
    for seed in (0, 0, 1):
        encoder = make_encoder(crop=(14, 12), color_jitter=0.3)
        steps: list[int] = []
        torch.manual_seed(len(learned))  # whatever was drawn before
        explained = learn_keypoints(encoder, moving_square(), steps=3, seed=seed, advance=steps.append)
        learned.append((explained, weights(encoder)))
        assert steps == [1, 1, 1]
    assert learned[0][0] == learned[1][0] != learned[2][0]
    assert torch.equal(learned[0][1], learned[1][1])
    assert not torch.equal(learned[0][1], learned[2][1])


def test_every_camera_learns() -> None:
    for share_weights in (False, True):
        encoder = make_encoder("front", "wrist", share_weights=share_weights)
        before = {name: values.clone() for name, values in encoder.named_parameters()}
        learn_keypoints(encoder, moving_square("front", "wrist"), steps=2, seed=0)
        unchanged = [name for name, values in encoder.named_parameters() if torch.equal(values, before[name])]
        assert all(name.endswith("maps.bias") for name in unchanged), "which a softmax does not depend on"


@pytest.mark.parametrize("image_steps", [1, 2])
def test_images_encoded_once_are_those_encoded_in_every_batch(image_steps: int) -> None:
    windows = moving_square("front", "wrist", symmetric=True)
    encoder = make_encoder("front", "wrist", crop=(14, 12), image_steps=image_steps)
    some = torch.tensor([3, 7, FRAMES + 3, FRAMES + 9])
    training, validation = (replace(windows, frames=frames, first=frames - 1) for frames in (some, some + 1))
    counted: list[int] = []
    encoded = encode_images_once(encoder, training, validation, advance=counted.append)
    assert sum(counted) == len({*some.tolist(), *(some + 1).tolist()})
    assert encoded[0].images is None
    batch, expected = encoded[1].batch(torch.arange(4)), validation.batch(torch.arange(4))
    assert batch["observation.front"].dtype == torch.float32
    features = [encoder.encode_images({key: found[f"observation.{key}"] for key in ("front", "wrist")})
                for found in (batch, expected)]  # fmt: skip
    torch.testing.assert_close(features[0], features[1], rtol=1e-4, atol=1e-5)
    assert (
        encoded[0].observations["front"][~torch.isin(torch.arange(2 * FRAMES), torch.cat([some, some + 1]))].eq(0).all()
    )
    assert encoder.training, "as it was"


@pytest.mark.parametrize("vision", ["timm", "transformers", None])
def test_encoders_without_keypoints_are_refused(vision: str | None) -> None:
    with pytest.raises(ConfigurationError, match=rf"vision={vision} has no keypoints.*vision=small_conv\|resnet18"):
        require_keypoints(vision)
