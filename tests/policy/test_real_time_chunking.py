"""How a chunk continues the old one: policies in physical units, limits, and what cannot be is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowchunk.datasets.errors import ConfigurationError, SpecMismatchError
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.data_model import DataConfig
from flowchunk.policy.networks import NETWORKS
from flowchunk.policy.normalizer import Normalizer, Scaling
from flowchunk.policy.real_time_chunking import (
    PREFIX_METHODS,
    PUBLISHED_GAIN,
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


def test_a_prefix_may_be_a_list() -> None:
    policy = make_policy(prefix_max=4)
    given: Any = [[[150.0, 0.01]]] * 3
    np.testing.assert_array_equal(
        policy.predict_chunk(observe(), seed=0, prefix=given),
        policy.predict_chunk(observe(), seed=0, prefix=np.array(given)),
    )


def test_a_prefix_of_a_whole_chunk_is_no_matter_of_training() -> None:
    policy = make_policy(prefix_max=4)
    with pytest.raises(ConfigurationError, match=f"but a chunk has {HORIZON}, and goes on after its prefix"):
        policy.predict_chunk(observe(), prefix=np.full((3, HORIZON, 2), 0.01))


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
