"""Solvers: with the exact network of a Gaussian all of them converge at their order, and agree with `diffusers`."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowchunk.policy.diffusion.paths import FLOW, GaussianPath, WrappedPath, broadcast_time, sample_normal
from flowchunk.policy.diffusion.predictions import PREDICTIONS
from flowchunk.policy.diffusion.schedules import SCHEDULES
from flowchunk.policy.diffusion.solvers import SOLVERS as ALL_SOLVERS
from flowchunk.policy.diffusion.solvers import VectorField
from flowchunk.policy.flow import integrate, uniform_times

SOLVERS = {name: solver for name, solver in ALL_SOLVERS.items() if not solver.diffusers_only}
OPEN_ENDED = [name for name, solver in SOLVERS.items() if solver.follows != "velocity"]

MEAN, STD = 0.7, 0.4
DETERMINISTIC = [name for name in SOLVERS if name not in ("flow_map", "ancestral")]
SCORES = torch.linspace(-2, 2, 11, dtype=torch.float64)[:, None]  # (11, 1) standard scores, kept on the way

Network = Callable[..., Tensor]

each_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def path_of(prediction: str, schedule: str = "linear") -> GaussianPath:
    return GaussianPath(SCHEDULES[schedule], PREDICTIONS[prediction]())


def double_times(nfe: int, *, method: str = "euler", path: GaussianPath = FLOW) -> Tensor:
    return uniform_times(nfe, method=method, path=path).double()


# Data N(0.7, 0.4²), for which the best network and its trajectories are known.


def exact(path: GaussianPath) -> Network:
    """Targets are linear in the pair, so the best output at x_t is the target of the expected pair E[x_0, x_1 | x_t]."""

    def network(x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        time = broadcast_time(t, x_t)
        alpha, sigma = path.schedule.alpha(time), path.schedule.sigma(time)
        share = (x_t - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        return path.sample(x_0=sigma * share, x_1=MEAN + alpha * STD**2 * share, t=t).target

    return network


def on_the_path(path: GaussianPath, t: float, scores: Tensor = SCORES) -> Tensor:
    """The exact trajectory: N(alpha·mean, alpha²·std² + sigma²), in which each point keeps its standard score."""
    time = torch.as_tensor(t, dtype=scores.dtype)
    alpha, sigma = path.schedule.alpha(time), path.schedule.sigma(time)
    return alpha * MEAN + (alpha**2 * STD**2 + sigma**2).sqrt() * scores


def exact_map(x: Tensor, t: Tensor, condition: Any, *, t_end: Tensor) -> Tensor:
    """Mean velocity from t to t_end on the straight path, also where both are equal."""
    t, e = broadcast_time(t, x), broadcast_time(t_end, x)
    spread, spread_end = ((time**2 * STD**2 + (1 - time) ** 2).sqrt() for time in (t, e))
    slope = ((e + t) * STD**2 + e + t - 2) / (spread + spread_end)  # (spread_end - spread)/(e - t)
    return MEAN + slope / spread * (x - t * MEAN)


@each_schedule
@each_prediction
def test_every_solver_carries_noise_to_the_data(prediction: str, schedule: str) -> None:
    path = path_of(prediction, schedule)
    for method in DETERMINISTIC:
        times = double_times(64, method=method, path=path)
        x_1 = integrate(exact(path), on_the_path(path, float(times[0])), times, method=method, path=path)
        torch.testing.assert_close(x_1, MEAN + STD * SCORES, rtol=0, atol=0.06, msg=method)


@each_schedule
@pytest.mark.parametrize("method", DETERMINISTIC)
def test_single_precision_is_enough(method: str, schedule: str) -> None:
    path, nfe = path_of("v", schedule), 16
    times = uniform_times(nfe, method=method, path=path)
    x_0 = on_the_path(path, float(times[0]))
    single, double = (
        integrate(exact(path), x, times.to(x), method=method, path=path) for x in (x_0.float(), x_0.double())
    )
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, double.float(), rtol=0, atol=1e-3)


@each_schedule
@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("ddim", 1), ("dpm_solver", 2), ("heun", 2), ("rk4", 4)])
def test_solvers_converge_at_their_order(method: str, order: int, schedule: str) -> None:
    path = path_of("v", schedule)
    errors = []
    for steps in (16, 32):
        times = torch.linspace(0.3, 0.7, steps + 1, dtype=torch.float64)
        x = integrate(exact(path), on_the_path(path, 0.3), times, method=method, path=path)
        errors.append(float((x - on_the_path(path, 0.7)).abs().max()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("schedule", ["linear_beta", "cosine", "sigmoid"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_second_order_is_more_accurate_over_the_whole_path(schedule: str, dtype: torch.dtype) -> None:
    path = path_of("data_prediction", schedule)

    def error(method: str) -> float:
        x_0 = on_the_path(path, 0.0).to(dtype)
        x_1 = integrate(exact(path), x_0, uniform_times(32, method=method, path=path), method=method, path=path)
        return float((x_1 - (MEAN + STD * SCORES)).abs().max())

    assert error("dpm_solver") < 0.5 * error("ddim")


# One step against another.


@each_prediction
@given(times=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4, unique=True))
@settings(max_examples=5, deadline=None)
def test_ddim_on_the_straight_path_is_euler(prediction: str, times: list[float]) -> None:
    path, grid = path_of(prediction), torch.tensor([0.01, *sorted(times)[1:], 0.995], dtype=torch.float64)
    x = on_the_path(path, 0.01)
    euler, ddim = (integrate(exact(path), x, grid, method=method, path=path) for method in ("euler", "ddim"))
    torch.testing.assert_close(ddim, euler)


@each_schedule
def test_a_first_step_of_dpm_solver_is_one_of_ddim(schedule: str) -> None:
    path = path_of("v", schedule)
    for times in ([0.3, 0.6], [0.0, 0.2], [0.9, 1.0]):
        x, grid = on_the_path(path, times[0]), torch.tensor(times, dtype=torch.float64)
        dpm, ddim = (integrate(exact(path), x, grid, method=method, path=path) for method in ("dpm_solver", "ddim"))
        torch.testing.assert_close(dpm, ddim)


@each_schedule
@each_prediction
def test_ancestral_without_noise_is_ddim(prediction: str, schedule: str) -> None:
    path = path_of(prediction, schedule)
    times, x_0 = double_times(8, method="ddim", path=path), on_the_path(path, 0.0)
    ancestral = integrate(exact(path), x_0, times, method="ancestral", path=path, eta=0.0, generator=seeded(0))
    torch.testing.assert_close(ancestral, integrate(exact(path), x_0, times, method="ddim", path=path))


@each_schedule
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ancestral_sampling_keeps_the_distribution(schedule: str, eta: float) -> None:
    path = path_of("data_prediction", schedule)
    x_0 = on_the_path(path, 0.0, torch.randn(10_000, 1, generator=seeded(0)))
    times = uniform_times(300, method="ancestral", path=path)
    x_1 = integrate(exact(path), x_0, times, method="ancestral", path=path, eta=eta, generator=seeded(1))
    assert [float(x_1.mean()), float(x_1.std())] == pytest.approx([MEAN, STD], abs=0.02)
    scores, ends = x_0.flatten(), x_1.flatten()
    kept = float(torch.corrcoef(torch.stack([scores, ends]))[0, 1])
    assert abs(kept) < 0.95  # noise was added along the path


def test_ancestral_sampling_needs_a_generator() -> None:
    with pytest.raises(ValueError, match="samples noise in every step: give integrate a generator"):
        integrate(exact(FLOW), SCORES, double_times(2), method="ancestral")


@given(seeds=st.lists(st.integers(0, 2**31), min_size=2, max_size=4, unique=True), data=st.data())
@settings(max_examples=15, deadline=None)
def test_rows_with_generators_do_not_depend_on_their_neighbors(seeds: list[int], data: st.DataObject) -> None:
    path, row = path_of("data_prediction", "cosine"), data.draw(st.integers(0, len(seeds) - 1))
    x_0, times = torch.randn(len(seeds), 3, 2, generator=seeded(0)), uniform_times(4, method="ancestral", path=path)

    def sample(x: Tensor, chosen: list[int]) -> Tensor:
        generators = [seeded(seed) for seed in chosen]
        return integrate(exact(path), x, times, method="ancestral", path=path, generator=generators)

    together, alone = sample(x_0, seeds), sample(x_0[row : row + 1], seeds[row : row + 1])
    torch.testing.assert_close(together[row], alone[0])


def test_normal_numbers_come_from_one_generator_or_one_per_row() -> None:
    assert torch.equal(sample_normal((3, 2), generator=seeded(1)), torch.randn(3, 2, generator=seeded(1)))
    rows = sample_normal((2, 5), generator=[seeded(1), seeded(2)])
    assert torch.equal(rows, torch.stack([torch.randn(5, generator=seeded(seed)) for seed in (1, 2)]))


# Flow maps.


def test_a_flow_map_arrives_with_any_steps() -> None:
    network: Network = exact_map
    for grid in ([0.0, 1.0], [0.0, 0.3, 1.0], [0.0, 0.1, 0.11, 0.8, 1.0]):
        x_1 = integrate(network, on_the_path(FLOW, 0.0), torch.tensor(grid), method="flow_map")
        torch.testing.assert_close(x_1, MEAN + STD * SCORES, rtol=0, atol=1e-6)


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3).map(sorted))
@settings(max_examples=25, deadline=None)
def test_steps_of_a_flow_map_compose(times: list[float]) -> None:
    t, middle, end = torch.tensor(times, dtype=torch.float64)
    field, step = VectorField(exact_map, FLOW), SOLVERS["flow_map"].step
    x = on_the_path(FLOW, float(t))
    torch.testing.assert_close(step(field, step(field, x, t, middle), middle, end), step(field, x, t, end))
    torch.testing.assert_close(step(field, x, t, end), on_the_path(FLOW, float(end)))


def test_a_flow_map_of_no_length_is_the_velocity() -> None:
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(exact_map(SCORES, t, None, t_end=t), exact(FLOW)(SCORES, t, None))


# Prefixes.


@each_schedule
@pytest.mark.parametrize("method", OPEN_ENDED)
@given(known=st.integers(0, 6))
@settings(max_examples=5, deadline=None)
def test_a_prefix_is_returned_exactly_and_is_at_time_one(method: str, schedule: str, known: int) -> None:
    path = path_of("data_prediction", schedule)
    x_0, prefix = torch.randn(2, 6, 3, generator=seeded(0)), torch.randn(2, known, 3, generator=seeded(1))

    def network(x_t: Tensor, t: Tensor, condition: Any, *, t_end: Tensor | None = None) -> Tensor:
        for times in (t, t if t_end is None else t_end):
            assert torch.equal(times[:, :known], torch.ones(2, known))
            assert torch.equal(times[:, known:], times[:1, -1:].expand(2, 6 - known)) or known == 6
        assert torch.equal(x_t[:, :known], prefix)
        return x_t.tanh()

    x_1 = integrate(
        network, x_0, uniform_times(4, method=method, path=path), method=method, path=path, prefix=prefix,
        generator=seeded(2),
    )  # fmt: skip
    assert torch.equal(x_1[:, :known], prefix)
    assert x_1.isfinite().all()
    assert known == 6 or not torch.equal(x_1[:, known:], x_0[:, known:])


# Costs and refusals.


@pytest.mark.parametrize("method", SOLVERS)
@each_schedule
def test_steps_take_the_declared_number_of_evaluations_within_the_path(method: str, schedule: str) -> None:
    path, calls = path_of("v", schedule), []

    def network(x_t: Tensor, t: Tensor, condition: Any, *, t_end: Tensor | None = None) -> Tensor:
        calls.append(condition)
        assert t.shape == (3,)
        assert 0 <= float(t.min()) <= float(t.max()) <= 1
        return x_t.sin()

    times = uniform_times(8, method=method, path=path)
    x_0 = torch.ones(3, 2)
    x_1 = integrate(network, x_0, times, method=method, path=path, condition="seen", generator=seeded(0))
    assert calls == ["seen"] * 8
    assert x_1.isfinite().all()
    assert torch.equal(x_0, torch.ones(3, 2))
    reaches_the_ends = path.schedule.is_straight or method in OPEN_ENDED
    ends = [0, 1] if reaches_the_ends else [path.first_informative_time, 1 - 1e-3]
    assert times[[0, -1]].tolist() == pytest.approx(ends, abs=1e-6)


@pytest.mark.parametrize("method", ["ddim", "ancestral", "dpm_solver"])
def test_solvers_along_both_ends_need_a_gaussian_path(method: str) -> None:
    with pytest.raises(ValueError, match="needs a Gaussian path; on the torus there are euler, midpoint, heun and rk4"):
        integrate(exact(FLOW), SCORES, double_times(2), method=method, path=WrappedPath(), generator=seeded(0))


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun", "rk4", "flow_map"])
def test_on_the_torus_every_step_stays_there(method: str) -> None:
    def network(x: Tensor, t: Tensor, condition: Any, *, t_end: Tensor | None = None) -> Tensor:
        assert float(x.abs().max()) <= math.pi + 1e-6
        return torch.full_like(x, 5.0)

    x_0 = WrappedPath().sample_noise((20, 2), generator=seeded(0))
    x_1 = integrate(network, x_0, uniform_times(8, method=method), method=method, path=WrappedPath())
    torch.testing.assert_close((x_1 - x_0 - 5).cos(), torch.ones(20, 2))


# Trajectories of diffusers: their step k of T stands at t = 1 - (k + 1)/T.


def curved_network(x: Tensor, t: Tensor, condition: Any) -> Tensor:
    """Some prediction of noise."""
    return torch.tanh(2 * x) * (1.2 - t[:, None]) + condition


THEIRS: dict[str, Callable[..., Any]] = {
    "ddim": partial(DDIMScheduler, clip_sample=False),
    "dpm_solver": partial(
        DPMSolverMultistepScheduler,
        algorithm_type="dpmsolver++",
        solver_order=2,
        final_sigmas_type="zero",
        timestep_spacing="leading",
    ),
}


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")  # their numpy
@pytest.mark.parametrize("method", THEIRS)
@pytest.mark.parametrize("steps", [10, 50])
def test_trajectories_are_those_of_diffusers(method: str, steps: int) -> None:
    scheduler = THEIRS[method](num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2")
    scheduler.set_timesteps(steps)
    condition = torch.tensor([0.1, -0.2], dtype=torch.float64)
    theirs = [torch.randn(16, 2, generator=seeded(0), dtype=torch.float64)]
    times = torch.cat([1 - (scheduler.timesteps.double() + 1) / 1000, torch.ones(1, dtype=torch.float64)])
    for timestep, t in zip(scheduler.timesteps, times, strict=False):
        output = curved_network(theirs[-1], t.expand(16), condition)
        theirs.append(scheduler.step(output, timestep, theirs[-1]).prev_sample)
    ours: list[Tensor] = []
    path = path_of("noise_prediction", "cosine")
    integrate(
        curved_network, theirs[0], times, condition=condition, method=method, path=path,
        callback=lambda _, x: ours.append(x),
    )  # fmt: skip
    torch.testing.assert_close(torch.stack(ours), torch.stack(theirs), rtol=1e-5, atol=1e-5)
    assert float((ours[-1] - ours[0]).abs().max()) > 0.5
