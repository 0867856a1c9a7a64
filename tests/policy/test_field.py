"""How bent ways are, and where in time the loss comes from."""

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


def way(share: Tensor) -> Tensor:
    """(T, n, 2) points that have gone so much (T,) of the straight line between their ends."""
    start, end = ends()
    return start + share[:, None, None] * (end - start)


# Straightness


@pytest.mark.parametrize("steps", [1, 2, 32])
def test_straight_lines_at_constant_speed_are_not_bent(steps: int) -> None:
    assert straightness(way(torch.linspace(0, 1, steps + 1))) == pytest.approx(0, abs=1e-9)


def test_haste_counts_on_a_straight_line() -> None:
    share = torch.linspace(0, 1, 1001) ** 2  # its speed 2t is off its mean 1 by 1/3, squared and averaged
    assert straightness(way(share)) == pytest.approx(1 / 3, rel=1e-3)


def test_half_circles_are_bent_as_much_as_calculated() -> None:
    angle = torch.linspace(0, math.pi, 1001)
    circle = torch.stack([angle.cos(), angle.sin()], dim=-1)[:, None]  # its speed is π, its mean velocity 2 long
    assert straightness(circle) == pytest.approx((math.pi**2 - 4) / 4, rel=1e-3)


def test_straightness_has_no_unit() -> None:
    bent = way(torch.linspace(0, 1, 11) ** 3)
    assert straightness(5 * bent) == pytest.approx(straightness(bent), rel=1e-5)


# The loss over time


def make_model(*, objective: str = "flow", classes: int = 0) -> DataModel:
    """Untrained, so its answer is zero everywhere."""
    options = {"width": 16, "blocks": 1}
    config = DataConfig(shape=(3, 2), classes=classes, network_options=options, objective=objective)
    return DataModel(config, Normalizer({"x": Scaling.fit("identity", [np.zeros((1, 2))])})).eval()


def batch(n: int = 400) -> dict[str, Tensor]:
    return {"x": 2 * torch.randn(n, 3, 2, generator=torch.Generator().manual_seed(1))}


def test_there_is_a_mean_and_a_deviation_for_each_time() -> None:
    mean, deviation = loss_over_time(make_model(), batch(), TIMES)
    assert mean.shape == deviation.shape == TIMES.shape
    assert (mean > 0).all()
    assert (deviation > 0).all()


def test_an_answer_of_zero_loses_the_square_of_the_target() -> None:
    of_velocity, _ = loss_over_time(make_model(), batch(), TIMES)
    assert of_velocity.tolist() == pytest.approx([2**2 + 1] * 3, rel=0.15)  # data of deviation 2, noise of 1
    assert of_velocity.tolist() == pytest.approx([float(of_velocity[0])] * 3)  # the same samples at every time
    of_noise, _ = loss_over_time(make_model(objective="noise_prediction"), batch(), TIMES)
    assert of_noise.tolist() == pytest.approx([1.0] * 3, rel=0.15)


def test_the_same_seed_gives_the_same_losses() -> None:
    model = make_model()
    first, again, other = (loss_over_time(model, batch(), TIMES, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_classes_are_looked_at_as_in_training() -> None:
    labelled = batch() | {"label": torch.arange(400) % 4}
    mean, _ = loss_over_time(make_model(classes=4), labelled, TIMES)
    assert mean.isfinite().all()
