"""Schedules: their ends, their papers' formulas, and agreement with `diffusers`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from flowchunk.policy.diffusion.schedules import SCHEDULES, Schedule, discrete_betas

VARIANCE_PRESERVING = [name for name, schedule in SCHEDULES.items() if not schedule.is_straight]
FIRST_ALPHA = {"linear": 0.0, "linear_beta": math.exp(-10.05 / 2), "cosine": 0.0, "sigmoid": 0.0}

each_schedule = pytest.mark.parametrize("name", SCHEDULES)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def instants(n: int = 1001) -> Tensor:
    return torch.linspace(0, 1, n, dtype=torch.float64)


def inside(n: int = 99) -> Tensor:
    return torch.linspace(0.01, 0.99, n, dtype=torch.float64)


# What holds for all.


@each_schedule
@each_dtype
def test_only_noise_at_zero_and_only_data_at_one(name: str, dtype: torch.dtype) -> None:
    schedule, ends = SCHEDULES[name], torch.tensor([0.0, 1.0], dtype=dtype)
    precision = torch.finfo(dtype).eps
    assert schedule.alpha(ends).tolist() == pytest.approx([FIRST_ALPHA[name], 1.0], rel=1e-5, abs=precision)
    first, last = schedule.sigma(ends).tolist()
    assert first == pytest.approx(math.sqrt(1 - FIRST_ALPHA[name] ** 2), rel=2 * precision)
    assert last == 0  # exactly: solvers know the last step by it
    assert float(schedule.log_ratio(ends)[1]) == math.inf


@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
def test_variance_is_preserved(name: str) -> None:
    t = instants()
    total = SCHEDULES[name].alpha(t) ** 2 + SCHEDULES[name].sigma(t) ** 2
    torch.testing.assert_close(total, torch.ones_like(t), rtol=0, atol=1e-12)


def test_only_flow_matching_is_straight() -> None:
    t = instants()
    assert {name for name, schedule in SCHEDULES.items() if schedule.is_straight} == {"linear"}
    assert torch.equal(SCHEDULES["linear"].alpha(t), t)
    assert torch.equal(SCHEDULES["linear"].sigma(t), 1 - t)


@each_schedule
def test_signal_to_noise_increases(name: str) -> None:
    schedule, t = SCHEDULES[name], instants()
    snr = schedule.snr(t)
    assert (snr.diff()[:-1] > 0).all()
    assert float(snr[-1]) == math.inf
    torch.testing.assert_close(schedule.log_ratio(inside()), schedule.snr(inside()).log() / 2)


@each_schedule
def test_derivatives_are_those_of_autograd(name: str) -> None:
    schedule = SCHEDULES[name]
    for value, derivative in ((schedule.alpha, schedule.alpha_dot), (schedule.sigma, schedule.sigma_dot)):
        t = inside().requires_grad_()
        (expected,) = torch.autograd.grad(value(t).sum(), t)
        torch.testing.assert_close(derivative(t).detach(), expected, rtol=1e-9, atol=1e-9)


@each_schedule
def test_small_noise_is_accurate_in_single_precision(name: str) -> None:
    t = 1 - 2.0 ** -torch.arange(3, 11)  # to a thousandth of the way, and exact in single precision
    sigma, exact = SCHEDULES[name].sigma(t), SCHEDULES[name].sigma(t.double())
    assert sigma.dtype == torch.float32
    assert float((sigma / exact - 1).abs().max()) < 1e-5


# The formulas, as the papers write them: alpha² at noise level u.


def linear_beta(u: float) -> float:
    return math.exp(-(0.1 * u + 9.95 * u**2))


def cosine(u: float) -> float:
    return (math.cos(math.pi / 2 * (u + 0.008) / 1.008) / math.cos(math.pi / 2 * 0.008 / 1.008)) ** 2


def sigmoid(u: float) -> float:
    def sg(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    return (sg(3) - sg(6 * u - 3)) / (sg(3) - sg(-3))


@pytest.mark.parametrize("formula", [linear_beta, cosine, sigmoid], ids=lambda formula: formula.__name__)
def test_formulas_are_those_of_the_methods(formula: Callable[[float], float]) -> None:
    t = inside()
    alpha_bar = torch.tensor([formula(1 - float(time)) for time in t], dtype=torch.float64)
    schedule = SCHEDULES[formula.__name__]
    torch.testing.assert_close(schedule.alpha(t), alpha_bar.sqrt(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(schedule.sigma(t), (1 - alpha_bar).sqrt(), rtol=1e-9, atol=1e-9)


# The discrete grids of diffusers: its step k stands at t = 1 - (k + 1)/T.


def theirs(**options: Any) -> Any:
    scheduler: Any = DDPMScheduler(num_train_timesteps=1000, **options)  # type: ignore[no-untyped-call]
    return scheduler


def alpha_squared(schedule: Schedule, steps: int) -> Tensor:
    return schedule.alpha(1 - torch.arange(1, steps + 1, dtype=torch.float64) / steps) ** 2


def test_cosine_is_that_of_diffusers() -> None:
    scheduler = theirs(beta_schedule="squaredcos_cap_v2")
    ours = alpha_squared(SCHEDULES["cosine"], 1000)[:-1]  # the last is capped there
    torch.testing.assert_close(ours, scheduler.alphas_cumprod.double()[:-1], rtol=0, atol=1e-5)
    torch.testing.assert_close(
        discrete_betas(SCHEDULES["cosine"], 1000), scheduler.betas.double(), rtol=1e-5, atol=1e-8
    )


def test_continuous_linear_beta_is_near_the_discrete_one_and_not_equal() -> None:
    scheduler = theirs(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    difference = (alpha_squared(SCHEDULES["linear_beta"], 1000) - scheduler.alphas_cumprod.double()).abs().max()
    assert 1e-4 < float(difference) < 1e-3


@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
@pytest.mark.parametrize("steps", [100, 1000])
def test_running_products_of_discrete_betas_are_the_schedule(name: str, steps: int) -> None:
    betas = discrete_betas(SCHEDULES[name], steps)
    assert betas.shape == (steps,)
    assert 0 < float(betas.min()) <= float(betas.max()) <= 0.999
    products, expected = (1 - betas).cumprod(0), alpha_squared(SCHEDULES[name], steps)
    torch.testing.assert_close(products[:-1], expected[:-1], rtol=0, atol=1e-5)
    assert float(products[-1] - expected[-1]) <= 1.001e-3 * float(products[-2])  # the last may be capped
