"""Augmentation transforms images by the sampled parameters, which stay in their ranges."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flowchunk.policy.image_augmentation import augment, sample_augmentation


def random_images(*shape: int) -> Tensor:
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(0)) - 1


def make_parameters(*, right: float = 0.0, down: float = 0.0, angle: float = 0.0, scale: float = 1.0) -> Tensor:
    return torch.tensor([[right, down, angle, scale]])


def test_parameters_are_in_their_ranges_and_come_from_the_generator() -> None:
    parameters = sample_augmentation(4000, torch.Generator().manual_seed(3))
    largest = torch.tensor([1 / 8, 1 / 8, math.radians(15), 0.1])
    deviation = (parameters - torch.tensor([0.0, 0.0, 0.0, 1.0])).abs().amax(0)
    assert (deviation <= largest).all()
    assert (deviation > 0.98 * largest).all()
    torch.testing.assert_close(parameters.mean(0), torch.tensor([0.0, 0.0, 0.0, 1.0]), rtol=0, atol=0.01)
    assert torch.equal(parameters, sample_augmentation(4000, torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 28, 28), (2, 1, 6, 9)])
def test_neutral_parameters_change_nothing(shape: tuple[int, ...]) -> None:
    images = random_images(*shape)
    torch.testing.assert_close(augment(images, make_parameters().expand(2, -1)), images, rtol=0, atol=1e-5)


def test_a_shift_moves_pixels_and_repeats_the_border() -> None:
    images = random_images(1, 1, 8, 8)
    moved = augment(images, make_parameters(right=1 / 8, down=-2 / 8))
    torch.testing.assert_close(moved[..., :-2, 1:], images[..., 2:, :-1], rtol=0, atol=1e-5)
    torch.testing.assert_close(moved[..., :-2, 0], images[..., 2:, 0], rtol=0, atol=1e-5)


def test_a_quarter_turn_is_exact_and_clockwise() -> None:
    images = random_images(1, 2, 8, 8)
    rotated = augment(images, make_parameters(angle=math.pi / 2))
    torch.testing.assert_close(rotated, images.rot90(-1, (2, 3)), rtol=0, atol=1e-4)


def test_a_rotation_of_an_oblong_image_is_a_rotation_in_pixels() -> None:
    oblong, square = random_images(1, 1, 9, 15), torch.zeros(1, 1, 15, 15)
    square[:, :, 3:12] = oblong
    torch.testing.assert_close(
        augment(oblong, make_parameters(angle=0.2))[..., 3:-3, 5:-5],
        augment(square, make_parameters(angle=0.2))[..., 6:-6, 5:-5],
        rtol=0,
        atol=1e-4,
    )


def test_scale_enlarges_the_center() -> None:
    images = -torch.ones(1, 1, 28, 28)
    images[..., 10:18, 10:18] = 1.0
    smaller, larger = ((augment(images, make_parameters(scale=scale)) > 0).sum().item() for scale in (0.5, 1.5))
    assert smaller == pytest.approx(0.5**2 * 64, rel=0.15)
    assert larger == pytest.approx(1.5**2 * 64, rel=0.15)


def test_each_image_has_its_own_parameters_and_stays_in_range() -> None:
    images = random_images(5, 1, 8, 8)
    parameters = sample_augmentation(5, torch.Generator().manual_seed(1))
    together = augment(images, parameters)
    assert together.shape == images.shape
    assert together.abs().max() <= 1
    torch.testing.assert_close(together[3:4], augment(images[3:4], parameters[3:4]))
    assert not torch.allclose(together, images, atol=0.05)
