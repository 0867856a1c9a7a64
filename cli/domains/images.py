"""Pictures: bundled digits, Omniglot, or any folder; by class where the folders name classes."""

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

COLUMNS = 10  # of the grid
SPLIT_SEED = 0
JUDGES_SHARE = 1 / 3
FEWEST = 9


class Images:
    """``dataset=digits``, or ``dataset=folder dataset.path=FOLDER|ZIP``: pictures (N, C, size, size) in [-1, 1].

    A third of them is set aside for the classifier that judges: it has seen neither what a model trains on nor what the
    model's samples are compared with. dataset.half=0|1: train on one of two disjoint halves of the rest; the other then
    shows what has been learnt by heart. dataset.samples=N: on so many.
    """

    is_wrapped, n, own_options = False, 1000, ("size", "invert", "half")

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.seed, half, samples = options["seed"], options["half"], options["samples"]
        if half not in (None, 0, 1):
            raise ConfigurationError(f"dataset.half={half} must be 0, 1 or null for all pictures")
        self.all = load_image_dataset(options["dataset"], size=options["size"], invert=options["invert"])
        _require_square_and_several(self.all, options["dataset"])
        self.label_names = self.all.label_names if self.all.labels is not None else ()
        self.judges, self.rest = stratified_split(self.all, JUDGES_SHARE, np.random.default_rng(SPLIT_SEED))
        parts = [self.rest]
        if half is not None:
            halves = stratified_halves(self.rest, np.random.default_rng(SPLIT_SEED))
            parts = [halves[half], halves[1 - half]]
        if samples is not None:
            if not 2 <= samples <= (count := len(parts[0].images)):
                raise ConfigurationError(f"dataset.samples={samples}: there are {count} pictures to choose from")
            parts = [stratified_subset(part, samples, np.random.default_rng(SPLIT_SEED)) for part in parts]
        self.mine, self.other = parts[0], None if half is None else parts[1]

    def training(self) -> Samples:
        return _samples(self.mine)

    def fresh(self, n: int, seed: int) -> Samples:
        """A finite data set: up to a half, and the other half for the odd seed that follows; the classes in equal shares."""
        random = np.random.default_rng(seed // 2)
        half = stratified_shuffle(stratified_halves(self.rest, random)[seed % 2], random)
        return Samples(**_samples(half).batch(torch.arange(min(n, len(half.images)))))

    @cached_property
    def classifier(self) -> ImageClassifier:
        """Its features are what the kernel distance compares; trained in seconds, on pictures set aside for it."""
        data = _samples(self.judges)
        return train_classifier(data.x, data.label, classes=len(self.label_names) or None, seed=0)

    def measure(self, generated: Samples, data: Samples) -> dict[str, float]:
        features = [self.classifier.features(samples.x) for samples in (generated, data)]
        distance = kernel_distance(*features, classes_a=generated.label, classes_b=data.label)
        measured = {"kernel_distance": float(distance)}
        if generated.label is not None:
            with torch.no_grad():
                named = self.classifier(generated.x).argmax(1)
            measured["class_accuracy"] = float((named == generated.label).float().mean())
        return measured

    def memorised(self, generated: Samples) -> dict[str, tuple[float, float]]:
        """How far samples are copies, each share beside that of pictures which the model never saw."""
        if self.other is None:
            return {}
        train, held_out = (_samples(pictures).x.flatten(1) for pictures in (self.mine, self.other))  # equally many
        flat = generated.x.flatten(1)
        return {
            "nearer_to_training_share": (nearest_neighbor_ratio(flat, train=train, held_out=held_out), 0.5),
            "copied_share": (copied_fraction(flat, train=train), copied_fraction(held_out, train=train)),
        }

    def draw(self, model: DataModel, generated: Samples, folder: Path, *, nfe: int | None) -> list[Path]:
        flat = generated.x.flatten(1)
        order = torch.arange(len(flat)) if generated.label is None else generated.label.argsort(stable=True)
        shown = order[torch.linspace(0, len(order) - 1, min(COLUMNS**2, len(order))).long()]
        train = _samples(self.mine).x
        nearest = torch.cdist(flat[shown[:: max(1, len(shown) // 20)]], train.flatten(1)).argmin(1)
        pairs = torch.stack([generated.x[shown[:: max(1, len(shown) // 20)]], train[nearest]], dim=1).flatten(0, 1)
        return [
            write_grid(generated.x[shown], folder / "samples.png"),
            write_grid(pairs, folder / "nearest_training_pictures.png"),
        ]


def _require_square_and_several(pictures: ImageDataset, source: str) -> None:
    count, height, width, _ = pictures.images.shape
    if height != width:
        raise DatasetError(
            f"{source}: pictures of {width}x{height} are not square; give dataset.size={min(width, height)}, say"
        )
    if count < FEWEST:
        raise DatasetError(
            f"{source}: {count} pictures are too few; at least {FEWEST} are needed, to train, to judge and to compare"
        )


def _samples(pictures: ImageDataset) -> Samples:
    x = torch.from_numpy(pictures.images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return Samples(x, label=None if pictures.labels is None else torch.from_numpy(pictures.labels))


def write_grid(x: Tensor, file: Path, *, columns: int = COLUMNS, pixels: int = 64) -> Path:
    """Pictures (N, C, H, W) in [-1, 1], side by side, each about so many pixels wide."""
    count, channels, height, width = x.shape
    rows, enlarged = -(-count // columns), max(1, pixels // width)
    framed = torch.nn.functional.pad(x.clamp(-1, 1), (1, 0, 1, 0), value=0.0)
    tiles = torch.zeros(rows * columns, channels, height + 1, width + 1)
    tiles[:count] = framed
    sheet = (
        tiles.view(rows, columns, channels, height + 1, width + 1).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    )
    levels = ((sheet + 1) * 127.5).round().to(torch.uint8).numpy()
    image = Image.fromarray(levels[..., 0] if channels == 1 else levels)
    image.resize((image.width * enlarged, image.height * enlarged), Image.Resampling.NEAREST).save(file)
    return file
