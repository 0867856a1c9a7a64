"""Points in the plane: the smallest data on which one sees what a generative model does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from torch import Tensor

from flowchunk.cli.domains.domain import Samples, bare, figure, save
from flowchunk.datasets.generated.toys import sample_toy
from flowchunk.policy.data_model import DataModel
from flowchunk.policy.evaluation.generative_metrics import energy_distance, sliced_wasserstein

TRAINING_POINTS = 50_000
MARGIN = 1.25  # of the pictures, round the data
ENERGY_POINTS = 2000  # its cost grows with the square


class Toy2D:
    """``dataset=8gaussians|two_moons|checkerboard|spiral``; a point is a chunk of one action: (N, 1, 2)."""

    is_wrapped, label_names, n, own_options = False, (), 10_000, ()

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.name, self.points, self.seed = options["dataset"], options["samples"] or TRAINING_POINTS, options["seed"]
        self.fresh(1, 0)  # an unknown name is said at once

    def training(self) -> Samples:
        return self._draw(self.points, [self.seed, 0])

    def fresh(self, n: int, seed: int) -> Samples:
        return self._draw(n, [seed, 1])

    def _draw(self, n: int, seeds: list[int]) -> Samples:
        return Samples(torch.from_numpy(sample_toy(self.name, n, np.random.default_rng(seeds)))[:, None])

    def measure(self, generated: Samples, data: Samples) -> dict[str, float]:
        a, b = generated.joint(), data.joint()
        return {
            "sliced_wasserstein": float(sliced_wasserstein(a, b)),
            "energy_distance": float(energy_distance(a[:ENERGY_POINTS], b[:ENERGY_POINTS])),
        }

    def memorised(self, generated: Samples) -> dict[str, tuple[float, float]]:
        return {}

    def draw(self, model: DataModel, generated: Samples, folder: Path, *, nfe: int | None) -> list[Path]:
        reach = MARGIN * float(self.fresh(1000, 0).x.abs().max())
        return [
            save(self._picture(model, generated, trajectories(model, 2000, nfe=nfe), reach), folder / "samples.png"),
            animate(trajectories(model, 1500, nfe=finest(model)), folder / "animation.gif", reach=reach),
        ]

    def _picture(self, model: DataModel, generated: Samples, way: Trajectories, reach: float) -> Any:
        drawn, axes = figure(1, 4)
        data = self.fresh(len(generated), 1).x[:, 0]
        for place, title, points in ((0, "data", data), (1, "samples", generated.x[:, 0])):
            bare(axes[0, place], title, reach=reach).scatter(points[:4000, 0], points[:4000, 1], s=1, alpha=0.4)
        few = way.points[:, :150]
        bare(axes[0, 2], "from noise to data", reach=reach).plot(*few.transpose(2, 0, 1), lw=0.5, color="0.4")
        axes[0, 2].scatter(few[-1, :, 0], few[-1, :, 1], s=4)
        if model.objective.valid_nfe is not None:
            bare(axes[0, 3], "no velocity: it was trained for\na fixed number of calls", reach=reach)
            return drawn
        grid = torch.cartesian_prod(*2 * [torch.linspace(-reach, reach, 17)])
        arrows = velocity_at(model, grid, 0.5)
        bare(axes[0, 3], "velocity at t = 0.5", reach=reach).quiver(
            *grid.T, *arrows.T, np.hypot(*arrows.T), angles="xy"
        )
        return drawn


def finest(model: DataModel) -> int | None:
    """Network calls for a smooth film; None where the model admits one number alone."""
    return 32 if model.objective.valid_nfe is None else None


@dataclass(frozen=True)
class Trajectories:
    """Points on their way from noise to data: points (instants, n, 2) at times (instants,), 0 for noise and 1 for data."""

    times: np.ndarray
    points: np.ndarray


def trajectories(model: DataModel, n: int, *, nfe: int | None, seed: int = 1) -> Trajectories:
    """Where points are at each time that sampling stops at."""
    times: list[float] = []
    points: list[Tensor] = []

    def note(t: Any, x: Tensor) -> None:
        times.append(float(t))
        points.append(x[:, 0])

    last = model.generate(n, nfe=nfe, seed=seed, callback=note)
    if not points:  # regression and its like have no way
        times, points = [0.0, 1.0], [torch.zeros(n, 2), last[:, 0]]
    return Trajectories(np.array(times), torch.stack(points).numpy())


@torch.inference_mode()
def velocity_at(model: DataModel, points: Tensor, t: float) -> np.ndarray:
    """(n, 2) velocity of the flow at points (n, 2), in the data's units per unit of time."""
    x, times = model.normalizer.normalize("x", points[:, None]), torch.full((len(points),), t)
    output = model.model.network(x, times, model.encode(len(x)))
    velocity = model.objective.path.velocity(output, x, times)
    return (model.normalizer.denormalize("x", x + velocity) - points[:, None])[:, 0].numpy()


def animate(way: Trajectories, file: Path, *, reach: float, frames_a_second: int = 12) -> Path:
    """A film of points from noise to data, with a rest at the end."""
    drawn, axes = figure(1, 1, size=4)
    dots = bare(axes[0, 0], reach=reach).scatter(way.points[0, :, 0], way.points[0, :, 1], s=2)
    order = [*range(len(way.times)), *[len(way.times) - 1] * frames_a_second]

    def show(number: int) -> list[Any]:
        dots.set_offsets(way.points[number])
        axes[0, 0].set_title(f"t = {way.times[number]:.2f}")
        return [dots]

    FuncAnimation(drawn, show, frames=order, blit=False).save(file, writer=PillowWriter(fps=frames_a_second), dpi=80)
    return file
