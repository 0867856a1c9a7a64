"""Chunks that pass an obstacle on the left or on the right: the mean of both modes collides with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.patches import Circle

from flowchunk.cli.domains.domain import Samples, clean_axes, make_figure, save_figure
from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.generated.obstacle import collides, passed_left, sample_chunks, sample_obstacle_chunks
from flowchunk.policy.data_model import DataModel
from flowchunk.policy.evaluation.generative_metrics import energy_distance, sliced_wasserstein

TRAINING_CHUNKS = 20_000
NUM_SCENES, CHUNKS_PER_SCENE = 4, 24  # in the plot


class Obstacle:
    """``dataset=two_sides``: chunks (N, 16, 2) in meters, conditioned on scenes (N, 7)."""

    is_wrapped, label_names, default_num_samples, own_options = False, (), 2000, ()

    def __init__(self, options: Mapping[str, Any]) -> None:
        if options["dataset"] != "two_sides":
            raise ConfigurationError(f"unknown dataset {options['dataset']!r} of task=obstacle; there is two_sides")
        self.chunks, self.seed = options["samples"] or TRAINING_CHUNKS, options["seed"]

    def train_data(self) -> Samples:
        return self._sample(self.chunks, [self.seed, 0])

    def sample_data(self, n: int, seed: int) -> Samples:
        return self._sample(n, [seed, 1])

    def _sample(self, n: int, seeds: list[int]) -> Samples:
        sampled = sample_obstacle_chunks(n, np.random.default_rng(seeds))
        return Samples(torch.from_numpy(sampled.chunks), torch.from_numpy(sampled.condition))

    def measure(self, generated: Samples, data: Samples) -> dict[str, float]:
        scenes, chunks = _arrays(generated)
        return {
            "sliced_wasserstein": float(sliced_wasserstein(generated.joint(), data.joint())),
            "energy_distance": float(energy_distance(generated.joint(), data.joint())),
            "left_fraction": float(passed_left(scenes, chunks).mean()),
            "collision_fraction": float(collides(scenes, chunks).mean()),
        }

    def memorization(self, generated: Samples) -> dict[str, tuple[float, float]]:
        return {}

    def plot(self, model: DataModel, generated: Samples, folder: Path, *, nfe: int | None) -> list[Path]:
        figure, axes = make_figure(2, NUM_SCENES)
        scenes = self.sample_data(NUM_SCENES, 1)
        assert scenes.condition is not None
        condition = scenes.condition.repeat_interleave(CHUNKS_PER_SCENE, 0)
        chunks = model.generate(len(condition), condition=condition, nfe=nfe, seed=1)
        demonstrated = torch.cat([self._sample_demonstrations(scenes.condition[[i]], i) for i in range(NUM_SCENES)])
        for row, title, shown in ((0, "demonstrations", demonstrated), (1, "generated", chunks)):
            for i in range(NUM_SCENES):
                part = slice(i * CHUNKS_PER_SCENE, (i + 1) * CHUNKS_PER_SCENE)
                _plot_scene(axes[row, i], title, condition[part].numpy(), shown[part].numpy())
        return [save_figure(figure, folder / "samples.png")]

    def _sample_demonstrations(self, scene: torch.Tensor, seed: int) -> torch.Tensor:
        random = np.random.default_rng(seed)
        scenes = scene.repeat(CHUNKS_PER_SCENE, 1).numpy()
        return torch.from_numpy(sample_chunks(scenes, random.random(CHUNKS_PER_SCENE) < 0.5, random))


def _arrays(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    assert samples.condition is not None
    return samples.condition.numpy(), samples.x.numpy()


def _plot_scene(axes: Any, title: str, scenes: np.ndarray, chunks: np.ndarray) -> None:
    is_collision = collides(scenes, chunks)
    clean_axes(axes, title).add_patch(Circle((scenes[0, 4], scenes[0, 5]), scenes[0, 6], color="0.8"))
    for chunk, has_collided in zip(chunks, is_collision, strict=True):
        axes.plot(*chunk.T, lw=0.8, color="tab:red" if has_collided else "tab:blue")
    axes.set(xlim=(-0.7, 0.7), ylim=(-0.45, 0.45))
