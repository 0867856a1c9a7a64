"""Minibatch optimal transport pairs noise with data at the lowest cost."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowchunk.policy.diffusion.coupling import optimal_coupling


@given(st.integers(1, 6), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_optimal_coupling_has_the_lowest_cost(n: int, seed: int) -> None:
    x_0, x_1 = torch.randn(2, n, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    coupled = optimal_coupling(x_0=x_0, x_1=x_1)
    costs = [float((x_0[list(order)] - x_1).square().sum()) for order in permutations(range(n))]
    assert float((coupled - x_1).square().sum()) == pytest.approx(min(costs))
    assert sorted(map(tuple, coupled.flatten(1).tolist())) == sorted(map(tuple, x_0.flatten(1).tolist()))


def test_coupled_noise_does_not_change_the_data() -> None:
    x_1 = torch.tensor([[0.0], [1.0], [2.0]])
    coupled = optimal_coupling(x_0=torch.tensor([[2.1], [0.1], [1.1]]), x_1=x_1)
    assert coupled.flatten().tolist() == pytest.approx([0.1, 1.1, 2.1])
