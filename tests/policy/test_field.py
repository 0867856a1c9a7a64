"""The curvature of trajectories, and the loss as a function of time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from flowchunk.policy.data_model import DataConfig, DataModel
from flowchunk.policy.evaluation.field import loss_over_time, straightness
from flowchunk.policy.normalizer import Normalizer, Scaling

TIMES = torch.tensor([0.1, 0.5, 0.9])


def ends(n: int = 50) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 2, generator=generator), torch.randn(n, 2, generator=generator) + 3


def trajectory(fraction: Tensor) -> Tensor:
    """(T, n, 2) points at these fractions (T,) of the straight line between their ends."""
    start, end = ends()
    return start + fraction[:, None, None] * (end - start)


# Straightness


@pytest.mark.parametrize("steps", [1, 2, 32])
def test_straight_lines_at_constant_speed_have_no_curvature(steps: int) -> None:
    assert straightness(trajectory(torch.linspace(0, 1, steps + 1))) == pytest.approx(0, abs=1e-9)


def test_acceleration_along_a_straight_line_counts() -> None:
    fraction = torch.linspace(0, 1, 1001) ** 2  # its speed 2t differs from its mean 1 by 1/3, squared and averaged
    assert straightness(trajectory(fraction)) == pytest.approx(1 / 3, rel=1e-3)


def test_the_curvature_of_half_circles_is_as_calculated() -> None:
    angle = torch.linspace(0, math.pi, 1001)
    circle = torch.stack([angle.cos(), angle.sin()], dim=-1)[:, None]  # its speed is π, its mean velocity 2 long
    assert straightness(circle) == pytest.approx((math.pi**2 - 4) / 4, rel=1e-3)


def test_straightness_has_no_unit() -> None:
    accelerated = trajectory(torch.linspace(0, 1, 11) ** 3)
    assert straightness(5 * accelerated) == pytest.approx(straightness(accelerated), rel=1e-5)


# The loss over time


def make_model(*, objective: str = "flow", classes: int = 0) -> DataModel:
    """Untrained, so its output is zero everywhere."""
    options = {"width": 16, "blocks": 1}
    config = DataConfig(shape=(3, 2), classes=classes, network_options=options, objective=objective)
    return DataModel(config, Normalizer({"x": Scaling.fit("identity", [np.zeros((1, 2))])})).eval()


def batch(n: int = 400) -> dict[str, Tensor]:
    return {"x": 2 * torch.randn(n, 3, 2, generator=torch.Generator().manual_seed(1))}


def test_there_are_a_mean_and_a_standard_deviation_for_each_time() -> None:
    mean, std = loss_over_time(make_model(), batch(), TIMES)
    assert mean.shape == std.shape == TIMES.shape
    assert (mean > 0).all()
    assert (std > 0).all()


def test_the_loss_of_an_output_of_zero_is_the_squared_target() -> None:
    of_velocity, _ = loss_over_time(make_model(), batch(), TIMES)
    assert of_velocity.tolist() == pytest.approx(
        [2**2 + 1] * 3, rel=0.15
    )  # standard deviation 2 of the data, 1 of the noise
    assert of_velocity.tolist() == pytest.approx([float(of_velocity[0])] * 3)  # the same samples at every time
    of_noise, _ = loss_over_time(make_model(objective="noise_prediction"), batch(), TIMES)
    assert of_noise.tolist() == pytest.approx([1.0] * 3, rel=0.15)


def test_the_same_seed_gives_the_same_losses() -> None:
    model = make_model()
    first, same, different = (loss_over_time(model, batch(), TIMES, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, same, strict=True))
    assert not torch.equal(first[0], different[0])


def test_labels_are_used_as_in_training() -> None:
    labeled = batch() | {"label": torch.arange(400) % 4}
    mean, _ = loss_over_time(make_model(classes=4), labeled, TIMES)
    assert mean.isfinite().all()
