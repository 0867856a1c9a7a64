"""Representations of noise, scalings and normalizers show shapes, not numbers."""

from __future__ import annotations

import numpy as np
import torch

from flowchunk.policy.data_model import DataNoise
from flowchunk.policy.diffusion.objectives.flow_map import FlowMapNoise
from flowchunk.policy.noise import PathNoise, PolicyNoise
from flowchunk.policy.normalizer import Normalizer, Scaling

PATH = PathNoise(x_0=torch.zeros(3, 4, 2), t=torch.zeros(3))
SHOWN = "PathNoise(x_0=float32 (3, 4, 2), t=float32 (3,))"


def test_noise() -> None:
    assert repr(PATH) == SHOWN
    flow_map = FlowMapNoise(x_0=PATH.x_0, t=PATH.t, t_end=PATH.t, split=PATH.t)
    assert repr(flow_map).endswith("t=float32 (3,), t_end=float32 (3,), split=float32 (3,))")
    assert repr(DataNoise(PATH)) == f"DataNoise(path={SHOWN}, is_label_hidden=None, augmentation=None)"
    policy = PolicyNoise(
        PATH, prefix_length=torch.zeros(3, dtype=torch.long), augmentation={"crop.top": torch.zeros(3, 2)}
    )
    assert repr(policy) == (
        f"PolicyNoise(path={SHOWN}, prefix_length=int64 (3,), augmentation={{'crop.top': float32 (3, 2)}})"
    )


def test_scalings_and_normalizers() -> None:
    scaling = Scaling.fit("min_max", [np.zeros((5, 3))])
    shown = "Scaling(mode='min_max', offset=float64 (3,), scale=float64 (3,), low=float64 (3,), high=float64 (3,))"
    assert repr(scaling) == shown
    assert repr(Normalizer({"state": scaling})) == f"Normalizer({{'state': {shown}}})"
