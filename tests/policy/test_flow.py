"""Flow matching: the exact field carries noise to data, the solvers have their orders, and the loss counts what it should."""

from __future__ import annotations

import ast
import inspect
import math
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowchunk.policy import flow
from flowchunk.policy.diffusion.paths import broadcast_time
from flowchunk.policy.diffusion.solvers import SOLVERS as ALL_SOLVERS
from flowchunk.policy.diffusion.time_densities import TIME_DENSITIES, beta_time, uniform_time
from flowchunk.policy.evaluation import generative_metrics
from flowchunk.policy.evaluation.gaussian_mixture import mixture_velocity, sample_mixture
from flowchunk.policy.flow import (
    Velocity,
    flow_matching_loss,
    integrate,
    prefix_mask,
    reverse_clock,
    uniform_times,
    with_guidance,
)

SOLVERS = {
    name: solver for name, solver in ALL_SOLVERS.items() if solver.follows == "velocity"
}  # the others: test_solvers

POINTS = 10_000
RADIUS, STD = 2.0, 0.15
ANGLES = torch.arange(8) * (math.tau / 8)
CENTERS = RADIUS * torch.stack([ANGLES.cos(), ANGLES.sin()], dim=-1)  # (8, 2)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# A ring of eight Gaussians, whose velocity is known exactly.


def ring(seed: int) -> Tensor:
    return sample_mixture(POINTS, CENTERS, STD, seeded(seed))


ring_velocity = mixture_velocity(CENTERS, STD)


def sliced_wasserstein(a: Tensor, b: Tensor) -> float:
    return float(generative_metrics.sliced_wasserstein(a, b, seed=99))


@cache
def distance_to_data(steps: int, *, sign: float = 1.0) -> float:
    x_0 = torch.randn(POINTS, 2, generator=seeded(1))
    x_1 = integrate(lambda x, t, c: sign * ring_velocity(x, t, c), x_0, uniform_times(steps))
    return sliced_wasserstein(x_1, ring(2))


def test_more_euler_steps_come_closer_to_the_data() -> None:
    distances = [distance_to_data(steps) for steps in (1, 2, 4, 8, 16)]
    assert distances == sorted(distances, reverse=True)
    assert len(set(distances)) == len(distances)


def test_sixteen_steps_are_as_close_as_data_is_to_data() -> None:
    floor = sum(sliced_wasserstein(ring(100 + pair), ring(200 + pair)) for pair in range(8)) / 8
    assert 0.01 < floor < 0.1
    assert distance_to_data(16) <= 2 * floor


def test_distances_are_those_of_the_methods() -> None:
    assert [distance_to_data(steps) for steps in (1, 2, 4)] == pytest.approx([1.42, 0.447, 0.104], rel=0.1)


def test_the_opposite_sign_leads_away_from_the_data() -> None:
    assert distance_to_data(10, sign=-1.0) > 1.0 > 10 * distance_to_data(10)


# The loss.


def test_the_true_velocity_of_a_pair_has_no_loss() -> None:
    x_0, x_1 = torch.randn(2, 1, 4, 3, dtype=torch.float64, generator=seeded(0))
    assert flow_matching_loss(lambda x, t, c: x_1 - x_0, x_1, x_0=x_0).mean() == 0


def test_the_loss_evaluates_the_straight_path_with_the_condition() -> None:
    x_0, x_1 = torch.randn(2, 5, 4, 3, generator=seeded(0))
    t, condition = torch.rand(5, generator=seeded(1)), object()

    def velocity(x_t: Tensor, time: Tensor, given_condition: Any) -> Tensor:
        torch.testing.assert_close(x_t, x_0 + t[:, None, None] * (x_1 - x_0))
        assert torch.equal(time, t)
        assert given_condition is condition
        return torch.zeros_like(x_t)

    loss = flow_matching_loss(velocity, x_1, x_0=x_0, t=t, condition=condition).mean()
    torch.testing.assert_close(loss, ((x_1 - x_0) ** 2).mean())


def test_the_exact_velocity_has_the_lowest_loss() -> None:
    def loss(velocity: Velocity) -> float:
        return float(flow_matching_loss(velocity, ring(3), generator=seeded(4)).mean())

    least = loss(ring_velocity)
    for factor in (0.9, 1.1):
        assert loss(lambda x, t, c, factor=factor: factor * ring_velocity(x, t, c)) > least


