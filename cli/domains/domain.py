"""What a domain brings: data to train on, new data to compare with, measures, and pictures to look at."""

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

NOT_FOR_ALL = ("size", "invert", "half")


@dataclass(frozen=True)
class Samples:
    """Data with what is known of them. x: (N, *shape) in their own units; condition: (N, C); label: (N,) whole numbers."""

    x: Tensor
    condition: Tensor | None = None
    label: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """So many of them, by name, as models train on them."""
        return {name: values[indices] for name, values in self._columns()}

    def to(self, device: torch.device) -> Samples:
        """The same samples on another device."""
        return Samples(**{name: values.to(device) for name, values in self._columns()})

    def joint(self) -> Tensor:
        """(N, d): each sample as one vector together with what is known of it, so that a wrong answer to it counts."""
        parts = [self.x.flatten(1)] + ([] if self.condition is None else [self.condition])
        return torch.cat(parts, dim=1)

    def _columns(self) -> list[tuple[str, Tensor]]:
        columns = ((X, self.x), (CONDITION, self.condition), ("label", self.label))
        return [(name, values) for name, values in columns if values is not None]


class Domain(Protocol):
    """One family of data sets; made from the options of ``schemas.TRAIN_GENERATIVE``.

    is_wrapped: the data are angles. label_names: of the classes, if any. n: how many samples to generate by default.
    own_options: those that not every domain takes.
    """

    is_wrapped: bool
    n: int
    label_names: Sequence[str]
    own_options: Sequence[str]

    def __init__(self, options: Mapping[str, Any]) -> None: ...

    def training(self) -> Samples:
        """What to train on."""

    def fresh(self, n: int, seed: int) -> Samples:
        """Up to n data, a different draw for each seed.

        An even seed and the odd one after it share no datum, and hold the classes, if any, in the same shares.
        """

    def measure(self, generated: Samples, data: Samples) -> dict[str, float]:
        """How far the generated are from data with the same conditions; the same of data and data is the floor."""

    def memorised(self, generated: Samples) -> dict[str, tuple[float, float]]:
        """Measures of learning by heart, each with its floor; none where data are drawn without end."""

    def draw(self, model: DataModel, generated: Samples, folder: Path, *, nfe: int | None) -> list[Path]:
        """Pictures of what was generated, written into the folder."""


def make_domain(task: str, options: Mapping[str, Any]) -> Domain:
    """The domain of a task in ``DOMAINS``. Raises ConfigurationError or DatasetError for options it cannot use."""
    kind: type[Domain] = getattr(import_module(f"flowchunk.cli.domains.{task}"), DOMAINS[task])
    for name in NOT_FOR_ALL:
        if name not in kind.own_options and not (options[name] is None or options[name] is False):
            raise ConfigurationError(f"dataset.{name}={options[name]}: task={task} has no such thing; leave it out")
    return kind(options)


def figure(rows: int, columns: int, *, size: float = 3.2) -> tuple[Figure, np.ndarray]:
    """An empty figure and its axes, (rows, columns)."""
    drawn = Figure(figsize=(size * columns, size * rows), layout="constrained")
    FigureCanvasAgg(drawn)
    return drawn, drawn.subplots(rows, columns, squeeze=False)


def bare(axes: Axes, title: str = "", *, reach: float | None = None) -> Axes:
    """Axes of equal scale without ticks, from -reach to reach."""
    axes.set(title=title, xticks=[], yticks=[], aspect="equal")
    if reach is not None:
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach))
    return axes


def save(drawn: Figure, file: Path) -> Path:
    """Write the figure; returns the file."""
    drawn.savefig(file, dpi=120)
    return file
