"""A small image classifier, whose features are compared by the kernel distance between two sets of images.

Without labels it learns to recognize by how many quarter turns an image is rotated (Gidaris et al. 1803.07728), which
still yields features of shape.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

import torch
import torch.nn.functional as F  # noqa: N812 -- the name that every torch user reads at a glance
from rich.progress import Progress
from torch import Tensor, nn

from flowchunk.datasets.errors import ConfigurationError

INFERENCE_BATCH_SIZE = 1024
"""Images per network call without gradient."""
PROGRESS_BAR_DELAY = 2.0
"""Seconds before a progress bar appears."""


class ImageClassifier(nn.Module):
    """Images (B, C, size, size) in [-1, 1] to logits (B, classes), by convolutions that halve the image to 4 to 7 pixels.

    ``accuracy`` is the fraction of held-out images classified correctly, NaN before training.
    """

    def __init__(self, *, channels: int, size: int, classes: int, width: int = 32, features: int = 128) -> None:
        super().__init__()
        self.accuracy = float("nan")
        layers: list[nn.Module] = [*convolution(channels, width), *convolution(width, width)]
        while size >= 8:
            layers += [nn.MaxPool2d(2), *convolution(width, 2 * width)]
            size, width = size // 2, 2 * width
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * size**2, features), nn.ReLU())
        self.output = nn.Linear(features, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.output(self.body(images))

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """The input of the last layer, (N, features) for any number of images (N, C, size, size); without gradient."""
        return torch.cat([self.body(part) for part in torch.split(images, INFERENCE_BATCH_SIZE)])


def convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """A 3 x 3 convolution, group norm (the same in training and evaluation) and ReLU."""
    return nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.ReLU()


def train_classifier(
    images: Tensor,
    labels: Tensor | None = None,
    *,
    classes: int | None = None,
    seed: int,
    epochs: int = 12,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    held_out: float = 0.2,
) -> ImageClassifier:
    """Train on images (N, C, size, size) in [-1, 1] and labels (N,) from 0 to classes - 1.

    held_out: the fraction of the images that is only used to measure ``accuracy``. Without labels the images are rotated
    by 0, 90, 180 and 270 degrees, and the rotations are the classes. On the CPU the same seed gives the same classifier;
    the global random state does not change. Raises ConfigurationError for images or labels of the wrong shape or range.
    """
    check_images(images, labels, classes)
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(images), generator=generator)
    test, train = shuffled.tensor_split([max(1, round(held_out * len(images)))])
    (test_images, test_labels), (images, labels) = (
        rotate_four_ways(images[part]) if labels is None else (images[part], labels[part].long())
        for part in (test, train)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = ImageClassifier(
            channels=images.shape[1],
            size=images.shape[2],
            classes=classes or int(max(labels.max(), test_labels.max())) + 1,
        ).to(images.device)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=learning_rate, weight_decay=0.05)
    steps = epochs * math.ceil(len(images) / batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    order = shuffled_batches(len(images), size=batch_size, epochs=epochs, generator=generator)
    for batch in with_delayed_progress(order, total=steps, title="training the classifier"):
        loss = F.cross_entropy(classifier(images[batch]), labels[batch], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    classifier.accuracy = accuracy(classifier, test_images, test_labels)
    return classifier


def check_images(images: Tensor, labels: Tensor | None, classes: int | None) -> None:
    """Raise ConfigurationError unless there are at least two images, square, with labels from 0 to classes - 1."""
    if images.ndim != 4 or images.shape[2] != images.shape[3] or len(images) < 2:
        raise ConfigurationError(f"expected at least two square images (N, C, size, size), got {tuple(images.shape)}")
    if labels is None:
        if classes not in (None, 4):
            raise ConfigurationError(
                f"classes={classes}: without labels the classes are the four rotations; leave it out"
            )
        return
    if labels.shape != images.shape[:1]:
        raise ConfigurationError(f"expected a label for each of {len(images)} images, got {tuple(labels.shape)}")
    if labels.min() < 0 or (classes is not None and labels.max() >= classes):
        raise ConfigurationError(
            f"labels range from {int(labels.min())} to {int(labels.max())}: they must be in 0 … classes - 1"
        )


def rotate_four_ways(images: Tensor) -> tuple[Tensor, Tensor]:
    """Images (N, C, size, size) in all four rotations, (4 N, C, size, size), and their numbers of quarter turns, (4 N,)."""
    turns = torch.arange(4, device=images.device)
    return torch.cat([images.rot90(k, (2, 3)) for k in range(4)]), turns.repeat_interleave(len(images))


@torch.no_grad()
def accuracy(classifier: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The fraction of images (N, C, size, size) that are classified as their labels (N,)."""
    parts = zip(torch.split(images, INFERENCE_BATCH_SIZE), torch.split(labels, INFERENCE_BATCH_SIZE), strict=True)
    return sum(int((classifier(part).argmax(1) == label).sum()) for part, label in parts) / len(images)


def shuffled_batches(count: int, *, size: int, epochs: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches (size,) of the indices 0 … count - 1, shuffled anew in each epoch; an epoch's last batch may be smaller."""
    for _ in range(epochs):
        yield from torch.split(torch.randperm(count, generator=generator), size)


def with_delayed_progress(items: Iterable[Tensor], *, total: int, title: str) -> Iterator[Tensor]:
    """The items, with a progress bar once they have taken longer than ``PROGRESS_BAR_DELAY``."""
    start, progress = time.monotonic(), Progress(transient=True)
    task, is_interactive = progress.add_task(title, total=total), progress.console.is_interactive
    with ExitStack() as stack:
        for item in items:
            yield item
            progress.advance(task)
            if is_interactive and not progress.live.is_started and time.monotonic() - start > PROGRESS_BAR_DELAY:
                stack.enter_context(progress)
