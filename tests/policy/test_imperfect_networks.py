"""Samplers with imperfect networks, as after training: the exact network of a Gaussian, off by up to 0.3 everywhere.

With the exact network every sampler arrives; in practice they differ in how they propagate its errors.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from flowchunk.policy.diffusion.diffusers_solvers import NUM_GRID_STEPS
from flowchunk.policy.diffusion.paths import FLOW, MIN_ALPHA, GaussianPath, WrappedPath, broadcast_time
from flowchunk.policy.diffusion.predictions import PREDICTIONS
from flowchunk.policy.diffusion.schedules import SCHEDULES, discrete_betas
from flowchunk.policy.diffusion.solvers import SOLVERS as ALL_SOLVERS
from flowchunk.policy.flow import integrate, uniform_times

SOLVERS = {name: solver for name, solver in ALL_SOLVERS.items() if not solver.diffusers_only}

MEAN, STD = 0.7, 0.4
SCORES = torch.linspace(-2, 2, 11, dtype=torch.float64)[:, None]
LIMIT = 9.0  # as with relative actions: estimates are clipped far outside of nearly all data
FOLLOWS_ENDPOINTS = ("ddim", "ancestral", "dpm_solver")
BLIND = ("noise_prediction", "posterior")
KNOWN_TO_DIFFUSERS = [name for name, kind in PREDICTIONS.items() if kind.diffusers_name is not None]

each_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


def path_of(prediction: str, schedule: str) -> GaussianPath:
    options = {"clip_sample_range": LIMIT} if prediction in BLIND else {}
    return GaussianPath(SCHEDULES[schedule], PREDICTIONS[prediction](**options))


def imperfect(path: GaussianPath) -> Any:
    """The best network for N(0.7, 0.4²), and a smooth error of 0.2·(sin + cos / 2)."""

    def network(x_t: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        time = broadcast_time(t, x_t)
        alpha, sigma = path.schedule.alpha(time), path.schedule.sigma(time)
        share = (x_t - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        best = path.sample(x_0=sigma * share, x_1=MEAN + alpha * STD**2 * share, t=t).target
        return best + 0.2 * ((3 * x_t + 7 * time).sin() + 0.5 * (11 * time).cos())

    return network


def error(path: GaussianPath, method: str, nfe: int) -> float:
    """Mean distance from where the exact flow leads; the data's standard deviation is 0.4."""
    times = uniform_times(nfe, method=method, path=path).double()
    x_1 = integrate(imperfect(path), SCORES, times, method=method, path=path, eta=0.0, generator=torch.Generator())
    return float((x_1 - (MEAN + STD * SCORES)).abs().mean())


def bound(method: str, nfe: int) -> float:
    """How much worse so few evaluations may be than 64: of first order in the steps, times the order squared."""
    factor = 1.4 if method in FOLLOWS_ENDPOINTS else 2.4 if method == "euler" else 5.6
    return factor / nfe


@each_schedule
@each_prediction
@pytest.mark.parametrize("method", [name for name in SOLVERS if name != "flow_map"])
def test_few_evaluations_of_an_imperfect_network_are_near_many(method: str, prediction: str, schedule: str) -> None:
    path = path_of(prediction, schedule)
    converged = error(path, method, 64)
    assert converged < 0.4
    for nfe in (2, 4, 8, 16):
        if nfe % SOLVERS[method].stages == 0:
            assert error(path, method, nfe) < converged + bound(method, nfe), nfe


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")  # their numpy
@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "linear"])
@pytest.mark.parametrize("prediction", KNOWN_TO_DIFFUSERS)
@pytest.mark.parametrize("nfe", [2, 4, 8, 16])
def test_ddim_is_no_worse_than_that_of_diffusers(prediction: str, schedule: str, nfe: int) -> None:
    path = path_of(prediction, schedule)
    limit = {"clip_sample_range": LIMIT} if prediction in BLIND else {}
    scheduler: Any = DDIMScheduler(  # type: ignore[no-untyped-call]
        num_train_timesteps=NUM_GRID_STEPS,
        trained_betas=discrete_betas(path.schedule, NUM_GRID_STEPS).tolist(),
        prediction_type=path.prediction.diffusers_name,
        clip_sample=bool(limit),
        timestep_spacing="trailing",
        **limit,
    )
    scheduler.set_timesteps(nfe)
    x, network = SCORES, imperfect(path)
    for number in scheduler.timesteps:
        t = torch.full((len(x),), 1 - (float(number) + 1) / NUM_GRID_STEPS, dtype=x.dtype)
        x = scheduler.step(network(x, t), int(number), x).prev_sample
    theirs = float((x - (MEAN + STD * SCORES)).abs().mean())
    assert error(path, "ddim", nfe) < theirs + 0.03


# Start and end of grids.


@each_schedule
@each_prediction
@pytest.mark.parametrize("method", SOLVERS)
def test_sampling_starts_where_the_prediction_is_informative(method: str, prediction: str, schedule: str) -> None:
    path = path_of(prediction, schedule)
    needs_slopes = SOLVERS[method].follows == "velocity" and schedule != "linear"
    times = uniform_times(4, method=method, path=path).double()
    if needs_slopes or prediction in BLIND:
        before, at = path.schedule.alpha(times[0] - 2e-3), path.schedule.alpha(times[0])
        assert before < MIN_ALPHA <= at + 1e-6
    else:
        assert times[0] == 0
    assert float(times[-1]) == pytest.approx(1 - 1e-3 if needs_slopes else 1, abs=1e-6)
    torch.testing.assert_close(times.diff(), times.diff().mean().expand(len(times) - 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["heun", "rk4"])
def test_solvers_evaluate_the_end_only_if_the_velocity_is_known(method: str) -> None:
    def latest(path: Any) -> float:
        evaluated = []

        def network(x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
            evaluated.append(float(t.max()))
            return x_t.tanh()

        integrate(network, SCORES, uniform_times(8, method=method, path=path).double(), method=method, path=path)
        assert len(evaluated) == 8
        return max(evaluated)

    assert latest(FLOW) == latest(WrappedPath()) == latest(path_of("v", "linear")) == 1
    for path in (path_of("data_prediction", "linear"), path_of("posterior", "linear"), path_of("v", "cosine")):
        assert latest(path) < 0.97
