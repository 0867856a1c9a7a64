"""How a chunk continues the old one: known answers in closed form, limits, and what cannot be is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flowchunk.datasets.errors import ConfigurationError, SpecMismatchError
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.data_model import DataConfig
from flowchunk.policy.evaluation.gaussian_mixture import mixture_velocity, sample_mixture
from flowchunk.policy.flow import flow_matching_loss, integrate, uniform_times
from flowchunk.policy.networks import NETWORKS
from flowchunk.policy.normalizer import Normalizer, Scaling
from flowchunk.policy.real_time_chunking import (
    PREFIX_METHODS,
    PUBLISHED_GAIN,
    invert,
    pull_directly,
    pull_through_jacobian,
    soft_mask,
)
from flowchunk.policy.sampling import SamplingOptions
from tests.policy.small_policies import HIGH, HORIZON, LOW, make_policy, observe

UNTRAINED = ("guided", "guided_vjp", "noise_inversion")
"""The methods that need no training with prefixes."""
each_method = pytest.mark.parametrize("method", PREFIX_METHODS)
each_untrained = pytest.mark.parametrize("method", UNTRAINED)
CENTER, HALF = (LOW + HIGH) / 2, (HIGH - LOW) / 2


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def policy_for(method: str, **options: Any) -> ChunkPolicy:
    return make_policy(prefix_method=method, prefix_max=4 if method == "trained" else 0, **options)


def old_chunk(committed: int, planned: int, *, batch: int = 3) -> dict[str, Any]:
    """The arguments ``prefix`` and ``tail``."""
    actions = np.random.default_rng(1).uniform(LOW, HIGH, (batch, committed + planned, 2)).astype(np.float32)
    return {"prefix": actions[:, :committed], "tail": actions[:, committed:]}


# Two ways, known in closed form.

LENGTH, ROWS = 16, 1000
SIDE = 0.5
RIGHT = torch.stack([torch.full((LENGTH,), SIDE), torch.arange(LENGTH) / LENGTH], dim=-1)
WAYS = torch.stack([RIGHT, RIGHT * torch.tensor([-1.0, 1.0])])  # (2, H, D): past an obstacle, right or left
STD = 0.05


def two_ways(x_t: Tensor, t: Tensor, condition: Any = None) -> Tensor:
    return mixture_velocity(WAYS.flatten(1), STD)(x_t.flatten(1), t, None).view_as(x_t)


def wrong_ways(continued: Tensor, old: Tensor, committed: int) -> float:
    """The fraction of chunks that begin on one side and go on at the other."""
    return float((continued[:, committed:, 0].mean(1).sign() != old[:, :, 0].mean(1).sign()).double().mean())


@pytest.fixture(scope="module")
def old() -> Tensor:
    return sample_mixture(ROWS, WAYS.flatten(1), STD, seeded(0)).view(ROWS, LENGTH, 2)


def guide(pull: Callable[..., Any], old: Tensor, *, committed: int, gain: float, nfe: int = 5) -> Tensor:
    planned = LENGTH - 8 - committed
    target, weight = old.clone(), soft_mask(committed, planned, LENGTH)
    target[:, committed + planned :] = math.inf  # what was not planned has no weight
    target = torch.where(weight > 0, target, 0.0)
    velocity = pull(two_ways, target=target, weight=weight, gain=gain)
    x_0 = torch.randn(ROWS, LENGTH, 2, generator=seeded(1))
    return integrate(velocity, x_0, uniform_times(nfe), condition=torch.zeros(ROWS, 1))


@pytest.mark.parametrize("nfe", [5, 10])
def test_guidance_keeps_the_prefix_and_stays_on_its_way(old: Tensor, nfe: int) -> None:
    continued = guide(pull_directly, old, committed=4, gain=nfe, nfe=nfe)
    torch.testing.assert_close(continued[:, :4], old[:, :4], rtol=0, atol=1e-5)
    assert wrong_ways(continued, old, 4) <= 0.003
    side = SIDE * old[:, :1, 0].sign()
    assert (continued[:, 8:, 0] - side).abs().mean() < 2 * STD, "what was not planned goes on, too"


def test_guidance_through_the_jacobian_mostly_stays_on_its_way(old: Tensor) -> None:
    assert wrong_ways(guide(pull_through_jacobian, old, committed=4, gain=PUBLISHED_GAIN), old, 4) < 0.07


def test_noise_inversion_stays_on_its_way_more_often_than_not(old: Tensor) -> None:
    free = integrate(two_ways, torch.randn(ROWS, LENGTH, 2, generator=seeded(1)), uniform_times(5))
    target = torch.cat([old[:, :4], free[:, 4:]], dim=1)
    noise = invert(two_ways, target, nfe=5)
    other = torch.randn(ROWS, LENGTH, 2, generator=seeded(2))
    continued = integrate(two_ways, torch.cat([noise[:, :4], other[:, 4:]], dim=1), uniform_times(5))
    assert wrong_ways(free, old, 4) == pytest.approx(0.5, abs=0.05)
    assert wrong_ways(continued, old, 4) < 0.2


@pytest.mark.parametrize("t", [0.0, 0.5, 0.8])
def test_a_full_pull_in_a_single_step_is_the_exact_conditional_velocity(old: Tensor, t: float) -> None:
    """The velocity to a known end is (Y - x)/(1 - t)."""
    x = torch.randn(ROWS, LENGTH, 2, generator=seeded(3))
    pulled = pull_directly(two_ways, target=old, weight=torch.ones(LENGTH, 1), gain=1 / (1 - t))
    torch.testing.assert_close(pulled(x, torch.full((ROWS,), t), None), (old - x) / (1 - t), rtol=1e-4, atol=1e-4)


def test_the_pull_through_the_jacobian_of_a_linear_velocity() -> None:
    matrix, generator = torch.randn(2, 2, generator=seeded(0)), seeded(1)
    x, target = torch.randn(2, 5, LENGTH, 2, generator=generator)
    t, weight = torch.rand(5, generator=generator), soft_mask(2, 5, LENGTH)
    weights_of_network = matrix.clone().requires_grad_()
    velocity = pull_through_jacobian(
        lambda x, t, condition: condition[:, :1, None] * x @ weights_of_network, target=target, weight=weight, gain=3.0
    )
    with torch.inference_mode():
        pulled = velocity(x.clone(), t.clone(), torch.ones(5, 1))
    left = (1 - t)[:, None, None]
    error = weight * (target - (x + left * (x @ matrix)))
    torch.testing.assert_close(pulled, x @ matrix + 3 * (error + left * (error @ matrix.T)))
    assert not velocity(x, t, torch.ones(5, 1)).requires_grad, "no graph grows along the integration"
    assert weights_of_network.grad is None


def test_inversion_is_better_with_more_steps() -> None:
    def wide(x_t: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        return mixture_velocity(WAYS.flatten(1), 0.5)(x_t.flatten(1), t, None).view_as(x_t)

    target = sample_mixture(200, WAYS.flatten(1), 0.5, seeded(0)).view(200, LENGTH, 2)
    errors = {
        nfe: float((integrate(wide, invert(wide, target, nfe=nfe), uniform_times(nfe)) - target).abs().mean())
        for nfe in (8, 16, 32)
    }
    assert errors[32] < 0.65 * errors[16] < 0.65**2 * errors[8], errors
    assert errors[32] < 0.03


def test_inversion_of_straight_lines_is_exact_and_never_asks_at_the_end() -> None:
    asked = []

    def straight(x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        asked.append(float(t[0]))
        return torch.full_like(x_t, condition)

    x_1 = torch.randn(3, 4, 2, generator=seeded(0))
    torch.testing.assert_close(invert(straight, x_1, nfe=4, condition=2.0), x_1 - 2)
    assert asked == pytest.approx([0.75, 0.5, 0.25, 0])


# The mask.


def test_the_mask_is_full_on_the_prefix_fades_along_the_tail_and_ends() -> None:
    mask = soft_mask(2, 3, 8)
    faded = [c * (math.exp(c) - 1) / (math.e - 1) for c in (3 / 4, 2 / 4, 1 / 4)]
    torch.testing.assert_close(mask, torch.tensor([1, 1, *faded, 0, 0, 0])[:, None])


@pytest.mark.parametrize(("committed", "planned"), [(0, 0), (0, 8), (8, 0), (3, 5)])
def test_masks_of_any_lengths(committed: int, planned: int) -> None:
    mask = soft_mask(committed, planned, 8).flatten()
    assert mask.shape == (8,)
    assert (mask[:committed] == 1).all()
    assert (mask[committed + planned :] == 0).all()
    between = mask[committed : committed + planned]
    assert ((between > 0) & (between < 1)).all()
    assert (between.diff() < 0).all()


# Policies: a velocity of zero, so that the answers are known.


@pytest.mark.parametrize(("method", "gain"), [("guided", 3.0), ("guided_vjp", PUBLISHED_GAIN)])
@pytest.mark.parametrize("per_token", [False, True])
def test_guided_chunks_in_physical_units(method: str, gain: float, per_token: bool) -> None:
    policy = scaled_per_token(policy_for(method, perturbed=False)) if per_token else policy_for(method, perturbed=False)
    given = old_chunk(2, 3)
    free = policy.predict_chunk(observe(), nfe=3, seed=0)
    chunk = unset(policy, nfe=3, seed=0, **given)
    weight, target = soft_mask(2, 3, HORIZON).numpy(), np.concatenate([*given.values(), np.zeros((3, 3, 2))], axis=1)
    left = (1 - gain / 3 * weight) ** 3  # each step closes this share of the distance
    np.testing.assert_allclose(chunk, target + left * (free - target), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("per_token", [False, True])
def test_inverted_noise_in_physical_units(per_token: bool) -> None:
    policy = policy_for("noise_inversion", perturbed=False)
    policy = scaled_per_token(policy) if per_token else policy
    given = old_chunk(3, 2)
    free = policy.predict_chunk(observe(), seed=0)
    chunk = unset(policy, nfe=4, seed=0, **given)
    np.testing.assert_allclose(chunk[:, :3], given["prefix"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(chunk[:, 3:], free[:, 3:], rtol=1e-5, atol=1e-4)


@each_untrained
def test_relative_actions_are_continued_in_their_own_reference(method: str) -> None:
    policy = policy_for(method, perturbed=False, relative_to=["state.x", "state.y"])
    given = old_chunk(2, 0)
    chunk = unset(policy, nfe=5, seed=0, **given)
    np.testing.assert_allclose(chunk[:, :2], given["prefix"], rtol=1e-4, atol=1e-4)


def unset(policy: ChunkPolicy, *, nfe: int, seed: int, prefix: np.ndarray, tail: np.ndarray) -> np.ndarray:
    """``predict_chunk`` before its first actions are set to the prefix."""
    observation = {key: torch.tensor(value, dtype=torch.float32) for key, value in observe().items()}
    sampling = replace(policy.config.sampling, nfe=nfe)
    with torch.inference_mode():
        chunk = policy.sample_chunks(
            observation, sampling=sampling, generator=seeded(seed), prefix=torch.tensor(prefix), tail=torch.tensor(tail)
        )
    return chunk.numpy()


def scaled_per_token(policy: ChunkPolicy) -> ChunkPolicy:
    """The same policy with actions whose scale differs along the chunk, as that of relative actions does."""
    factors = np.linspace(0.5, 2, HORIZON)[:, None]
    scaling = Scaling.fit("min_max", [np.stack([LOW * factors, HIGH * factors])])
    normalizer: Normalizer = policy.normalizer.with_scaling("action", scaling)
    return ChunkPolicy(policy.config, policy.observation_spec, policy.action_spec, normalizer).eval()


# Policies: whatever the method.


@each_method
@pytest.mark.parametrize("network", NETWORKS)
def test_the_prefix_is_returned_unchanged_and_changes_the_rest(method: str, network: str) -> None:
    small = {"channels": (8, 16), "width": 16} if network == "unet1d" else {"width": 16, "blocks": 1}
    policy, given = policy_for(method, network=network, network_options=small), old_chunk(3, 2)
    free = policy.predict_chunk(observe(), seed=0)
    chunk = policy.predict_chunk(observe(), seed=0, **given)
    np.testing.assert_array_equal(chunk[:, :3], given["prefix"])
    assert np.isfinite(chunk).all()
    assert (np.abs(chunk - free)[:, 3:] > 1e-4 * HALF).any((1, 2)).all()
    np.testing.assert_array_equal(policy.predict_chunk(observe(), seed=0, **given), chunk)


@each_method
def test_without_an_old_chunk_it_is_plain_sampling(method: str) -> None:
    policy = policy_for(method)
    plain = policy.with_sampling(prefix_method=None).predict_chunk(observe(), seed=0)
    for given in ({}, old_chunk(0, 0), {"prefix": old_chunk(0, 0)["prefix"]}):
        np.testing.assert_array_equal(policy.predict_chunk(observe(), seed=0, **given), plain)


@each_method
@pytest.mark.parametrize("committed", [0, 2])
def test_only_guidance_uses_the_tail(method: str, committed: int) -> None:
    policy, given = policy_for(method), old_chunk(committed, 3)
    without = policy.predict_chunk(observe(), seed=0, prefix=given["prefix"])
    uses_tail = not np.array_equal(policy.predict_chunk(observe(), seed=0, **given), without)
    assert uses_tail == (method in ("guided", "guided_vjp"))


@each_method
def test_rows_with_their_own_seeds_are_independent(method: str) -> None:
    policy, given, observation = policy_for(method), old_chunk(2, 3), observe()
    together = policy.predict_chunk(observation, seed=[5, 6, 7], **given)
    for row in range(3):
        single = {key: values[row : row + 1] for key, values in (observation | given).items()}
        prefix, tail = single.pop("prefix"), single.pop("tail")
        alone = policy.predict_chunk(single, seed=[5 + row], prefix=prefix, tail=tail)
        np.testing.assert_allclose((together[row : row + 1] - alone) / HALF, 0, atol=1e-4)


@each_method
@pytest.mark.parametrize("nfe", [2, 5])
def test_network_evaluations(method: str, nfe: int) -> None:
    policy, calls = policy_for(method), []
    policy.network.register_forward_hook(lambda *_: calls.append(1))
    policy.predict_chunk(observe(), nfe=nfe, seed=0, **old_chunk(2, 3))
    assert len(calls) == nfe * (3 if method == "noise_inversion" else 1)
    calls.clear()
    policy.predict_chunk(observe(), nfe=nfe, seed=0, **old_chunk(0, 3))
    assert len(calls) == nfe


def test_the_scale_of_the_noise_holds_for_what_is_sampled_anew() -> None:
    policy, given = policy_for("noise_inversion", perturbed=False), old_chunk(2, 0)
    chunk = policy.predict_chunk(observe(), seed=0, noise_scale=0.0, **given)
    np.testing.assert_allclose(chunk[:, 2:], np.broadcast_to(CENTER, (3, HORIZON - 2, 2)), atol=1e-4)


@pytest.mark.parametrize("options", [{"solver": "midpoint"}, {"objective": "flow_map", "solver": "euler"}])
@each_untrained
def test_other_solvers_and_flow_maps_that_follow_the_velocity(method: str, options: dict[str, Any]) -> None:
    policy, given = policy_for(method, perturbed=False, **options), old_chunk(2, 0)
    chunk = unset(policy, nfe=20, seed=0, **given)
    np.testing.assert_allclose((chunk[:, :2] - given["prefix"]) / HALF, 0, atol=0.05)


# Trained networks.


@pytest.fixture(scope="module", params=list(NETWORKS))
def trained_policy(request: pytest.FixtureRequest) -> ChunkPolicy:
    """A policy of each network that has learned to go one of two ways."""
    small = {"channels": (8, 16), "width": 32} if request.param == "unet1d" else {"width": 32, "blocks": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = make_policy(network=request.param, network_options=small, perturbed=False)
    ways, generator = 0.7 * torch.tensor([1.0, -1.0])[:, None, None].expand(2, HORIZON, 2), seeded(0)
    optimizer = torch.optim.Adam(policy.network.parameters(), lr=5e-3)
    condition = torch.zeros(64, policy.encoder.condition_size)
    for _ in range(120):
        x_1 = sample_mixture(64, ways.flatten(1), 0.1, generator).view(64, HORIZON, 2)
        x_0, t = torch.randn(x_1.shape, generator=generator), torch.rand(64, generator=generator)
        loss = flow_matching_loss(policy.network, x_1, condition=condition, x_0=x_0, t=t).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return policy


@each_untrained
def test_trained_networks_continue_the_way_of_the_prefix(method: str, trained_policy: ChunkPolicy) -> None:
    """Above all, that the prefix of the noise moves the prefix of the chunk, which noise inversion relies on."""
    rows, committed, model = 200, 3, trained_policy.model
    side = torch.tensor([1.0, -1.0]).repeat(rows // 2)[:, None, None].expand(rows, HORIZON, 2)
    condition = torch.zeros(rows, trained_policy.encoder.condition_size)
    old, sampling = model.denormalize(0.7 * side), SamplingOptions(nfe=5)

    @torch.inference_mode()
    def chunks(name: str | None) -> Tensor:
        given: dict[str, Any] = {"sampling": sampling, "generator": seeded(0)}
        if name is None:
            return model.normalize(model.sample(condition, **given))
        prefix, tail = old[:, :committed], old[:, committed : committed + 2]
        return model.normalize(PREFIX_METHODS[name](model, condition, prefix=prefix, tail=tail, **given))

    def share_beside(x: Tensor) -> float:
        return float((x[:, :committed].mean((1, 2)).sign() != side[:, 0, 0]).double().mean())

    def share_wrong(x: Tensor) -> float:
        return float((x[:, committed:].mean((1, 2)).sign() != side[:, 0, 0]).double().mean())

    free, continued = chunks(None), chunks(method)
    assert share_beside(free) == pytest.approx(0.5, abs=0.12)
    assert share_beside(continued) < 0.2
    assert share_wrong(continued) < 0.25


# What cannot be.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"prefix_method": "guied"},
            "prefix_method=guied is unknown; there are trained, guided, guided_vjp, noise_inversion",
        ),
        ({"prefix_method": "trained", "objective": "regression"}, "trained is impossible with objective=regression"),
        ({"prefix_method": "guided", "objective": "regression"}, "needs objective=flow .*, not objective=regression$"),
        ({"prefix_method": "noise_inversion", "objective": "mip"}, "needs objective=flow .*, not objective=mip$"),
        (
            {"prefix_method": "guided_vjp", "objective": "v"},
            "solver=euler, midpoint, heun, rk4, not objective=v with solver",
        ),
        (
            {"prefix_method": "guided", "objective": "data_prediction", "schedule": "linear", "solver": "euler"},
            "not obj",
        ),
        ({"prefix_method": "guided", "objective": "flow_map"}, "not objective=flow_map with solver=flow_map$"),
        ({"prefix_method": "noise_inversion", "solver": "ddim"}, "not objective=flow with solver=ddim$"),
    ],
)
def test_methods_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    method = options.pop("prefix_method")
    policy = make_policy(**options)
    with pytest.raises(ConfigurationError, match=f"^prefix_method={method} .*") as error:
        policy.with_sampling(prefix_method=method)
    assert error.match(message)


def test_a_solver_that_does_not_fit_the_method() -> None:
    with pytest.raises(ConfigurationError, match="with solver=ddim"):
        policy_for("guided").with_sampling(solver="ddim")


def test_models_of_other_data_have_no_prefix() -> None:
    with pytest.raises(ConfigurationError, match="prefix_method=guided is for chunk policies; leave it out"):
        DataConfig(sampling=SamplingOptions(prefix_method="guided"), shape=(2,))


@pytest.mark.parametrize(
    ("options", "methods", "longest"),
    [
        ({}, UNTRAINED, 0),
        ({"prefix_max": 3}, ("trained", *UNTRAINED), 3),
        ({"prefix_method": "guided"}, UNTRAINED, HORIZON - 1),
        ({"prefix_max": 3, "prefix_method": "noise_inversion"}, ("trained", *UNTRAINED), HORIZON - 1),
        ({"prefix_max": 3, "prefix_method": "trained"}, ("trained", *UNTRAINED), 3),
        ({"objective": "v", "prefix_max": 2}, ("trained",), 2),
        ({"objective": "regression"}, (), 0),
    ],
)
def test_methods_and_longest_prefix_of_a_policy(
    options: dict[str, Any], methods: tuple[str, ...], longest: int
) -> None:
    policy = make_policy(**options)
    assert policy.prefix_methods == methods
    assert policy.longest_prefix == longest
    for method in methods:
        assert policy.with_sampling(prefix_method=method).prefix_method == method
    if longest:
        policy.predict_chunk(observe(), seed=0, **old_chunk(longest, 1))
    with pytest.raises(ConfigurationError, match=f"a prefix of {longest + 1} actions was given"):
        policy.predict_chunk(observe(), seed=0, **old_chunk(longest + 1, 0))


def test_a_policy_that_was_not_trained_with_prefixes_names_the_other_methods() -> None:
    message = (
        'train with policy.prefix_max=1, or use with_sampling.prefix_method="guided" or prefix_method="guided_vjp" or '
    )
    with pytest.raises(ConfigurationError, match=message):
        make_policy().predict_chunk(observe(), seed=0, **old_chunk(1, 0))
    with pytest.raises(ConfigurationError, match=r"prefix_max=0; train with policy.prefix_max=1$"):
        make_policy(objective="v").predict_chunk(observe(), seed=0, **old_chunk(1, 0))


def test_a_prefix_as_long_as_the_chunk() -> None:
    with pytest.raises(ConfigurationError, match=r"prefix of 8 .*prefix_method=guided takes at most horizon - 1 = 7"):
        policy_for("guided").predict_chunk(observe(), seed=0, **old_chunk(8, 0))


@each_method
def test_an_old_chunk_longer_than_the_horizon(method: str) -> None:
    with pytest.raises(SpecMismatchError, match="prefix of 3 and a tail of 6 actions were given, more than horizon=8"):
        policy_for(method).predict_chunk(observe(), seed=0, **old_chunk(3, 6))


@pytest.mark.parametrize("shape", [(2, 1, 2), (3, 1, 5), (3, 2), (2,)])
def test_tails_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(SpecMismatchError, match=r"tail must be \(3, m, 2\), but is \("):
        policy_for("guided").predict_chunk(observe(3), tail=np.zeros(shape), seed=0)


def test_a_tail_that_is_not_finite() -> None:
    tail = np.zeros((3, 2, 2))
    tail[1, 0, 1] = np.nan
    with pytest.raises(SpecMismatchError, match=r"tail has values that are not finite .*; give the planned actions"):
        policy_for("guided").predict_chunk(observe(3), tail=tail, seed=0)


def test_a_checkpoint_keeps_its_method(tmp_path: Path) -> None:
    policy, given = policy_for("guided"), old_chunk(2, 3)
    policy.save(tmp_path / "saved")
    kept = ChunkPolicy.load(tmp_path / "saved")
    assert kept.prefix_method == "guided"
    expected = policy.predict_chunk(observe(), seed=0, **given)
    np.testing.assert_array_equal(kept.predict_chunk(observe(), seed=0, **given), expected)
