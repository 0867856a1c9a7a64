"""Points in the plane: the smallest data that show how a generative model works."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.figure import Figure
from torch import Tensor

from flowchunk.cli.domains.domain import Samples, clean_axes, make_figure, save_figure
from flowchunk.datasets.generated.toys import sample_toy
from flowchunk.policy.data_model import DataModel
from flowchunk.policy.evaluation.generative_metrics import energy_distance, sliced_wasserstein

TRAINING_POINTS = 50_000
MARGIN = 1.25  # limit of the plots relative to the largest coordinate
ENERGY_POINTS = 2000  # the cost of the energy distance grows with their square


class Toy2D:
    """``dataset=8gaussians|two_moons|checkerboard|spiral``; a point is a chunk of one action: (N, 1, 2)."""

    is_wrapped, label_names, default_num_samples, own_options = False, (), 10_000, ()

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.name, self.points, self.seed = options["dataset"], options["samples"] or TRAINING_POINTS, options["seed"]
        self.sample_data(1, 0)  # raises at once for an unknown name

    def train_data(self) -> Samples:
        return self._sample(self.points, [self.seed, 0])

    def sample_data(self, n: int, seed: int) -> Samples:
        return self._sample(n, [seed, 1])

    def _sample(self, n: int, seeds: list[int]) -> Samples:
        return Samples(torch.from_numpy(sample_toy(self.name, n, np.random.default_rng(seeds)))[:, None])

    def measure(self, generated: Samples, data: Samples) -> dict[str, float]:
        a, b = generated.joint(), data.joint()
        return {
            "sliced_wasserstein": float(sliced_wasserstein(a, b)),
            "energy_distance": float(energy_distance(a[:ENERGY_POINTS], b[:ENERGY_POINTS])),
        }

    def memorization(self, generated: Samples) -> dict[str, tuple[float, float]]:
        return {}

    def plot(self, model: DataModel, generated: Samples, folder: Path, *, nfe: int | None) -> list[Path]:
        limit = MARGIN * float(self.sample_data(1000, 0).x.abs().max())
        figure = self._plot_samples(model, generated, trajectories(model, 2000, nfe=nfe), limit)
        return [
            save_figure(figure, folder / "samples.png"),
            animate(trajectories(model, 1500, nfe=animation_nfe(model)), folder / "animation.gif", limit=limit),
        ]

    def _plot_samples(self, model: DataModel, generated: Samples, paths: Trajectories, limit: float) -> Figure:
        figure, axes = make_figure(1, 4)
        data = self.sample_data(len(generated), 1).x[:, 0]
        for column, title, points in ((0, "data", data), (1, "samples", generated.x[:, 0])):
            clean_axes(axes[0, column], title, limit=limit).scatter(points[:4000, 0], points[:4000, 1], s=1, alpha=0.4)
        shown = paths.points[:, :150]
        clean_axes(axes[0, 2], "from noise to data", limit=limit).plot(*shown.transpose(2, 0, 1), lw=0.5, color="0.4")
        axes[0, 2].scatter(shown[-1, :, 0], shown[-1, :, 1], s=4)
        if model.objective.valid_nfe is not None:
            clean_axes(axes[0, 3], "no velocity: trained for a\nfixed number of evaluations", limit=limit)
            return figure
        grid = torch.cartesian_prod(*2 * [torch.linspace(-limit, limit, 17)])
        arrows = velocity_at(model, grid, 0.5)
        clean_axes(axes[0, 3], "velocity at t = 0.5", limit=limit).quiver(
            *grid.T, *arrows.T, np.hypot(*arrows.T), angles="xy"
        )
        return figure


def animation_nfe(model: DataModel) -> int | None:
    """The number of network evaluations for a smooth animation; None if the model admits only one number."""
    return 32 if model.objective.valid_nfe is None else None


@dataclass(frozen=True)
class Trajectories:
    """Trajectories from noise to data: points (T, n, 2) at times (T,), from 0 (noise) to 1 (data)."""

    times: np.ndarray
    points: np.ndarray


def trajectories(model: DataModel, n: int, *, nfe: int | None, seed: int = 1) -> Trajectories:
    """The trajectories of n samples, at the step times of the solver."""
    times: list[float] = []
    points: list[Tensor] = []

    def append(t: Any, x: Tensor) -> None:
        times.append(float(t))
        points.append(x[:, 0])

    last = model.generate(n, nfe=nfe, seed=seed, callback=append)
    if not points:  # regression, for example, has no intermediate points
        times, points = [0.0, 1.0], [torch.zeros(n, 2), last[:, 0]]
    return Trajectories(np.array(times), torch.stack(points).numpy())


@torch.inference_mode()
def velocity_at(model: DataModel, points: Tensor, t: float) -> np.ndarray:
    """(n, 2) velocity of the flow at points (n, 2), in the data's units per unit of time."""
    x, times = model.normalizer.normalize("x", points[:, None]), torch.full((len(points),), t)
    output = model.model.network(x, times, model.encode(len(x)))
    velocity = model.objective.path.velocity(output, x, times)
    return (model.normalizer.denormalize("x", x + velocity) - points[:, None])[:, 0].numpy()


def animate(paths: Trajectories, file: Path, *, limit: float, fps: int = 12) -> Path:
    """Write an animated GIF of points from noise to data that pauses at the end for a second; returns the file."""
    figure, axes = make_figure(1, 1, size=4)
    dots = clean_axes(axes[0, 0], limit=limit).scatter(paths.points[0, :, 0], paths.points[0, :, 1], s=2)
    order = [*range(len(paths.times)), *[len(paths.times) - 1] * fps]

    def update(index: int) -> list[Any]:
        dots.set_offsets(paths.points[index])
        axes[0, 0].set_title(f"t = {paths.times[index]:.2f}")
        return [dots]

    FuncAnimation(figure, update, frames=order, blit=False).save(file, writer=PillowWriter(fps=fps), dpi=80)
    return file
