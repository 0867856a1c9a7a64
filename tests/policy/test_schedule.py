"""Functions of the step: the average's decay, the learning rate, the order of the samples, the seeds."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.policy.training.config import TrainingConfig
from flowchunk.policy.training.ema import WeightAverage
from flowchunk.policy.training.sample_order import SampleOrder, seeded_generator

# The average.


@pytest.mark.parametrize("every", [1, 4])
def test_the_average_warms_up_by_its_formula(every: int) -> None:
    """Updated every ``every`` steps, with the decay of as many steps at once."""
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, max_decay=0.9, every=every)
    averaged_weight = average.module.weight
    expected = None
    for k, value in enumerate([3.0, -1.0, 4.0, 1.0, -5.0, 9.0] * 6):
        nn.init.constant_(model.weight, value)
        average.update(model)
        decay = min(1 - (1 + every * k) ** -0.75, 0.9) ** every
        expected = value if expected is None else decay * expected + (1 - decay) * value
        assert averaged_weight.item() == pytest.approx(expected, rel=1e-5)
    assert 1 - 36**-0.75 > 0.9  # so the cap was met


# The learning rate.


def test_the_learning_rate_warms_up_and_ends_at_zero() -> None:
    config = TrainingConfig(steps=1000, learning_rate=2e-3)  # a tenth of the steps to warm up
    rates = [config.learning_rate_at(step) for step in range(1000)]
    assert rates[0] == pytest.approx(2e-3 / 100)
    assert rates[49] == pytest.approx(1e-3)
    assert rates[99] == rates[100] == max(rates) == pytest.approx(2e-3)
    assert rates[550] == pytest.approx(1e-3)
    assert 0 <= rates[-1] < 1e-4 * 2e-3
    assert all(earlier < later for earlier, later in pairwise(rates[:100]))
    assert all(earlier > later for earlier, later in pairwise(rates[100:]))


@pytest.mark.parametrize(
    ("steps", "given_warmup", "warmup"), [(100_000, None, 500), (50, None, 5), (50, 20, 20), (50, 0, 0)]
)
def test_warm_up_is_at_most_five_hundred_steps(steps: int, given_warmup: int | None, warmup: int) -> None:
    config = TrainingConfig(steps=steps, learning_rate=1.0, warmup_steps=given_warmup)
    rates = [config.learning_rate_at(step) for step in range(warmup + 1)]
    assert rates[warmup] == 1.0
    assert rates[:warmup] == pytest.approx([(step + 1) / warmup for step in range(warmup)])


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_few_steps_still_learn(steps: int) -> None:
    config = TrainingConfig(steps=steps)
    assert all(config.learning_rate_at(step) > 0 for step in range(steps))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, r"training\.steps=0 must be at least 1"),
        ({"batch_size": 0}, r"training\.batch_size=0"),
        ({"log_every": 0}, r"training\.log_every=0"),
        ({"checkpoint_every": -1}, r"training\.checkpoint_every=-1"),
        ({"learning_rate": 0.0}, r"training\.learning_rate=0\.0 must be above 0"),
        ({"weight_decay": -3.0}, r"training\.weight_decay=-3\.0 must be at least 0"),
        ({"warmup_steps": -1}, r"training\.warmup_steps=-1"),
        ({"evaluate_every": -3}, r"training\.evaluate_every=-3"),
        ({"gradient_clip": 0.0}, r"training\.gradient_clip=0\.0 must be above 0"),
        ({"learning_rate": math.nan}, r"training\.learning_rate=nan must be above 0"),
    ],
)
def test_impossible_configurations(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TrainingConfig(**options)


# The order of samples.


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 5))
def test_each_epoch_has_each_sample_once(samples: int, batch_size: int, seed: int) -> None:
    order = SampleOrder(samples, batch_size, seed)
    epochs = 3
    steps = math.ceil(epochs * samples / batch_size)
    batches = [order.indices(step) for step in range(steps)]
    assert all(len(batch) == batch_size for batch in batches)
    seen = torch.cat(batches)[: epochs * samples].reshape(epochs, samples)
    assert torch.equal(seen.sort(dim=1).values, torch.arange(samples).expand(epochs, -1))


@given(st.integers(1, 30), st.integers(1, 40), st.lists(st.integers(0, 50), min_size=1, max_size=6))
def test_steps_can_be_requested_in_any_order(samples: int, batch_size: int, steps: list[int]) -> None:
    wandering = SampleOrder(samples, batch_size, 3)
    for step in steps:
        assert torch.equal(wandering.indices(step), SampleOrder(samples, batch_size, 3).indices(step))


def test_epochs_and_seeds_have_their_own_orders() -> None:
    orders = [SampleOrder(50, 50, seed).indices(epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order.tolist()) for order in orders}) == 4


def test_seeded_generators_keep_uses_apart() -> None:
    keys = [(seed, number, stream) for seed in range(5) for number in range(5) for stream in range(2)]
    sampled = {
        float(torch.rand((), generator=seeded_generator(seed, number, stream=stream))) for seed, number, stream in keys
    }
    assert len(sampled) == len(keys)
    assert torch.equal(torch.rand(3, generator=seeded_generator(1, 2)), torch.rand(3, generator=seeded_generator(1, 2)))
