"""Inverse kinematics of a planar arm: two solutions for every pose, as angles on a torus."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowchunk.cli.domains.domain import Samples, clean_axes, make_figure, save_figure
from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.generated.arm_kinematics import (
    LINKS,
    elbow_is_up,
    heading_error,
    position_error,
    sample_arm_poses,
)
from flowchunk.policy.data_model import DataModel
from flowchunk.policy.evaluation.generative_metrics import angular_energy_distance

TRAINING_POSES = 50_000
NUM_POSES, ARMS_PER_POSE = 4, 30  # in the plot


class Torus:
    """``dataset=planar_arm``: joint angles (N, 1, 3) in radians, conditioned on poses (N, 4)."""

    is_wrapped, label_names, default_num_samples, own_options = True, (), 2000, ()

    def __init__(self, options: Mapping[str, Any]) -> None:
        if options["dataset"] != "planar_arm":
            raise ConfigurationError(f"unknown dataset {options['dataset']!r} of task=torus; there is planar_arm")
        self.poses, self.seed = options["samples"] or TRAINING_POSES, options["seed"]

    def train_data(self) -> Samples:
        return self._sample(self.poses, [self.seed, 0])

    def sample_data(self, n: int, seed: int) -> Samples:
        return self._sample(n, [seed, 1])

    def _sample(self, n: int, seeds: list[int]) -> Samples:
        sampled = sample_arm_poses(n, np.random.default_rng(seeds))
        return Samples(torch.from_numpy(sampled.angles)[:, None], torch.from_numpy(sampled.condition))

    def measure(self, generated: Samples, data: Samples) -> dict[str, float]:
        poses, angles = _arrays(generated)
        return {
            "angular_energy_distance": float(angular_energy_distance(generated.x[:, 0], data.x[:, 0])),
            "elbow_up_fraction": float(elbow_is_up(angles).mean()),
            "position_error_m": float(np.median(position_error(angles, poses))),
            "position_error_p95_m": float(np.quantile(position_error(angles, poses), 0.95)),
            "heading_error_rad": float(np.median(heading_error(angles, poses))),
        }

    def memorization(self, generated: Samples) -> dict[str, tuple[float, float]]:
        return {}

    def plot(self, model: DataModel, generated: Samples, folder: Path, *, nfe: int | None) -> list[Path]:
        figure, axes = make_figure(1, NUM_POSES)
        poses = self.sample_data(NUM_POSES, 1).condition
        assert poses is not None
        condition = poses.repeat_interleave(ARMS_PER_POSE, 0)
        angles = model.generate(len(condition), condition=condition, nfe=nfe, seed=1)[:, 0].numpy()
        for i in range(NUM_POSES):
            part = slice(i * ARMS_PER_POSE, (i + 1) * ARMS_PER_POSE)
            _plot_arms(axes[0, i], angles[part], poses[i].numpy())
        return [save_figure(figure, folder / "samples.png")]


def _arrays(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    assert samples.condition is not None
    return samples.condition.numpy(), samples.x[:, 0].numpy()


def _plot_arms(axes: Any, angles: np.ndarray, pose: np.ndarray) -> None:
    headings = np.cumsum(angles, axis=1)  # (n, 3)
    steps = np.array(LINKS)[:, None] * np.stack([np.cos(headings), np.sin(headings)], axis=-1)
    joints = np.concatenate([np.zeros((len(angles), 1, 2)), np.cumsum(steps, axis=1)], axis=1)  # (n, 4, 2)
    clean_axes(axes, "arms for one pose", limit=0.9)
    for arm, is_up in zip(joints, elbow_is_up(angles), strict=True):
        axes.plot(*arm.T, lw=0.8, alpha=0.6, color="tab:blue" if is_up else "tab:orange")
    axes.quiver(*pose[:2], *pose[2:], color="k", width=0.012)
