"""Objectives: each of them learns, uses only its generator, and refuses options that do not fit together."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flowchunk.policy.diffusion.objectives import IntegratedObjective, make_objective, objective_names
from flowchunk.policy.diffusion.objectives.direct import MIP_TIME
from flowchunk.policy.diffusion.objectives.flow_map import FlowMapNoise, flow_map_errors
from flowchunk.policy.diffusion.paths import FLOW, GaussianPath, broadcast_time
from flowchunk.policy.diffusion.predictions import PREDICTIONS
from flowchunk.policy.flow import flow_matching_loss
from flowchunk.policy.networks import NETWORKS
from flowchunk.policy.noise import PathNoise
from flowchunk.policy.sampling import SamplingOptions

MEAN, STD = 0.7, 0.4

Network = Callable[..., Tensor]

each_objective = pytest.mark.parametrize("name", objective_names())
OBJECTIVES = objective_names()
DEFAULTS = SamplingOptions()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Every objective learns.

CENTER, SPREAD = torch.tensor([[1.0, -0.5], [0.3, 0.8]]), 0.2


@each_objective
def test_every_objective_learns_the_data(name: str) -> None:
    objective = make_objective(name, clip_sample_range=2.0 if name in ("noise_prediction", "posterior") else None)
    torch.manual_seed(0)
    network = NETWORKS["mlp"](action_size=2, horizon=2, condition_size=1, width=32, blocks=1)
    optimizer, generator = torch.optim.Adam(network.parameters(), lr=1e-2), seeded(0)
    nothing = torch.zeros(128, 1)
    for _ in range(200):
        x_1 = CENTER + SPREAD * torch.randn(128, 2, 2, generator=generator)
        noise = objective.sample_noise((128, 2, 2), generator)
        loss = objective.loss(network, x_1, noise=noise, condition=nothing).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    x_0 = objective.path.sample_noise((128, 2, 2), generator=seeded(1))
    nfe = 16 if objective.valid_nfe is None else objective.valid_nfe[0]
    with torch.no_grad():
        x_1 = objective.sample(network, x_0, nfe=nfe, sampling=DEFAULTS, condition=nothing, generator=seeded(2))
    assert x_1.shape == x_0.shape
    torch.testing.assert_close(x_1.mean(0), CENTER, rtol=0, atol=0.2)
    assert float((x_1 - x_1.mean(0)).std()) < 0.5  # the noise had 1


# Data N(0.7, 0.4²), for which the best networks are known.


def expected_ends(path: GaussianPath, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """E[x_0 | x_t] and E[x_1 | x_t]."""
    time = broadcast_time(t, x_t)
    alpha, sigma = path.schedule.alpha(time), path.schedule.sigma(time)
    share = (x_t - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
    return sigma * share, MEAN + alpha * STD**2 * share


def exact(path: GaussianPath) -> Network:
    def network(x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        x_0, x_1 = expected_ends(path, x_t, t)
        return path.sample(x_0=x_0, x_1=x_1, t=t).target

    return network


def exact_map(x: Tensor, t: Tensor, condition: Any, *, t_end: Tensor) -> Tensor:
    """Mean velocity from t to t_end on the straight path, also where both are equal."""
    t, e = broadcast_time(t, x), broadcast_time(t_end, x)
    spread, spread_end = ((time**2 * STD**2 + (1 - time) ** 2).sqrt() for time in (t, e))
    slope = ((e + t) * STD**2 + e + t - 2) / (spread + spread_end)
    return MEAN + slope / spread * (x - t * MEAN)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_the_exact_network_has_the_lowest_error(name: str) -> None:
    objective = make_objective(name)
    assert isinstance(objective.path, GaussianPath)
    best, x_1 = exact(objective.path), MEAN + STD * torch.randn(20_000, 1, generator=seeded(0))
    noise = objective.sample_noise((20_000, 1), seeded(1))

    def error(factor: float) -> float:
        return float(objective.loss(lambda x, t, c: factor * best(x, t, c), x_1, noise=noise).mean())

    assert error(1.0) < min(error(0.95), error(1.05))


@pytest.mark.parametrize(
    ("name", "schedule"), [("noise_prediction", "cosine"), ("v", "linear_beta"), ("data_prediction", "sigmoid")]
)
@pytest.mark.parametrize(("solver", "nfe"), [("diffusers_ddpm", 100), ("diffusers_ddim", 16)])
def test_samplers_of_diffusers_carry_noise_to_the_data(name: str, schedule: str, solver: str, nfe: int) -> None:
    objective = make_objective(name, schedule=schedule, clip_sample_range=3.0)
    assert isinstance(objective.path, GaussianPath)
    calls = []

    def network(x: Tensor, t: Tensor, condition: Any) -> Tensor:
        calls.append(float(t[0]))
        return exact(objective.path)(x, t, condition)  # type: ignore[arg-type]

    sampling = SamplingOptions(solver=solver)
    x_0 = torch.randn(4000, 1, generator=seeded(0))
    x_1 = objective.sample(network, x_0, nfe=nfe, sampling=sampling, generator=seeded(1))
    assert len(calls) == nfe
    assert calls == sorted(calls)
    assert 0 <= calls[0] < calls[-1] == pytest.approx(0.99)
    assert [float(x_1.mean()), float(x_1.std())] == pytest.approx([MEAN, STD], abs=0.1)


def test_rows_of_diffusers_may_have_their_own_generators() -> None:
    objective, sampling = make_objective("data_prediction"), SamplingOptions(solver="diffusers_ddpm")
    x_0 = torch.randn(3, 2, generator=seeded(0))
    seen: list[float] = []

    def sample(rows: list[int]) -> Tensor:
        return objective.sample(
            lambda x, t, c: x.tanh(), x_0[rows], nfe=5, sampling=sampling, generator=[seeded(row) for row in rows],
            callback=lambda t, x: seen.append(float(t)),
        )  # fmt: skip

    torch.testing.assert_close(sample([0, 1, 2])[1:], sample([1, 2]))
    assert len(seen) == 12
    assert seen[5] == 1


# Random numbers.


@each_objective
def test_noise_is_a_function_of_the_generator(name: str) -> None:
    objective, before = make_objective(name, time_density="logit_normal"), torch.get_rng_state()
    first, same, different = (objective.sample_noise((6, 4, 2), seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(first, FlowMapNoise if name == "flow_map" else PathNoise)
    assert first.x_0.shape == (6, 4, 2)
    assert len(first.tensors()) == (4 if name == "flow_map" else 2)
    for value, again, another in zip(first.tensors(), same.tensors(), different.tensors(), strict=True):
        assert len(value) == 6
        assert torch.equal(value, again)
        assert not torch.equal(value, another)


@each_objective
def test_losses_and_samples_use_no_global_randomness(name: str) -> None:
    objective, before = make_objective(name), torch.get_rng_state()
    x_1 = torch.randn(6, 4, 2, generator=seeded(0))
    noise = objective.sample_noise((6, 4, 2), seeded(1))

    def network(x: Tensor, t: Tensor, condition: Any, *, t_end: Tensor | None = None) -> Tensor:
        assert condition == "seen"
        return x.sin()

    losses = [objective.loss(network, x_1, noise=noise, condition="seen") for _ in range(2)]
    assert torch.equal(losses[0].errors, losses[1].errors)
    assert losses[0].errors.shape == (6,)
    assert float(losses[0].errors.min()) >= 0
    nfe = (objective.valid_nfe or (4,))[0]
    objective.sample(network, noise.x_0, nfe=nfe, sampling=DEFAULTS, condition="seen", generator=seeded(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_divergence_is_trained_on_its_grid_without_the_last_interval() -> None:
    steps = make_objective("posterior").sample_noise((20_000,), seeded(0)).t * 100
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
    assert set(steps.round().int().tolist()) == set(range(99))  # 0/100 … 98/100; from 99/100 on there is no end
    assert steps.mean() == pytest.approx(49, abs=1)


def test_flow_maps_are_trained_forward() -> None:
    noise: Any = make_objective("flow_map").sample_noise((1000,), seeded(0))
    assert (noise.t <= noise.t_end).all()
    for times in noise.t_end, noise.split:
        assert 0 <= float(times.min()) <= float(times.max()) <= 1


# Flow maps.


def map_noise(batch: int = 200) -> FlowMapNoise:
    t, length, share = torch.rand(3, batch, generator=seeded(0), dtype=torch.float64)
    x_0 = torch.randn(batch, 3, 2, generator=seeded(1), dtype=torch.float64)
    return FlowMapNoise(x_0, t, t + (1 - t) * length, share)


@pytest.mark.parametrize("with_prefix", [False, True])
def test_the_exact_flow_map_is_consistent(with_prefix: bool) -> None:
    x_1 = torch.randn(200, 3, 2, generator=seeded(2), dtype=torch.float64)
    prefix_length = torch.randint(3, (200,), generator=seeded(3)) if with_prefix else None
    errors = flow_map_errors(exact_map, x_1, path=FLOW, prefix_length=prefix_length, noise=map_noise())
    assert float(errors.max()) < 1e-24
    wrong = flow_map_errors(
        lambda x, t, c, *, t_end: exact_map(x, t, c, t_end=t_end) + broadcast_time(t_end - t, x),
        x_1, path=FLOW, noise=map_noise(),
    )  # fmt: skip
    assert float(wrong.mean()) > 1e-3


def test_two_steps_teach_one_without_gradient() -> None:
    weight, taught = torch.tensor(0.5, dtype=torch.float64, requires_grad=True), []

    def network(x: Tensor, t: Tensor, condition: Any, *, t_end: Tensor) -> Tensor:
        taught.append(torch.is_grad_enabled())
        return weight * x

    noise, x_1 = map_noise(), torch.ones(200, 3, 2, dtype=torch.float64)
    errors = flow_map_errors(network, x_1, path=FLOW, noise=noise)
    assert taught == [False, False, True]
    x_t, _ = FLOW.sample(x_0=noise.x_0, x_1=x_1, t=noise.t)
    share, length = (column[:, None, None] for column in (noise.split, noise.t_end - noise.t))
    first = 0.5 * x_t
    target = share * first + (1 - share) * 0.5 * (x_t + share * length * first)
    torch.testing.assert_close(errors, (0.5 * x_t - target) ** 2)
    (gradient,) = torch.autograd.grad(errors.sum(), weight)
    torch.testing.assert_close(gradient, (2 * (0.5 * x_t - target) * x_t).sum())


def test_flow_maps_learn_the_velocity_too() -> None:
    objective, x_1 = make_objective("flow_map"), torch.randn(6, 4, 2, generator=seeded(0))
    noise: Any = objective.sample_noise((6, 4, 2), seeded(1))

    def network(x: Tensor, t: Tensor, condition: Any, *, t_end: Tensor | None = None) -> Tensor:
        return x.sin() * (1 if t_end is None else 1 + broadcast_time(t_end, x))

    velocity = flow_matching_loss(network, x_1, x_0=noise.x_0, t=noise.t).errors
    consistency = flow_map_errors(network, x_1, path=FLOW, noise=noise)
    expected = velocity + consistency.flatten(1).mean(1)
    torch.testing.assert_close(objective.loss(network, x_1, noise=noise).errors, expected)


# The baselines without a path.


def echo(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
    return 2 * x + t[:, None, None] + condition


def errors_of(name: str, x_1: Tensor, noise: Tensor, condition: Tensor) -> Tensor:
    path_noise = PathNoise(noise, torch.zeros(len(noise)))
    return make_objective(name).loss(echo, x_1, noise=path_noise, condition=condition).errors


def sample_of(name: str, network: Any, noise: Tensor, condition: Any = None) -> Tensor:
    objective = make_objective(name)
    assert objective.valid_nfe is not None
    return objective.sample(network, noise, nfe=objective.valid_nfe[0], sampling=DEFAULTS, condition=condition)


def test_regression_depends_only_on_the_condition() -> None:
    x_1, condition, noise = torch.randn(3, 5, 3, 2, generator=seeded(0))
    torch.testing.assert_close(sample_of("regression", echo, noise, condition), condition)
    expected = ((condition - x_1) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(errors_of("regression", x_1, noise, condition), expected)


def test_the_minimal_iterative_policy_evaluates_twice() -> None:
    x_1, condition, noise = torch.randn(3, 5, 3, 2, generator=seeded(0))
    second = 2 * (0.9 * x_1 + 0.1 * noise) + 0.9 + condition
    expected = ((condition - x_1) ** 2 + (second - x_1) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(errors_of("mip", x_1, noise, condition), expected)
    assert MIP_TIME == 0.9
    torch.testing.assert_close(sample_of("mip", echo, noise, condition), 2 * 0.9 * condition + 0.9 + condition)


@pytest.mark.parametrize(("name", "valid"), [("regression", 1), ("mip", 2)])
def test_baselines_admit_one_number_of_evaluations(name: str, valid: int) -> None:
    objective, calls = make_objective(name), []

    def network(x: Tensor, t: Tensor, condition: Any) -> Tensor:
        calls.append(t)
        return x

    assert objective.valid_nfe == (valid,)
    sample_of(name, network, torch.ones(2, 3))
    assert len(calls) == valid
    for nfe in (3, 3 - valid, 0):
        with pytest.raises(ValueError, match=f"nfe={nfe}: a model trained with objective={name} admits only {valid}"):
            objective.sample(network, torch.ones(2, 3), nfe=nfe, sampling=DEFAULTS)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in ("regression", "mip")])
def test_others_admit_any(name: str) -> None:
    objective = make_objective(name)
    assert objective.valid_nfe is None
    assert [len(objective.times(nfe, sampling=DEFAULTS)) for nfe in (4, 1, 7)] == [5, 2, 8]
    with pytest.raises(ValueError, match="nfe=0"):
        objective.times(0, sampling=DEFAULTS)


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "gan"},
            "unknown objective 'gan'; there are flow, noise_prediction, data_.*, v, posterior, regression, mip, flow_map",
        ),
        ({"name": "v", "schedule": "quadratic"}, "unknown schedule 'quadratic'; there are linear, linear_beta"),
        ({"name": "flow", "schedule": "cosine"}, "objective=flow with schedule=cosine: its velocity is infinite"),
        ({"name": "flow_map", "schedule": "sigmoid"}, "objective=flow_map with schedule=sigmoid: .*; use .*linear"),
        ({"name": "regression", "schedule": "linear"}, "objective=regression has no schedule, but schedule=linear"),
        ({"name": "mip", "schedule": "cosine"}, "objective=mip has no schedule"),
        ({"name": "flow", "min_snr_gamma": 5.0}, "min_snr_gamma=5.0 is for objective=data_prediction, not flow"),
        ({"name": "flow", "solver": "leapfrog"}, "unknown solver 'leapfrog'; there are euler, .*diffusers_ddim"),
        ({"name": "v", "solver": "flow_map"}, "solver=flow_map needs objective=flow_map, not this v"),
        (
            {"name": "flow", "solver": "diffusers_ddim"},
            "solver=diffusers_ddim needs objective=noise_prediction or data_pr.* or v with a",
        ),
        ({"name": "v", "schedule": "linear", "solver": "diffusers_ddpm"}, "with a curved schedule, not this v"),
        ({"name": "posterior", "solver": "diffusers_ddpm"}, "not this posterior"),
        (
            {"name": "noise_prediction", "wrapped": True},
            "objective=noise_prediction needs a Gaussian path; on angles there are flow, flow_map",
        ),
        ({"name": "flow", "wrapped": True, "schedule": "linear"}, "the path between angles has none; leave it out"),
        ({"name": "flow", "wrapped": True, "solver": "ddim"}, "solver=ddim needs a Gaussian path; on angles there are"),
        (
            {"name": "flow", "wrapped": True, "solver": "diffusers_ddim"},
            "solver=diffusers_ddim needs objective=noise_prediction",
        ),
        ({"name": "ddpm"}, "objective=ddpm was renamed; use objective=noise_prediction"),
        ({"name": "x"}, "use objective=data_prediction"),
        ({"name": "kl"}, "use objective=posterior"),
        ({"name": "data_prediction", "min_snr_gamma": 0.0}, "min_snr_gamma=0.0 must be above 0"),
        ({"name": "regression", "solver": "euler"}, "objective=regression has no solver, but solver=euler was given"),
        ({"name": "v", "eta": 1.5}, "eta=1.5 must be from 0 to 1"),
        ({"name": "v", "eta": math.nan}, "eta=nan must be from 0 to 1"),
        ({"name": "v", "time_density": "late"}, "unknown time_density 'late'"),
        ({"name": "v", "time_density": "mode", "time_density_options": {"scale": 9.0}}, "scale=9.0 must be from -1"),
        ({"name": "v", "time_density_options": {"std": 1.0}}, "time_density uniform does not know std"),
    ],
)
def test_unknown_or_contradictory_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked(options)


def checked(options: dict[str, Any]) -> tuple[Any, SamplingOptions]:
    """The objective and its sampling, which fit."""
    own = {name: options[name] for name in options if name in ("solver", "eta")}
    sampling = SamplingOptions(**own)
    objective = make_objective(**{name: value for name, value in options.items() if name not in own})
    objective.check(sampling)
    return objective, sampling


@pytest.mark.parametrize(("nfe", "message"), [(0, "needs a positive multiple of 1"), (101, "take from 1 to 100 steps")])
def test_samplers_of_diffusers_have_a_hundred_steps(nfe: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"nfe={nfe}: .*{message}"):
        make_objective("v").times(nfe, sampling=SamplingOptions(solver="diffusers_ddim"))


def test_samplers_of_diffusers_cannot_keep_a_prefix() -> None:
    objective, sampling = make_objective("v"), SamplingOptions(solver="diffusers_ddim")
    with pytest.raises(ValueError, match="solver=diffusers_ddim cannot keep a prefix; use ddim or ancestral"):
        objective.sample(echo, torch.ones(2, 3, 1), nfe=2, sampling=sampling, prefix=torch.ones(2, 1, 1))


@pytest.mark.parametrize(
    ("options", "solver"),
    [
        ({"name": "flow"}, "euler"),
        ({"name": "flow", "wrapped": True}, "euler"),
        ({"name": "v"}, "ddim"),
        ({"name": "noise_prediction", "schedule": "linear"}, "ddim"),
        ({"name": "flow_map"}, "flow_map"),
        ({"name": "flow_map", "wrapped": True}, "flow_map"),
        ({"name": "flow_map", "solver": "euler"}, "euler"),
    ],
)
def test_solvers_fit_their_objective(options: dict[str, Any], solver: str) -> None:
    objective, sampling = checked(options)
    assert isinstance(objective, IntegratedObjective)
    assert objective.solver_name(sampling) == solver
