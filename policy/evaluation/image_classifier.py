"""A small classifier of pictures, whose features measure how far apart two sets of pictures are (a kernel distance).

Without labels it learns to tell in which of four directions a picture is turned (Gidaris et al. 1803.07728): that needs
nobody, and makes features of shape all the same.
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

AT_ONCE = 1024
"""Pictures that go through the network together where no gradient is wanted."""
PATIENCE = 2.0
"""Seconds without a progress bar."""


class ImageClassifier(nn.Module):
    """Logits of pictures (B, C, size, size) in [-1, 1], from convolutions that halve the picture down to 4 to 7 pixels.

    ``accuracy`` is the fraction of held-out pictures named rightly, NaN before training.
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
        """What the last layer sees, (N, F) for pictures (N, C, size, size); however many, and without gradient."""
        return torch.cat([self.body(part) for part in torch.split(images, AT_ONCE)])


def convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """A 3 x 3 convolution, its norm (by groups: the same in training and in use) and its bend."""
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
    """Train on pictures (N, C, size, size) in [-1, 1] and labels (N,) from 0 to classes - 1; the rest is held out.

    Without labels the pictures are turned by 0, 90, 180 and 270 degrees and the turns are told apart. The same seed
    gives the same classifier on the CPU, and the global random state stays as it was. Raises ConfigurationError where
    pictures or labels cannot be learnt from.
    """
    check_pictures(images, labels, classes)
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(images), generator=generator)
    test, train = shuffled.tensor_split([max(1, round(held_out * len(images)))])
    (test_images, test_labels), (images, labels) = (
        turned(images[part]) if labels is None else (images[part], labels[part].long()) for part in (test, train)
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
    order = batches(len(images), size=batch_size, epochs=epochs, generator=generator)
    for batch in with_late_bar(order, total=steps, title="training the classifier"):
        loss = F.cross_entropy(classifier(images[batch]), labels[batch], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    classifier.accuracy = accuracy(classifier, test_images, test_labels)
    return classifier


def check_pictures(images: Tensor, labels: Tensor | None, classes: int | None) -> None:
    """Raise ConfigurationError unless pictures are many, square and labelled from 0 to classes - 1."""
    if images.ndim != 4 or images.shape[2] != images.shape[3] or len(images) < 2:
        raise ConfigurationError(f"expected at least two square pictures (N, C, size, size), got {tuple(images.shape)}")
    if labels is None:
        if classes not in (None, 4):
            raise ConfigurationError(f"classes={classes}: without labels the classes are the four turns; leave it out")
        return
    if labels.shape != images.shape[:1]:
        raise ConfigurationError(f"expected a label for each of {len(images)} pictures, got {tuple(labels.shape)}")
    if labels.min() < 0 or (classes is not None and labels.max() >= classes):
        raise ConfigurationError(
            f"labels go from {int(labels.min())} to {int(labels.max())}: they must lie in 0 … classes - 1"
        )


def turned(images: Tensor) -> tuple[Tensor, Tensor]:
    """Each picture in all four directions, (4 N, C, size, size), and the number of quarter turns, (4 N,)."""
    turns = torch.arange(4, device=images.device)
    return torch.cat([images.rot90(k, (2, 3)) for k in range(4)]), turns.repeat_interleave(len(images))


@torch.no_grad()
def accuracy(classifier: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The fraction of pictures (N, C, size, size) to which the classifier gives their label (N,)."""
    parts = zip(torch.split(images, AT_ONCE), torch.split(labels, AT_ONCE), strict=True)
    return sum(int((classifier(part).argmax(1) == label).sum()) for part, label in parts) / len(images)


def batches(count: int, *, size: int, epochs: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices (size,) that go through ``count`` pictures in a new order each epoch; the last of an epoch is shorter."""
    for _ in range(epochs):
        yield from torch.split(torch.randperm(count, generator=generator), size)


def with_late_bar(items: Iterable[Tensor], *, total: int, title: str) -> Iterator[Tensor]:
    """The items, and a progress bar from the moment when they have taken longer than two seconds."""
    start, progress = time.monotonic(), Progress(transient=True)
    task, is_watched = progress.add_task(title, total=total), progress.console.is_interactive
    with ExitStack() as shown:
        for item in items:
            yield item
            progress.advance(task)
            if is_watched and not progress.live.is_started and time.monotonic() - start > PATIENCE:
                shown.enter_context(progress)