def tokenwise(x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
    """A velocity that depends only on each token and its time."""
    return torch.sin(3 * x_t) + broadcast_time(t, x_t)


masks = st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=3, max_size=3)
lengths = st.lists(st.integers(0, 5), min_size=3, max_size=3)


@given(masks, lengths, st.booleans())
@settings(max_examples=50, deadline=None)
def test_masked_and_known_tokens_do_not_count(
    mask_rows: list[list[bool]], prefix_lengths: list[int], with_prefix: bool
) -> None:
    mask, prefix_length = torch.tensor(mask_rows), torch.tensor(prefix_lengths)
    x_0, x_1, replacement = torch.randn(3, 3, 6, 2, generator=seeded(0))
    random_numbers: dict[str, Any] = {"x_0": x_0, "t": torch.rand(3, generator=seeded(1)), "mask": mask}
    counted = mask.clone()
    if with_prefix:
        random_numbers["prefix_length"] = prefix_length
        counted &= torch.arange(6) >= prefix_length[:, None]
    if not counted.any():
        with pytest.raises(ValueError, match="leave no token"):
            flow_matching_loss(tokenwise, x_1, **random_numbers).mean()
        return
    loss = flow_matching_loss(tokenwise, x_1, **random_numbers).mean()
    changed = torch.where(counted[..., None], x_1, replacement)
    torch.testing.assert_close(flow_matching_loss(tokenwise, changed, **random_numbers).mean(), loss)
    errors = flow_matching_loss(tokenwise, x_1, **{**random_numbers, "mask": torch.ones(3, 6)}).errors
    torch.testing.assert_close(loss, errors[counted].mean())


def test_a_token_that_counts_does_count() -> None:
    x_0, x_1 = torch.randn(2, 2, 4, 3, generator=seeded(0))
    mask = torch.tensor([[True, True, False, False], [True, False, False, False]])
    options: dict[str, Any] = {"x_0": x_0, "t": torch.tensor([0.3, 0.6]), "mask": mask}
    changed = x_1.clone()
    changed[1, 0] += 1
    first, different = (flow_matching_loss(tokenwise, x, **options).mean() for x in (changed, x_1))
    assert first != different


def test_whole_samples_can_be_masked() -> None:
    x_0, x_1 = torch.randn(2, 4, 5, 3, generator=seeded(0))
    t, mask = torch.rand(4, generator=seeded(1)), torch.tensor([True, False, True, False])
    alone = flow_matching_loss(tokenwise, x_1[mask], x_0=x_0[mask], t=t[mask]).mean()
    torch.testing.assert_close(flow_matching_loss(tokenwise, x_1, x_0=x_0, t=t, mask=mask).mean(), alone)


def test_a_prefix_is_clean_and_at_time_one() -> None:
    x_0, x_1 = torch.randn(2, 3, 6, 2, generator=seeded(0))
    t, prefix_length = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 2, 5])

    def velocity(x_t: Tensor, times: Tensor, condition: Any) -> Tensor:
        for row, length in enumerate(prefix_length.tolist()):
            torch.testing.assert_close(x_t[row, :length], x_1[row, :length])
            assert times[row].tolist() == pytest.approx([1.0] * length + [float(t[row])] * (6 - length))
        return x_t

    flow_matching_loss(velocity, x_1, x_0=x_0, t=t, prefix_length=prefix_length)
    assert prefix_mask(prefix_length, 6).sum(1).tolist() == [0, 2, 5]


def test_the_same_generator_gives_the_same_loss() -> None:
    x_1 = torch.randn(64, 2, generator=seeded(0))
    first, same, different = (
        float(flow_matching_loss(tokenwise, x_1, generator=seeded(seed)).mean()) for seed in (5, 5, 6)
    )
    assert first == same != different


