"""Paths: all predictions are equivalent, steps follow Bayes' rule, and everything is finite at the ends."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from flowchunk.policy.diffusion.paths import FLOW, GaussianPath, WrappedPath, posterior_kl, wrap
from flowchunk.policy.diffusion.predictions import PREDICTIONS, DataPrediction, PosteriorPrediction
from flowchunk.policy.diffusion.schedules import SCHEDULES

INSIDE = torch.tensor([0.02, 0.2, 0.5, 0.8, 0.97], dtype=torch.float64)

each_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


def normal(*size: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pairs(batch: int = len(INSIDE), *, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """x_0 and x_1, (batch, 4, 3)."""
    x_0, x_1 = normal(2, batch, 4, 3, dtype=dtype)
    return x_0, x_1


def path_of(prediction: str, schedule: str = "linear", **options: float | None) -> GaussianPath:
    return GaussianPath(SCHEDULES[schedule], PREDICTIONS[prediction](**options))


def column(t: Tensor) -> Tensor:
    return t[:, None, None]


# A path with many predictions.


@each_schedule
@each_prediction
def test_targets_determine_both_ends(prediction: str, schedule: str) -> None:
    path = path_of(prediction, schedule)
    x_0, x_1 = pairs()
    x_t, target = path.sample(x_0=x_0, x_1=x_1, t=INSIDE)
    ends = path.endpoints(target, x_t, INSIDE)
    torch.testing.assert_close(ends.x_1, x_1, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(ends.x_0, x_0, rtol=1e-8, atol=1e-8)


@each_schedule
@each_prediction
def test_every_prediction_gives_the_same_velocity(prediction: str, schedule: str) -> None:
    path, t = path_of(prediction, schedule), column(INSIDE)
    x_0, x_1 = pairs()
    x_t, target = path.sample(x_0=x_0, x_1=x_1, t=INSIDE)
    torch.testing.assert_close(x_t, path.schedule.alpha(t) * x_1 + path.schedule.sigma(t) * x_0)
    expected = path.schedule.alpha_dot(t) * x_1 + path.schedule.sigma_dot(t) * x_0
    torch.testing.assert_close(path.velocity(target, x_t, INSIDE), expected, rtol=1e-8, atol=1e-8)


@each_schedule
def test_targets_are_those_of_the_papers(schedule: str) -> None:
    x_0, x_1 = pairs()
    alpha, sigma = SCHEDULES[schedule].alpha(column(INSIDE)), SCHEDULES[schedule].sigma(column(INSIDE))
    expected = {"noise_prediction": x_0, "data_prediction": x_1, "v": alpha * x_0 - sigma * x_1}
    for prediction, target in expected.items():
        torch.testing.assert_close(path_of(prediction, schedule).sample(x_0=x_0, x_1=x_1, t=INSIDE).target, target)


@each_schedule
@each_prediction
def test_tokens_may_have_their_own_times(prediction: str, schedule: str) -> None:
    path, times = path_of(prediction, schedule), torch.rand(5, 4, dtype=torch.float64)
    x_0, x_1 = pairs()
    x_t, target = path.sample(x_0=x_0, x_1=x_1, t=times)
    ends, velocity = path.endpoints(target, x_t, times), path.velocity(target, x_t, times)
    for token in range(4):
        index, t = slice(token, token + 1), times[:, token]
        alone = path.sample(x_0=x_0[:, index], x_1=x_1[:, index], t=t)
        torch.testing.assert_close((x_t[:, index], target[:, index]), alone)
        torch.testing.assert_close(velocity[:, index], path.velocity(target[:, index], x_t[:, index], t))
        torch.testing.assert_close(ends.x_1[:, index], path.endpoints(target[:, index], x_t[:, index], t).x_1)


def test_on_the_straight_path_errors_of_all_predictions_differ_by_a_factor() -> None:
    """|dv|² = |dx̂|²/(1 - t)² = |dê|²/t²: two pairs that go through the same point differ by so much."""
    x_0, x_1 = pairs()
    t = column(INSIDE)
    x_t, _ = FLOW.sample(x_0=x_0, x_1=x_1, t=INSIDE)
    other_x_1 = x_1 + normal(5, 4, 3, seed=1)
    other_x_0 = (x_t - t * other_x_1) / (1 - t)

    def error(prediction: str) -> Tensor:
        path = path_of(prediction)
        (_, target), (same, output) = (
            path.sample(x_0=ends[0], x_1=ends[1], t=INSIDE) for ends in ((x_0, x_1), (other_x_0, other_x_1))
        )
        torch.testing.assert_close(same, x_t)
        return path.errors(output, target, INSIDE)

    torch.testing.assert_close(error("flow"), error("data_prediction") / (1 - t) ** 2)
    torch.testing.assert_close(error("flow"), error("noise_prediction") / t**2)


@each_schedule
@each_prediction
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_infinite_at_the_ends(prediction: str, schedule: str, dtype: torch.dtype) -> None:
    t = torch.tensor([0.0, 1e-6, 1e-4, 1 - 1e-4, 1.0], dtype=dtype)
    path, (x_0, x_1) = path_of(prediction, schedule), pairs(dtype=dtype)
    x_t, target = path.sample(x_0=x_0, x_1=x_1, t=t)
    for output in (target, normal(5, 4, 3, seed=2, dtype=dtype)):
        results = (x_t, path.errors(output, target, t), path.velocity(output, x_t, t), *path.endpoints(output, x_t, t))
        assert all(result.isfinite().all() and result.dtype == dtype for result in results)


@each_schedule
def test_data_are_known_at_the_end_and_noise_at_the_start(schedule: str) -> None:
    x_0, x_1 = pairs(2)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for prediction in PREDICTIONS:
        path = path_of(prediction, schedule)
        x_t, target = path.sample(x_0=x_0, x_1=x_1, t=t)
        ends = path.endpoints(target, x_t, t)
        torch.testing.assert_close(ends.x_1[1], x_1[1], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ends.x_0[0], x_0[0], rtol=1e-6, atol=1e-6)


# Weights and limits.


@each_schedule
def test_the_weight_of_data_predictions_is_the_capped_signal_to_noise(schedule: str) -> None:
    t = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    path, (output, target) = GaussianPath(SCHEDULES[schedule], DataPrediction(min_snr_gamma=5.0)), pairs()
    expected = column(path.schedule.snr(t).clamp(max=5.0)) * (output - target) ** 2
    torch.testing.assert_close(path.errors(output, target, t), expected)
    unweighted = path_of("data_prediction", schedule).errors(output, target, t)
    torch.testing.assert_close(unweighted, (output - target) ** 2)


@pytest.mark.parametrize("prediction", ["noise_prediction", "posterior"])
def test_estimated_data_are_clipped(prediction: str) -> None:
    t = torch.tensor([0.0, 0.01, 0.1, 0.5, 0.99], dtype=torch.float64)
    x_t, output = 3 * normal(2, 5, 4, 3)
    free, limited = (path_of(prediction, "cosine", clip_sample_range=limit) for limit in (None, 1.0))
    assert float(free.endpoints(output, x_t, t).x_1.abs().max()) > 1
    torch.testing.assert_close(limited.endpoints(output, x_t, t).x_1, free.endpoints(output, x_t, t).x_1.clamp(-1, 1))


# Posteriors.


@each_schedule
@pytest.mark.parametrize(("t", "t_end"), [(0.0, 0.1), (0.3, 0.4), (0.3, 0.9), (0.98, 0.99)])
def test_posteriors_follow_bayes(schedule: str, t: float, t_end: float) -> None:
    """x_end ~ N(alpha_e·x_1, sigma_e²) and x_t ~ N(k·x_end, added): precisions add up."""
    time, end = torch.tensor([t, t_end], dtype=torch.float64)
    alpha, sigma = SCHEDULES[schedule].alpha, SCHEDULES[schedule].sigma
    k = alpha(time) / alpha(end)
    added = sigma(time) ** 2 - k**2 * sigma(end) ** 2
    precision = 1 / sigma(end) ** 2 + k**2 / added
    posterior = SCHEDULES[schedule].posterior(time, end)
    torch.testing.assert_close(posterior.std, precision**-0.5)
    torch.testing.assert_close(posterior.x_t_weight, k / added / precision)
    torch.testing.assert_close(posterior.x_1_weight, alpha(end) / sigma(end) ** 2 / precision)


@each_schedule
def test_steps_through_posteriors_stay_on_the_path(schedule: str) -> None:
    """Averaged over x_t, p(x_end | x_t, x_1) is N(alpha_e·x_1, sigma_e²) again."""
    path, t, t_end = GaussianPath(SCHEDULES[schedule]), INSIDE[:-1], INSIDE[1:]
    posterior = path.schedule.posterior(t, t_end)
    alpha, sigma = path.schedule.alpha, path.schedule.sigma
    torch.testing.assert_close(posterior.x_t_weight * alpha(t) + posterior.x_1_weight, alpha(t_end))
    spread = (posterior.x_t_weight * sigma(t)) ** 2 + posterior.std**2
    torch.testing.assert_close(spread.sqrt(), sigma(t_end))


@each_schedule
def test_the_last_step_has_no_noise_left(schedule: str) -> None:
    t, end = torch.tensor([0.9, 1.0], dtype=torch.float64)
    assert [float(part) for part in SCHEDULES[schedule].posterior(t, end)] == pytest.approx([0, 1, 0])


@each_schedule
def test_the_divergence_is_half_the_gain_in_signal_to_noise(schedule: str) -> None:
    path, (x_1, estimated) = GaussianPath(SCHEDULES[schedule]), pairs()
    t, t_end = INSIDE, INSIDE + 0.02
    divergence = posterior_kl(path.schedule, x_1=x_1, estimated_x_1=estimated, t=t, t_end=t_end)
    gain = column(path.schedule.snr(t_end) - path.schedule.snr(t))
    torch.testing.assert_close(divergence, gain / 2 * (x_1 - estimated) ** 2)
    posterior, x_t = path.schedule.posterior(column(t), column(t_end)), normal(5, 4, 3, seed=3)
    true, model = (
        Normal(posterior.x_t_weight * x_t + posterior.x_1_weight * data, posterior.std) for data in (x_1, estimated)
    )
    torch.testing.assert_close(divergence, kl_divergence(true, model), rtol=1e-6, atol=1e-9)


@each_schedule
@pytest.mark.parametrize("num_grid_steps", [10, 100])
def test_the_error_of_the_posterior_prediction_is_twice_that_divergence(schedule: str, num_grid_steps: int) -> None:
    path = GaussianPath(SCHEDULES[schedule], PosteriorPrediction(num_grid_steps))
    t = torch.tensor([0.1, 0.2, 0.5, 0.7, 0.8], dtype=torch.float64)
    x_0, x_1 = pairs()
    x_t, target = path.sample(x_0=x_0, x_1=x_1, t=t)
    estimated = x_1 + normal(5, 4, 3, seed=1)
    noise = (x_t - path.schedule.alpha(column(t)) * estimated) / path.schedule.sigma(column(t))
    _, output = path.sample(x_0=noise, x_1=estimated, t=t)  # of another pair through the same point
    divergence = posterior_kl(path.schedule, x_1=x_1, estimated_x_1=estimated, t=t, t_end=t + 1 / num_grid_steps)
    torch.testing.assert_close(path.errors(output, target, t) / 2, divergence, rtol=1e-6, atol=1e-9)


# Angles.

angles = st.lists(st.floats(-20, 20), min_size=3, max_size=3).map(lambda row: torch.tensor([row], dtype=torch.float64))
turns = st.lists(st.integers(-3, 3), min_size=3, max_size=3).map(lambda row: torch.tensor([row]) * math.tau)


def assert_same_angle(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a.cos(), b.cos(), rtol=0, atol=1e-6)
    torch.testing.assert_close(a.sin(), b.sin(), rtol=0, atol=1e-6)


@given(angles, angles, st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_the_path_between_angles_is_the_shortest_and_arrives(x_0: Tensor, x_1: Tensor, t: float) -> None:
    path, time = WrappedPath(), torch.tensor([t], dtype=torch.float64)
    x_t, velocity = path.sample(x_0=x_0, x_1=x_1, t=time)
    assert float(velocity.abs().max()) <= math.pi + 1e-9
    assert float(x_t.abs().max()) <= math.pi + 1e-9
    assert_same_angle(path.sample(x_0=x_0, x_1=x_1, t=torch.ones_like(time))[0], x_1)
    assert_same_angle(path.sample(x_0=x_0, x_1=x_1, t=torch.zeros_like(time))[0], x_0)
    assert_same_angle(path.step(x_t, (1 - t) * velocity), x_1)


@given(angles, angles, turns, turns)
@settings(max_examples=25, deadline=None)
def test_full_turns_change_nothing(x_0: Tensor, x_1: Tensor, turn_0: Tensor, turn_1: Tensor) -> None:
    path, t = WrappedPath(), torch.tensor([0.4], dtype=torch.float64)
    x_1 = x_0 + 0.49 * math.tau * (x_1 / 20)  # not at the opposite side, where both directions are equally short
    for ours, theirs in zip(
        path.sample(x_0=x_0, x_1=x_1, t=t), path.sample(x_0=x_0 + turn_0, x_1=x_1 + turn_1, t=t), strict=True
    ):
        assert_same_angle(ours, theirs)
    assert_same_angle(path.step(x_0 + turn_0, x_1 + turn_1), path.step(x_0, x_1))


@given(angles)
@settings(max_examples=25, deadline=None)
def test_wrapped_angles_lie_around_zero(angle: Tensor) -> None:
    wrapped = wrap(angle)
    assert float(wrapped.abs().max()) <= math.pi
    assert_same_angle(wrapped, angle)
    torch.testing.assert_close(wrap(wrapped), wrapped)


def test_noise_on_the_torus_is_uniform() -> None:
    path, generators = WrappedPath(), [torch.Generator().manual_seed(0) for _ in range(2)]
    noise = path.sample_noise((20_000, 2), generator=generators[0])
    assert torch.equal(noise, path.sample_noise((20_000, 2), generator=generators[1]))
    assert float(noise.abs().max()) <= math.pi
    assert noise.mean(0).tolist() == pytest.approx([0, 0], abs=0.05)
    assert noise.std(0).tolist() == pytest.approx([math.pi / math.sqrt(3)] * 2, rel=0.02)
    torch.testing.assert_close(path.errors(noise, torch.zeros_like(noise), noise[:, 0]), noise**2)
    assert path.velocity(noise, noise, noise[:, 0]) is noise
