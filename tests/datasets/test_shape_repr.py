"""Representations show shapes, not numbers."""

from __future__ import annotations

import numpy as np
import torch

from flowchunk.datasets.generated.arm_kinematics import sample_arm_poses
from flowchunk.datasets.generated.image_dataset import load_image_dataset
from flowchunk.datasets.generated.obstacle import sample_obstacle_chunks
from flowchunk.datasets.image_cache import ImageCache
from flowchunk.datasets.windows import ImageTensors, Windows


def test_generated_data() -> None:
    rng = np.random.default_rng(0)
    assert repr(sample_arm_poses(5, rng)) == "ArmPoses(condition=float32 (5, 4), angles=float32 (5, 3))"
    assert repr(sample_obstacle_chunks(5, rng)) == "ObstacleChunks(condition=float32 (5, 7), chunks=float32 (5, 16, 2))"
    assert repr(load_image_dataset("digits")).startswith(
        "ImageDataset(images=uint8 (1797, 8, 8, 1), labels=int64 (1797,), label_names=('0', '1', "
    )


def test_windows_and_images() -> None:
    cache = ImageCache({"image": np.zeros((7, 2, 3, 3), np.uint8)}, "ram", {2: "frame 3 of data/image: truncated"})
    images = ImageTensors({"image": torch.zeros(7, 2, 3, 3, dtype=torch.uint8)}, cache)
    shown = (
        "ImageCache(arrays={'image': uint8 (7, 2, 3, 3)}, place='ram', dropped={2: 'frame 3 of data/image: truncated'}"
    )
    assert repr(images).startswith(f"ImageTensors(tensors={{'image': uint8 (7, 2, 3, 3)}}, cache={shown}")
    index = torch.arange(7)
    windows = Windows({"state": torch.zeros(7, 3)}, torch.zeros(7, 2), index, index, index, 2, 16, images=images)
    assert repr(windows).startswith(
        "Windows(observations={'state': float32 (7, 3)}, actions=float32 (7, 2), frames=int64 (7,), first=int64 (7,), "
        "last=int64 (7,), observation_steps=2, horizon=16, images=ImageTensors("
    )