def test_nothing_is_sampled_if_noise_and_time_are_given() -> None:
    x_0, x_1 = torch.randn(2, 8, 3, generator=seeded(0))
    before, generator = torch.get_rng_state(), seeded(7)
    state = generator.get_state()
    flow_matching_loss(tokenwise, x_1, x_0=x_0, t=torch.rand(8, generator=seeded(1)), generator=generator)
    integrate(tokenwise, x_0, uniform_times(4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(generator.get_state(), state)


def test_a_generator_is_used_in_place_of_the_global_one() -> None:
    before = torch.get_rng_state()
    flow_matching_loss(tokenwise, torch.ones(8, 3), generator=seeded(1), time_density=beta_time)
    assert torch.equal(torch.get_rng_state(), before)


# Time densities.


@pytest.mark.parametrize(("name", "end", "mean"), [("uniform", 1.0, 0.5), ("beta", 0.999, 0.999 * 0.4)])
def test_times_have_the_expected_range_and_mean(name: str, end: float, mean: float) -> None:
    density = TIME_DENSITIES[name]
    times = density((40_000,), generator=seeded(0))
    assert times.shape == (40_000,)
    assert 0 <= float(times.min()) < 0.01
    assert end - 0.01 < float(times.max()) <= end
    assert float(times.mean()) == pytest.approx(mean, abs=0.005)  # three standard errors
    assert torch.equal(times, density((40_000,), generator=seeded(0)))
    assert not torch.equal(times, density((40_000,), generator=seeded(1)))


def test_beta_times_follow_a_beta_distribution() -> None:
    times = beta_time((40_000,), generator=seeded(0))
    for t in (0.1, 0.3, 0.7):  # P(1 - t/0.999 > b) = 1 - b^1.5
        assert float((times < t).float().mean()) == pytest.approx(1 - (1 - t / 0.999) ** 1.5, abs=0.01)
    assert float((uniform_time((40_000,), generator=seeded(0)) < 0.3).float().mean()) == pytest.approx(0.3, abs=0.01)


# Sampling.


def growing(x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
    """dx/dt = x² cos t, solved by x = 1 / (1/x_0 - sin t)."""
    return x_t**2 * broadcast_time(t, x_t).cos()


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_solvers_converge_at_their_order(method: str, order: int) -> None:
    x_0 = torch.linspace(0.2, 0.7, 11, dtype=torch.float64)[:, None]
    solution = 1 / (1 / x_0 - math.sin(1.0))
    stages = SOLVERS[method].stages
    errors = []
    for steps in (32, 64):
        x_1 = integrate(growing, x_0, uniform_times(steps * stages, method=method), method=method)
        assert x_1.dtype == torch.float64
        errors.append(float((x_1 - solution).abs().max()))
    assert errors[1] < 0.03
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("method", SOLVERS)
def test_steps_take_the_declared_number_of_evaluations(method: str) -> None:
    calls = []

    def velocity(x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        calls.append((t, condition))
        return x_t

    integrate(velocity, torch.ones(3, 2), uniform_times(8, method=method), method=method, condition="seen")
    assert len(calls) == 8
    assert all(t.shape == (3,) and 0 <= float(t[0]) <= 1 and condition == "seen" for t, condition in calls)


@pytest.mark.parametrize("method", SOLVERS)
@given(known=st.integers(0, 6), horizon=st.integers(6, 8))
@settings(max_examples=10, deadline=None)
def test_a_prefix_is_returned_exactly_and_is_at_time_one(method: str, known: int, horizon: int) -> None:
    x_0, prefix = torch.randn(2, horizon, 3, generator=seeded(0)), torch.randn(2, known, 3, generator=seeded(1))

    def velocity(x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        assert t.shape == x_t.shape[:2]
        assert torch.equal(x_t[:, :known], prefix)
        assert torch.equal(t[:, :known], torch.ones(2, known))
        assert torch.equal(t[:, known:], t[:1, known : known + 1].expand(2, horizon - known))
        return x_t.mean(1, keepdim=True) - x_t

    x_1 = integrate(velocity, x_0, uniform_times(8, method=method), method=method, prefix=prefix)
    assert x_1.shape == x_0.shape
    assert torch.equal(x_1[:, :known], prefix)
    assert known == horizon or not torch.equal(x_1[:, known:], x_0[:, known:])


def test_the_callback_is_called_at_every_time() -> None:
    seen: list[tuple[float, Tensor]] = []
    x_0, times = torch.ones(2, 3), torch.tensor([0.0, 0.25, 0.75, 1.0])
    x_1 = integrate(lambda x, t, c: x, x_0, times, callback=lambda t, x: seen.append((float(t), x)))
    assert [t for t, _ in seen] == times.tolist()
    assert torch.equal(seen[0][1], x_0)
    torch.testing.assert_close(seen[1][1], 1.25 * x_0)
    assert torch.equal(seen[-1][1], x_1)


def test_integrating_does_not_change_its_input() -> None:
    x_0 = torch.ones(2, 3, 1)
    integrate(tokenwise, x_0, uniform_times(2), prefix=torch.zeros(2, 1, 1))
    assert torch.equal(x_0, torch.ones(2, 3, 1))


@pytest.mark.parametrize(
    ("nfe", "method", "message"),
    [
        (0, "euler", "nfe=0: euler needs a positive multiple of 1"),
        (-4, "rk4", "nfe=-4"),
        (3, "midpoint", "nfe=3: midpoint needs a positive multiple of 2"),
        (6, "rk4", "nfe=6: rk4 needs a positive multiple of 4"),
        (4, "leapfrog", "unknown solver 'leapfrog'; there are euler, midpoint, heun, rk4"),
    ],
)
def test_impossible_grids_are_refused(nfe: int, method: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        uniform_times(nfe, method=method)


def test_unknown_solvers_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown solver 'leapfrog'"):
        integrate(tokenwise, torch.ones(2, 3), uniform_times(2), method="leapfrog")


@given(st.sampled_from(list(SOLVERS)), st.integers(1, 10))
def test_grids_run_from_noise_to_data(method: str, steps: int) -> None:
    times = uniform_times(steps * SOLVERS[method].stages, method=method)
    assert (len(times), float(times[0]), float(times[-1])) == (steps + 1, 0.0, 1.0)
    torch.testing.assert_close(times.diff(), torch.full((steps,), 1 / steps))


# The opposite clock.


def noise_at_one(x: Tensor, t: Tensor, condition: Any) -> Tensor:
    """A velocity of the opposite clock: noise minus data, at noise level t."""
    return torch.tanh(x) * (1 + t[:, None]) + condition


def test_reversed_clocks_follow_the_trajectory_of_diffusers() -> None:
    x_0, condition, steps = torch.randn(16, 2, generator=seeded(0)), torch.tensor([0.3, -0.2]), 10
    scheduler: Any = FlowMatchEulerDiscreteScheduler()  # type: ignore[no-untyped-call]
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist())
    trajectory = [x_0]
    for timestep in scheduler.timesteps:
        noise_level = (timestep / scheduler.config.num_train_timesteps).expand(len(x_0))
        output = noise_at_one(trajectory[-1], noise_level, condition)
        trajectory.append(scheduler.step(output, timestep, trajectory[-1]).prev_sample)
    ours: list[Tensor] = []
    times = 1 - scheduler.sigmas
    integrate(
        reverse_clock(noise_at_one), x_0, times, condition=condition, callback=lambda _, x: ours.append(x.clone())
    )
    torch.testing.assert_close(torch.stack(ours), torch.stack(trajectory), rtol=1e-5, atol=1e-5)
    assert (trajectory[-1] - x_0).abs().max() > 0.5


def test_reversing_the_clock_twice_changes_nothing() -> None:
    x, t, condition = torch.randn(8, 2, generator=seeded(0)), torch.linspace(0, 1, 8), torch.ones(2)
    twice: Callable[..., Tensor] = reverse_clock(reverse_clock(noise_at_one))
    torch.testing.assert_close(twice(x, t, condition), noise_at_one(x, t, condition))
    torch.testing.assert_close(reverse_clock(noise_at_one)(x, t, condition), -noise_at_one(x, 1 - t, condition))


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.5, 3.0])
def test_guidance_extrapolates_away_from_the_unconditional_prediction(guidance: float) -> None:
    x, t = torch.randn(8, 2, generator=seeded(0)), torch.linspace(0, 1, 8)
    condition, unconditional = torch.tensor([0.3, -0.2]), torch.tensor([-1.0, 2.0])
    given, base = noise_at_one(x, t, condition), noise_at_one(x, t, unconditional)
    got = with_guidance(noise_at_one, guidance=guidance, unconditional=unconditional)(x, t, condition)
    torch.testing.assert_close(got, (1 - guidance) * base + guidance * given)  # Ho and Salimans, w = guidance - 1


def test_flow_needs_only_torch() -> None:
    heavy = ("diffusers", "mujoco", "gymnasium", "zarr", "hydra", "matplotlib")
    code = f"import sys, flowchunk.policy.flow; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_flow_imports_no_network() -> None:
    imports = [node for node in ast.walk(ast.parse(inspect.getsource(flow))) if isinstance(node, ast.ImportFrom)]
    ours = {str(node.module).split(".")[-1] for node in imports if str(node.module).startswith("flowchunk")}
    assert ours == {"paths", "schedules", "shapes", "solvers", "time_densities"}
