"""Chunks round an obstacle, on its left or on its right: the average of two good answers is a collision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.patches import Circle

from flowchunk.cli.domains.domain import Samples, bare, figure, save
from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.generated.obstacle import collides, passed_left, sample_chunks, sample_obstacle_chunks
from flowchunk.policy.data_model import DataModel
from flowchunk.policy.evaluation.generative_metrics import energy_distance, sliced_wasserstein

TRAINING_CHUNKS = 20_000
SCENES, CHUNKS_A_SCENE = 4, 24  # in the picture


class Obstacle:
    """``dataset=two_sides`` alone: chunks (N, 16, 2) in metres, for scenes (N, 7)."""

    is_wrapped, label_names, n, own_options = False, (), 2000, ()

    def __init__(self, options: Mapping[str, Any]) -> None:
        if options["dataset"] != "two_sides":
            raise ConfigurationError(f"unknown dataset {options['dataset']!r} of task=obstacle; there is two_sides")
        self.chunks, self.seed = options["samples"] or TRAINING_CHUNKS, options["seed"]

    def training(self) -> Samples:
        return self._draw(self.chunks, [self.seed, 0])

    def fresh(self, n: int, seed: int) -> Samples:
        return self._draw(n, [seed, 1])

    def _draw(self, n: int, seeds: list[int]) -> Samples:
        drawn = sample_obstacle_chunks(n, np.random.default_rng(seeds))
        return Samples(torch.from_numpy(drawn.chunks), torch.from_numpy(drawn.condition))

    def measure(self, generated: Samples, data: Samples) -> dict[str, float]:
        scenes, chunks = _arrays(generated)
        return {
            "sliced_wasserstein": float(sliced_wasserstein(generated.joint(), data.joint())),
            "energy_distance": float(energy_distance(generated.joint(), data.joint())),
            "left_share": float(passed_left(scenes, chunks).mean()),
            "collision_share": float(collides(scenes, chunks).mean()),
        }

    def memorised(self, generated: Samples) -> dict[str, tuple[float, float]]:
        return {}

    def draw(self, model: DataModel, generated: Samples, folder: Path, *, nfe: int | None) -> list[Path]:
        drawn, axes = figure(2, SCENES)
        scenes = self.fresh(SCENES, 1)
        assert scenes.condition is not None
        condition = scenes.condition.repeat_interleave(CHUNKS_A_SCENE, 0)
        chunks = model.generate(len(condition), condition=condition, nfe=nfe, seed=1)
        demonstrated = torch.cat([self._answers(scenes.condition[[i]], i) for i in range(SCENES)])
        for row, title, many in ((0, "demonstrations", demonstrated), (1, "generated", chunks)):
            for place in range(SCENES):
                part = slice(place * CHUNKS_A_SCENE, (place + 1) * CHUNKS_A_SCENE)
                _draw_scene(axes[row, place], title, condition[part].numpy(), many[part].numpy())
        return [save(drawn, folder / "samples.png")]

    def _answers(self, scene: torch.Tensor, seed: int) -> torch.Tensor:
        random = np.random.default_rng(seed)
        scenes = scene.repeat(CHUNKS_A_SCENE, 1).numpy()
        return torch.from_numpy(sample_chunks(scenes, random.random(CHUNKS_A_SCENE) < 0.5, random))


def _arrays(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    assert samples.condition is not None
    return samples.condition.numpy(), samples.x.numpy()


def _draw_scene(axes: Any, title: str, scenes: np.ndarray, chunks: np.ndarray) -> None:
    struck = collides(scenes, chunks)
    bare(axes, title).add_patch(Circle((scenes[0, 4], scenes[0, 5]), scenes[0, 6], color="0.8"))
    for chunk, is_struck in zip(chunks, struck, strict=True):
        axes.plot(*chunk.T, lw=0.8, color="tab:red" if is_struck else "tab:blue")
    axes.set(xlim=(-0.7, 0.7), ylim=(-0.45, 0.45))
