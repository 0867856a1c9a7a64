"""The interface of a domain: training data, new data to compare with, measures, and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from flowchunk.cli.domains import DOMAINS
from flowchunk.datasets.errors import ConfigurationError
from flowchunk.policy.data_model import CONDITION, DataModel, X

OPTIONAL_OPTIONS = ("size", "invert", "half")  # supported by some domains only


@dataclass(frozen=True)
class Samples:
    """Data with their conditions and labels.

    x: (N, *shape) in the units of the data. condition: (N, C). label: (N,) integers.
    """

    x: Tensor
    condition: Tensor | None = None
    label: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """The tensors at ``indices`` (B,), by name, as ``DataModel`` is trained on them."""
        return {name: values[indices] for name, values in self._columns()}

    def to(self, device: torch.device) -> Samples:
        """The same samples on another device."""
        return Samples(**{name: values.to(device) for name, values in self._columns()})

    def joint(self) -> Tensor:
        """(N, d) samples as vectors joined with their conditions, so that a distance also compares what they are for."""
        parts = [self.x.flatten(1)] + ([] if self.condition is None else [self.condition])
        return torch.cat(parts, dim=1)

    def _columns(self) -> list[tuple[str, Tensor]]:
        columns = ((X, self.x), (CONDITION, self.condition), ("label", self.label))
        return [(name, values) for name, values in columns if values is not None]


class Domain(Protocol):
    """A family of data sets, made from the ``dataset`` options of ``schemas.TRAIN_GENERATIVE``.

    is_wrapped: the data are angles. label_names: names of the classes, empty without classes. default_num_samples: how many
    samples to generate by default. own_options: the options of ``OPTIONAL_OPTIONS`` that it supports.
    """

    is_wrapped: bool
    default_num_samples: int
    label_names: Sequence[str]
    own_options: Sequence[str]

    def __init__(self, options: Mapping[str, Any]) -> None: ...

    def train_data(self) -> Samples:
        """The training data."""

    def sample_data(self, n: int, seed: int) -> Samples:
        """Up to n data, others for each seed.

        Those of an even seed and of the odd seed after it are disjoint, with the same proportions of the classes.
        """

    def measure(self, generated: Samples, data: Samples) -> dict[str, float]:
        """Distances and rates of generated samples relative to data; for data instead of samples they are the floor."""

    def memorization(self, generated: Samples) -> dict[str, tuple[float, float]]:
        """Measures of memorization, each with its floor; empty if the data are unlimited."""

    def plot(self, model: DataModel, generated: Samples, folder: Path, *, nfe: int | None) -> list[Path]:
        """Plot generated samples into files of the folder; returns the files."""


def make_domain(task: str, options: Mapping[str, Any]) -> Domain:
    """The domain of a task in ``DOMAINS``. Raises ConfigurationError or DatasetError for options that it cannot use."""
    kind: type[Domain] = getattr(import_module(f"flowchunk.cli.domains.{task}"), DOMAINS[task])
    for name in OPTIONAL_OPTIONS:
        if name not in kind.own_options and not (options[name] is None or options[name] is False):
            raise ConfigurationError(f"dataset.{name}={options[name]}: task={task} has no such option; leave it out")
    return kind(options)


def make_figure(rows: int, columns: int, *, size: float = 3.2) -> tuple[Figure, np.ndarray]:
    """An empty figure and its axes (rows, columns), each of size x size inches."""
    figure = Figure(figsize=(size * columns, size * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def clean_axes(axes: Axes, title: str = "", *, limit: float | None = None) -> Axes:
    """Axes of equal scale without ticks, from -limit to limit."""
    axes.set(title=title, xticks=[], yticks=[], aspect="equal")
    if limit is not None:
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
    return axes


def save_figure(figure: Figure, file: Path) -> Path:
    """Write a figure into a file; returns the file."""
    figure.savefig(file, dpi=120)
    return file
