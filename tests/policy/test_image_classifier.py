"""The classifier behind the kernel distance: accurate on real digits, the same for the same seed, no global effects."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.policy.evaluation.image_classifier import ImageClassifier, accuracy, rotate_four_ways, train_classifier


@cache
def digits() -> tuple[Tensor, Tensor]:
    """1,797 images (N, 1, 8, 8) in [-1, 1] and their labels (N,)."""
    bunch = load_digits()
    return torch.as_tensor(bunch.images, dtype=torch.float32)[:, None] / 8 - 1, torch.as_tensor(bunch.target)


def test_it_classifies_real_digits_and_its_features_separate_them() -> None:
    images, labels = digits()
    classifier = train_classifier(images, labels, classes=10, seed=0, epochs=6)
    assert classifier.accuracy >= 0.98
    assert accuracy(classifier, images, labels) >= 0.98
    features = classifier.features(images)
    assert features.shape == (len(images), 128)
    assert not features.requires_grad
    means = torch.stack([features[labels == digit].mean(0) for digit in range(10)])
    nearest = torch.cdist(features, means).argmin(1)
    assert (nearest == labels).float().mean() > 0.97


def test_without_labels_it_classifies_the_four_rotations() -> None:
    images, _ = digits()
    classifier = train_classifier(images[:600], seed=0, epochs=3)
    assert classifier(images[:5]).shape == (5, 4)
    assert classifier.accuracy > 0.7  # chance is 0.25, and a 0, an 8 or a 1 looks the same upside down


def test_the_same_seed_gives_the_same_classifier_and_no_global_state_moves() -> None:
    images, labels = digits()
    state = torch.random.get_rng_state()
    first, second, other = (train_classifier(images[:150], labels[:150], seed=s, epochs=1) for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.accuracy == second.accuracy
    assert torch.equal(first.features(images[:20]), second.features(images[:20]))
    assert not torch.equal(first.features(images[:20]), other.features(images[:20]))


@pytest.mark.parametrize("size", [5, 8, 16, 28])
def test_any_size_has_the_same_number_of_features(size: int) -> None:
    classifier = ImageClassifier(channels=3, size=size, classes=4)
    images = torch.rand(2, 3, size, size)
    assert classifier.features(images).shape == (2, 128)
    assert classifier(images).shape == (2, 4)


def test_images_are_rotated_four_ways() -> None:
    images, turns = rotate_four_ways(torch.arange(8.0).view(2, 1, 2, 2))
    assert turns.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    for image, original, turn in zip(images, images[:2].repeat(4, 1, 1, 1), turns.tolist(), strict=True):
        assert torch.equal(image, original.rot90(turn, (1, 2)))


def test_invalid_images_and_labels_are_refused() -> None:
    images, labels = torch.zeros(10, 1, 8, 8), torch.arange(10)
    with pytest.raises(ConfigurationError, match="square images"):
        train_classifier(images[..., :7], labels, seed=0)
    with pytest.raises(ConfigurationError, match="a label for each of 10"):
        train_classifier(images, labels[:5], seed=0)
    with pytest.raises(ConfigurationError, match="from 0 to 9"):
        train_classifier(images, labels, classes=5, seed=0)
    with pytest.raises(ConfigurationError, match="the four rotations"):
        train_classifier(images, classes=10, seed=0)
