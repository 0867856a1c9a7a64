"""Images: bundled digits, or a folder or zip such as Omniglot's; with classes if its folders name classes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flowchunk.cli.domains.domain import Samples
from flowchunk.datasets.errors import ConfigurationError, DatasetError
from flowchunk.datasets.generated.image_dataset import (
    ImageDataset,
    load_image_dataset,
    stratified_halves,
    stratified_shuffle,
    stratified_split,
    stratified_subset,
)
from flowchunk.policy.data_model import DataModel
from flowchunk.policy.evaluation.generative_metrics import copied_fraction, kernel_distance, nearest_neighbor_ratio
from flowchunk.policy.evaluation.image_classifier import ImageClassifier, train_classifier

GRID_COLUMNS = 10
SPLIT_SEED = 0
CLASSIFIER_FRACTION = 1 / 3
MIN_IMAGES = 9


class Images:
    """``dataset=digits``, or ``dataset=folder dataset.path=FOLDER|ZIP``: images (N, C, size, size) in [-1, 1].

    A third of the images is set aside to train the classifier whose features are compared; no model is trained on them or
    compared with them. dataset.half=0|1: train on one of two disjoint halves of the others; the other half then measures
    memorization. dataset.samples=N: train on N of them.
    """

    is_wrapped, default_num_samples, own_options = False, 1000, ("size", "invert", "half")

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.seed, half, samples = options["seed"], options["half"], options["samples"]
        if half not in (None, 0, 1):
            raise ConfigurationError(f"dataset.half={half} must be 0, 1 or null for all images")
        dataset = load_image_dataset(options["dataset"], size=options["size"], invert=options["invert"])
        _require_square_and_several(dataset, options["dataset"])
        self.label_names = dataset.label_names if dataset.labels is not None else ()
        self.classifier_images, self.model_images = stratified_split(
            dataset, CLASSIFIER_FRACTION, np.random.default_rng(SPLIT_SEED)
        )
        parts = [self.model_images]
        if half is not None:
            halves = stratified_halves(self.model_images, np.random.default_rng(SPLIT_SEED))
            parts = [halves[half], halves[1 - half]]
        if samples is not None:
            if not 2 <= samples <= (count := len(parts[0].images)):
                raise ConfigurationError(f"dataset.samples={samples}: there are {count} images to choose from")
            parts = [stratified_subset(part, samples, np.random.default_rng(SPLIT_SEED)) for part in parts]
        self.train_images, self.held_out_images = parts[0], None if half is None else parts[1]

    def train_data(self) -> Samples:
        return _samples(self.train_images)

    def sample_data(self, n: int, seed: int) -> Samples:
        """Up to a half of the images, as the data are finite; the next, odd seed gives the other half."""
        random = np.random.default_rng(seed // 2)
        half = stratified_shuffle(stratified_halves(self.model_images, random)[seed % 2], random)
        return Samples(**_samples(half).batch(torch.arange(min(n, len(half.images)))))

    @cached_property
    def classifier(self) -> ImageClassifier:
        """The classifier whose features the kernel distance compares; trained in seconds, on the images set aside."""
        data = _samples(self.classifier_images)
        return train_classifier(data.x, data.label, classes=len(self.label_names) or None, seed=0)

    def measure(self, generated: Samples, data: Samples) -> dict[str, float]:
        features = [self.classifier.features(samples.x) for samples in (generated, data)]
        distance = kernel_distance(*features, classes_a=generated.label, classes_b=data.label)
        measured = {"kernel_distance": float(distance)}
        if generated.label is not None:
            with torch.no_grad():
                predicted = self.classifier(generated.x).argmax(1)
            measured["class_accuracy"] = float((predicted == generated.label).float().mean())
        return measured

    def memorization(self, generated: Samples) -> dict[str, tuple[float, float]]:
        """Fractions of copies; the floor is that of held-out images. Empty without ``dataset.half``."""
        if self.held_out_images is None:
            return {}
        train, held_out = (_samples(part).x.flatten(1) for part in (self.train_images, self.held_out_images))
        flat = generated.x.flatten(1)
        return {
            "fraction_nearer_to_training": (nearest_neighbor_ratio(flat, train=train, held_out=held_out), 0.5),
            "copied_fraction": (copied_fraction(flat, train=train), copied_fraction(held_out, train=train)),
        }

    def plot(self, model: DataModel, generated: Samples, folder: Path, *, nfe: int | None) -> list[Path]:
        flat = generated.x.flatten(1)
        order = torch.arange(len(flat)) if generated.label is None else generated.label.argsort(stable=True)
        shown = order[torch.linspace(0, len(order) - 1, min(GRID_COLUMNS**2, len(order))).long()]
        train = _samples(self.train_images).x
        compared = shown[:: max(1, len(shown) // 20)]
        nearest = torch.cdist(flat[compared], train.flatten(1)).argmin(1)
        pairs = torch.stack([generated.x[compared], train[nearest]], dim=1).flatten(0, 1)
        return [
            write_grid(generated.x[shown], folder / "samples.png"),
            write_grid(pairs, folder / "nearest_training_images.png"),
        ]


def _require_square_and_several(dataset: ImageDataset, source: str) -> None:
    count, height, width, _ = dataset.images.shape
    if height != width:
        raise DatasetError(
            f"{source}: images of {width}x{height} are not square; give dataset.size={min(width, height)}, for example"
        )
    if count < MIN_IMAGES:
        raise DatasetError(
            f"{source}: {count} images are too few; at least {MIN_IMAGES} are needed for training, the classifier and the "
            "comparison"
        )


def _samples(dataset: ImageDataset) -> Samples:
    x = torch.from_numpy(dataset.images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return Samples(x, label=None if dataset.labels is None else torch.from_numpy(dataset.labels))


def write_grid(x: Tensor, file: Path, *, columns: int = GRID_COLUMNS, pixels: int = 64) -> Path:
    """Write images (N, C, H, W) in [-1, 1] as a grid, each enlarged to about ``pixels`` pixels; returns the file."""
    count, channels, height, width = x.shape
    rows, factor = -(-count // columns), max(1, pixels // width)
    framed = torch.nn.functional.pad(x.clamp(-1, 1), (1, 0, 1, 0), value=0.0)
    tiles = torch.zeros(rows * columns, channels, height + 1, width + 1)
    tiles[:count] = framed
    grid = tiles.view(rows, columns, channels, height + 1, width + 1).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    levels = ((grid + 1) * 127.5).round().to(torch.uint8).numpy()
    image = Image.fromarray(levels[..., 0] if channels == 1 else levels)
    image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST).save(file)
    return file
