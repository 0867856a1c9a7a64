"""Time densities: times are in [0, 1], follow their law, use only the generator, and bad parameters are refused."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowchunk.policy.diffusion.time_densities import TIME_DENSITIES, time_density

N = 40_000
STEEPEST = 2 / (math.pi - 2)
QUANTILES = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])

each_density = pytest.mark.parametrize("name", TIME_DENSITIES)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample_times(name: str, options: Mapping[str, float] | None = None, *, n: int = N, seed: int = 0) -> Tensor:
    return time_density(name, options)((n,), generator=seeded(seed))


def quantiles(times: Tensor) -> list[float]:
    return times.quantile(QUANTILES).tolist()


# What holds for all.


@each_density
@given(shape=st.lists(st.integers(0, 4), max_size=3), seed=st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_times_have_the_requested_shape_and_come_from_the_generator(name: str, shape: list[int], seed: int) -> None:
    before, density = torch.get_rng_state(), time_density(name)
    times = density(tuple(shape), generator=seeded(seed))
    assert times.shape == tuple(shape)
    assert times.dtype == torch.float32
    assert torch.equal(times, density(tuple(shape), generator=seeded(seed)))
    assert torch.equal(torch.get_rng_state(), before)


@each_density
def test_different_seeds_give_different_times(name: str) -> None:
    assert not torch.equal(sample_times(name, n=8, seed=0), sample_times(name, n=8, seed=1))


@given(mean=st.floats(-20, 20), std=st.floats(0.01, 20), scale=st.floats(-1, STEEPEST))
@settings(max_examples=25, deadline=None)
def test_times_never_leave_the_unit_interval(mean: float, std: float, scale: float) -> None:
    for times in (
        sample_times("logit_normal", {"mean": mean, "std": std}, n=500),
        sample_times("mode", {"scale": scale}, n=500),
    ):
        assert 0 <= float(times.min()) <= float(times.max()) <= 1


# Each law.


@pytest.mark.parametrize(("name", "end", "mean"), [("uniform", 1.0, 0.5), ("beta", 0.999, 0.4), ("mode", 1.0, 0.5)])
def test_times_have_the_expected_range_and_mean(name: str, end: float, mean: float) -> None:
    times = sample_times(name)
    assert 0 <= float(times.min()) < 0.01
    assert end - 0.02 < float(times.max()) <= end
    assert float(times.mean()) == pytest.approx(mean, abs=0.005)


def test_uniform_quantiles() -> None:
    assert quantiles(sample_times("uniform")) == pytest.approx(QUANTILES.tolist(), abs=0.01)


def test_beta_quantiles() -> None:
    """Beta(1.5, 1) has the distribution function b^1.5, and t falls with b."""
    assert quantiles(sample_times("beta")) == pytest.approx(
        (0.999 * (1 - (1 - QUANTILES) ** (2 / 3))).tolist(), abs=0.01
    )


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-1.0, 0.5), (0.7, 1.5)])
def test_logit_normal_quantiles(mean: float, std: float) -> None:
    expected = torch.sigmoid(mean + std * torch.special.ndtri(QUANTILES))
    assert quantiles(sample_times("logit_normal", {"mean": mean, "std": std})) == pytest.approx(
        expected.tolist(), abs=0.012
    )


@pytest.mark.parametrize("scale", [-1.0, 0.5, 1.29, STEEPEST])
def test_mode_quantiles(scale: float) -> None:
    """t falls with the uniform number r, so its q-quantile is at r = 1 - q."""
    r = 1 - QUANTILES
    expected = 1 - r - scale * ((math.pi / 2 * r).cos() ** 2 - 1 + r)
    assert quantiles(sample_times("mode", {"scale": scale})) == pytest.approx(expected.tolist(), abs=0.012)


def test_mode_favors_the_middle_if_its_scale_is_positive() -> None:
    def in_the_middle(scale: float) -> float:
        times = sample_times("mode", {"scale": scale})
        return float(((times > 0.4) & (times < 0.6)).float().mean())

    assert in_the_middle(0.0) == pytest.approx(0.2, abs=0.01)
    assert in_the_middle(-1.0) < 0.15 < 0.25 < in_the_middle(1.29)


# What is refused.


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gaussian", None, "unknown time_density 'gaussian'; there are uniform, beta, logit_normal, mode"),
        ("uniform", {"std": 1.0}, "time_density uniform does not know std; it takes no parameters"),
        ("logit_normal", {"scale": 1.0}, "time_density logit_normal does not know scale; it takes mean, std"),
        ("mode", {"generator": 1.0}, "time_density mode does not know generator; it takes scale"),
        ("logit_normal", {"std": 0.0}, "std=0.0: expected a finite mean and a std above 0"),
        ("logit_normal", {"std": math.nan}, "std=nan"),
        ("logit_normal", {"mean": math.inf}, "mean=inf"),
        ("mode", {"scale": 1.8}, "scale=1.8 must be from -1 to 2/"),
        ("mode", {"scale": -1.1}, "scale=-1.1 must be from -1"),
        ("mode", {"scale": math.nan}, "scale=nan"),
    ],
)
def test_unknown_names_and_values_out_of_range_are_refused(
    name: str, options: Mapping[str, float] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        time_density(name, options)
