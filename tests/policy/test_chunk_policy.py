"""Chunk policies: shapes and units, the same numbers from the same seed, and errors that state what was expected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowchunk.datasets.errors import ConfigurationError, SpecMismatchError
from flowchunk.datasets.windows import Windows
from flowchunk.policy.chunk_policy import ChunkPolicy
from tests.policy.small_policies import HIGH, HORIZON, LOW, STEPS, make_policy, observe

# Chunks.


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("network", ["mlp", "dit"])
def test_chunks_have_their_shape(batch: int, network: str) -> None:
    chunk = make_policy(network=network).predict_chunk(observe(batch), nfe=2, seed=0)
    assert chunk.shape == (batch, HORIZON, 2)
    assert chunk.dtype == np.float32
    assert np.isfinite(chunk).all()


def test_chunks_are_in_physical_units() -> None:
    chunk = make_policy(perturbed=False).predict_chunk(
        observe(200), seed=0
    )  # zero velocity: what comes out is the noise
    center, reach = (LOW + HIGH) / 2, (HIGH - LOW) / 2
    np.testing.assert_allclose(chunk.mean((0, 1)), center, atol=4 * reach.max() / 40)
    np.testing.assert_allclose((chunk.mean((0, 1)) - center) / reach, 0, atol=0.1)
    np.testing.assert_allclose(chunk.std((0, 1)) / reach, 1, atol=0.1)


def test_the_network_is_integrated_in_normalized_units() -> None:
    policy, aim = make_policy(), torch.tensor([0.5, -1.0])

    def towards_aim(x_t: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return (aim - x_t) / (1 - t[:, None, None])

    policy.network.forward = towards_aim
    chunk = policy.predict_chunk(observe(), nfe=5, seed=0)
    np.testing.assert_allclose(chunk, np.broadcast_to([250.0, -0.02], chunk.shape), rtol=1e-4, atol=1e-5)


def test_chunks_depend_on_what_is_observed() -> None:
    policy, observation = make_policy(), observe(1)
    chunk = policy.predict_chunk(observation, seed=0)
    for key in observation:
        changed = observation | {key: observation[key] + 0.5}
        assert not np.allclose(policy.predict_chunk(changed, seed=0), chunk)


def test_observations_may_have_more_keys() -> None:
    policy, observation = make_policy(), observe()
    more = observation | {"image": np.zeros((3, STEPS, 96, 96, 3), np.uint8)}
    np.testing.assert_array_equal(policy.predict_chunk(more, seed=0), policy.predict_chunk(observation, seed=0))


def test_observations_may_be_read_only() -> None:
    """As they are when they come out of a memory map or a network message."""
    observation = {key: values.astype(np.float32) for key, values in observe().items()}
    for values in observation.values():
        values.flags.writeable = False
    torch.set_warn_always(True)
    try:
        make_policy().predict_chunk(observation, seed=0)
    finally:
        torch.set_warn_always(False)


def test_an_angle_and_one_turn_more_give_the_same_chunk() -> None:
    policy, observation = make_policy(), observe()
    turned = observation | {"state": observation["state"] + [0, 0, 2 * np.pi]}
    half_turned = observation | {"state": observation["state"] + [0, 0, np.pi]}
    chunk = policy.predict_chunk(observation, seed=0)
    np.testing.assert_allclose(policy.predict_chunk(turned, seed=0), chunk, rtol=1e-4, atol=1e-3)
    assert np.abs(policy.predict_chunk(half_turned, seed=0) - chunk).max() > 1


# Seeds.


def test_the_same_seed_gives_the_same_bits() -> None:
    policy, observation = make_policy(), observe()
    before = torch.get_rng_state()
    first, same, different = (policy.predict_chunk(observation, seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, same)
    assert not np.allclose(first, different)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_every_chunk_has_new_noise() -> None:
    policy, observation = make_policy(), observe()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first, different = (policy.predict_chunk(observation) for _ in range(2))
        torch.manual_seed(3)
        again = policy.predict_chunk(observation)
    assert not np.allclose(first, different)
    np.testing.assert_array_equal(again, first)


def test_rows_with_the_same_seed_have_different_noise() -> None:
    chunk = make_policy(perturbed=False).predict_chunk(observe(), seed=1)
    assert not np.allclose(chunk[0], chunk[1])


@given(st.lists(st.integers(0, 2**31), min_size=2, max_size=4, unique=True), st.data())
@settings(max_examples=20, deadline=None)
def test_rows_with_seeds_do_not_depend_on_their_neighbors(seeds: list[int], data: st.DataObject) -> None:
    policy, observation = make_policy(), observe(len(seeds))
    row = data.draw(st.integers(0, len(seeds) - 1))
    single = {key: values[row : row + 1] for key, values in observation.items()}
    together = policy.predict_chunk(observation, seed=seeds)
    np.testing.assert_allclose(together[row], policy.predict_chunk(single, seed=[seeds[row]])[0], rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(
        policy.predict_chunk(single, seed=seeds[row]), policy.predict_chunk(single, seed=[seeds[row]])
    )


def test_there_is_one_seed_per_row() -> None:
    with pytest.raises(ConfigurationError, match="2 seeds were given for a batch of 3; give one per row, or a single"):
        make_policy().predict_chunk(observe(3), seed=[1, 2])


# Prefixes.


@pytest.mark.parametrize("network", ["mlp", "mixer"])
@pytest.mark.parametrize("length", [0, 1, 3])
def test_a_prefix_is_returned_unchanged_and_changes_the_rest(network: str, length: int) -> None:
    policy = make_policy(network=network, network_options={"width": 16, "blocks": 1}, prefix_max=3)
    prefix = np.random.default_rng(0).uniform(LOW, HIGH, (3, length, 2)).astype(np.float32)
    free = policy.predict_chunk(observe(), seed=0)
    chunk = policy.predict_chunk(observe(), prefix=prefix, seed=0)
    np.testing.assert_array_equal(chunk[:, :length], prefix)
    assert np.allclose(chunk[:, length:], free[:, length:], rtol=1e-5, atol=1e-3) == (length == 0)


def test_the_network_gets_a_normalized_prefix() -> None:
    policy = make_policy(prefix_max=2)
    prefix, recorded = np.tile(HIGH, (3, 2, 1)), []

    def record(x_t: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        recorded.append((x_t[:, :2].clone(), t[:, :2].clone()))
        return torch.zeros_like(x_t)

    policy.network.forward = record
    policy.predict_chunk(observe(), prefix=prefix, nfe=3, seed=0)
    assert len(recorded) == 3
    for x_t, t in recorded:
        torch.testing.assert_close(x_t, torch.ones(3, 2, 2))
        assert torch.equal(t, torch.ones(3, 2))


@pytest.mark.parametrize("prefix_max", [0, 2])
def test_longer_prefixes_than_trained_are_refused(prefix_max: int) -> None:
    policy = make_policy(prefix_max=prefix_max)
    message = f"a prefix of 3 actions was given, but this policy was trained with prefix_max={prefix_max}; train with"
    with pytest.raises(ConfigurationError, match=message):
        policy.predict_chunk(observe(), prefix=np.zeros((3, 3, 2)), seed=0)


@pytest.mark.parametrize("shape", [(2, 1, 2), (3, 1, 5), (3, 2), (2,)])
def test_prefixes_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(SpecMismatchError, match=r"prefix must be \(3, d, 2\), but is \("):
        make_policy(prefix_max=2).predict_chunk(observe(3), prefix=np.zeros(shape), seed=0)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_prefix_that_is_not_finite_is_refused(value: float) -> None:
    prefix = np.zeros((3, 2, 2))
    prefix[1, 0, 1] = value
    with pytest.raises(SpecMismatchError, match="prefix has values that are not finite"):
        make_policy(prefix_max=2).predict_chunk(observe(3), prefix=prefix, seed=0)


# Evaluations of the network.


@pytest.mark.parametrize(("nfe", "calls"), [(None, 4), (1, 1), (10, 10)])
def test_the_requested_number_of_evaluations_is_made(nfe: int | None, calls: int) -> None:
    policy, times = make_policy(), []
    policy.network.register_forward_hook(lambda _, inputs, __: times.append(float(inputs[1][0])))
    policy.predict_chunk(observe(), nfe=nfe, seed=0)
    assert times == pytest.approx(np.arange(calls) / calls)


@pytest.mark.parametrize(
    ("solver", "nfe", "message"),
    [
        ("euler", 0, "nfe=0: euler needs a positive"),
        ("euler", -1, "nfe=-1"),
        ("heun", 3, "nfe=3: heun .* multiple of 2"),
    ],
)
def test_impossible_numbers_of_evaluations(solver: str, nfe: int, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_policy(solver=solver).predict_chunk(observe(), nfe=nfe, seed=0)


def test_policies_for_one_number_of_evaluations() -> None:
    policy = make_policy(objective="regression")
    np.testing.assert_array_equal(
        policy.predict_chunk(observe(), seed=0), policy.predict_chunk(observe(), nfe=1, seed=0)
    )
    with pytest.raises(ConfigurationError, match="nfe=4: a model trained with objective=regression admits only 1"):
        policy.predict_chunk(observe(), nfe=4, seed=0)


# Observations that do not fit.


def test_missing_observations() -> None:
    observation = observe()
    del observation["forces"]
    with pytest.raises(SpecMismatchError, match=r"needs the observations \['forces', 'state'\], but \['forces'\] are"):
        make_policy().predict_chunk(observation, seed=0)


@pytest.mark.parametrize("shape", [(3,), (STEPS, 3), (3, STEPS + 1, 3), (3, STEPS, 4), (3, STEPS, 3, 1), ()])
def test_observations_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(SpecMismatchError, match=r"observation 'state' must be \(B, 2, 3\), but is \(.*batch first"):
        make_policy().predict_chunk(observe() | {"state": np.zeros(shape)}, seed=0)


def test_observations_that_differ_in_batch_size() -> None:
    with pytest.raises(SpecMismatchError, match=r"differ in batch size: \[1, 3\]"):
        make_policy().predict_chunk(observe(3) | {"forces": observe(1)["forces"]}, seed=0)


def test_out_of_range_names_the_key() -> None:
    policy, observation = make_policy(), observe(5)
    inside = policy.out_of_range(observation | {"forces": np.full((5, STEPS, 2, 2), 5.0)})
    assert inside == {"state": 0.0, "forces": 0.0}
    observation["state"][2, 1, 0] = 40.0
    assert policy.out_of_range(observation)["state"] == pytest.approx(1 / 30)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("key", "place"), [("state", (2, 1, 0)), ("state", (2, 0, 2)), ("forces", (0, 1, 1, 1))])
def test_values_that_are_not_finite_are_out_of_range_and_refused(
    key: str, place: tuple[int, ...], value: float
) -> None:
    policy, observation = make_policy(), observe(5)  # the state's third is an angle, of which no value is out of range
    before = policy.out_of_range(observation)[key]
    observation[key][place] = np.clip(observation[key][place], 0, 1)
    observation[key][place] = value
    assert policy.out_of_range(observation)[key] >= before
    assert policy.out_of_range(observation)[key] >= 1 / observation[key].size
    with pytest.raises(SpecMismatchError, match=rf"observation '{key}' has values that are not finite"):
        policy.predict_chunk(observation, seed=0)


# The starting noise.


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0])
def test_the_starting_noise_is_scaled(scale: float, tmp_path: Path) -> None:
    policy, observation = make_policy(perturbed=False), observe()  # zero velocity: the chunk is the noise
    center, half = (LOW + HIGH) / 2, (HIGH - LOW) / 2
    noise = (policy.predict_chunk(observation, seed=3) - center) / half
    scaled = (policy.predict_chunk(observation, seed=3, noise_scale=scale) - center) / half
    np.testing.assert_allclose(scaled, scale * noise, atol=1e-5)
    policy.with_sampling(noise_scale=scale).save(tmp_path / "saved")
    kept = ChunkPolicy.load(tmp_path / "saved")
    assert kept.config.sampling.noise_scale == scale
    assert policy.config.sampling.noise_scale == 1
    np.testing.assert_allclose((kept.predict_chunk(observation, seed=3) - center) / half, scaled, atol=1e-5)
    np.testing.assert_allclose(
        (kept.predict_chunk(observation, seed=3, noise_scale=1.0) - center) / half, noise, atol=1e-5
    )


def test_without_noise_every_seed_gives_the_same_chunk() -> None:
    policy, observation = make_policy(), observe()
    first, different = (policy.predict_chunk(observation, seed=seed, noise_scale=0.0) for seed in (1, 2))
    np.testing.assert_array_equal(first, different)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_scale": -0.1}, r"noise_scale=-0.1 must be at least 0"),
        ({"noise_scale": np.nan}, r"noise_scale=nan must be at least 0"),
        ({"noise_scale": np.inf}, r"noise_scale=inf must be at least 0, and finite"),
        ({"noise_scale": 0.5, "objective": "mip"}, r"objective=mip does not start from noise; leave it out"),
        (
            {"prefix_max": 2, "objective": "noise_prediction", "solver": "diffusers_ddim"},
            r"diffusers_ddim cannot keep a prefix",
        ),
    ],
)
def test_impossible_noise_scales_and_prefixes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_policy(**options)


def test_predict_chunk_refuses_an_impossible_noise_scale() -> None:
    with pytest.raises(ConfigurationError, match="noise_scale=-1"):
        make_policy().predict_chunk(observe(), noise_scale=-1, seed=0)
    with pytest.raises(ConfigurationError, match="does not start from noise"):
        make_policy(objective="regression").predict_chunk(observe(), noise_scale=0.5, seed=0)


def test_out_of_range_refuses_what_predict_chunk_refuses() -> None:
    with pytest.raises(SpecMismatchError, match="are missing"):
        make_policy().out_of_range({})


# Time.


def test_the_latest_observation_and_the_first_action_share_their_step() -> None:
    """The action of step k is the observation of step k: a policy that repeats the latest observation has no loss."""
    frames = torch.arange(30.0)
    windows = Windows(
        observations={"state": frames[:, None].repeat(1, 3), "forces": torch.zeros(30, 2, 2)},
        actions=frames[:, None].repeat(1, 2),
        frames=torch.arange(30),
        first=torch.zeros(30, dtype=torch.long),
        last=torch.full((30,), 29),
        observation_steps=STEPS,
        horizon=HORIZON,
    )
    batch = windows.batch(torch.arange(30))
    assert torch.equal(batch["observation.state"][:, -1, 0], batch["action"][:, 0, 0])
    assert torch.equal(batch["observation.state"][1:, -2, 0] + 1, batch["action"][1:, 0, 0])
    assert batch["observation.state"].shape == (30, STEPS, 3)
    assert batch["action"].shape == (30, HORIZON, 2)
    policy = make_policy()
    error, weight = policy(batch, policy.sample_noise(30, torch.Generator().manual_seed(0)))
    assert weight == 30 * HORIZON
    assert error.isfinite()


# The loss.


def training_batch(batch: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    mask = torch.arange(HORIZON) < torch.tensor([8, 1, 3, 8, 5, 2])[:batch, None]
    observation = {f"observation.{key}": torch.tensor(value).float() for key, value in observe(batch).items()}
    return {**observation, "action": 200 + 50 * torch.randn(batch, HORIZON, 2, generator=generator), "mask": mask}


@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize("prefix_max", [0, 3])
def test_the_loss_counts_tokens_that_are_neither_padding_nor_given(mask_padding: bool, prefix_max: int) -> None:
    policy, batch = make_policy(mask_padding=mask_padding, prefix_max=prefix_max), training_batch()
    noise = policy.sample_noise(6, torch.Generator().manual_seed(0))
    counted = batch["mask"].clone() if mask_padding else torch.ones(6, HORIZON, dtype=torch.bool)
    if prefix_max:
        prefix_length = torch.tensor([0, 1, 2, 3, 0, 1])
        noise = replace(noise, prefix_length=prefix_length)
        counted &= torch.arange(HORIZON) >= prefix_length[:, None]
    policy.network.forward = lambda x, t, c: torch.sin(x)  # each token by itself
    error, weight = policy(batch, noise)
    assert weight == counted.sum()
    ignored = torch.where(counted[..., None], batch["action"], 0)
    torch.testing.assert_close(policy(batch | {"action": ignored}, noise)[0], error)
    for row, token in ((0, 7), (3, 4)):
        changed = batch["action"].clone()
        changed[row, token] += 30
        assert policy(batch | {"action": changed}, noise)[0] != error


def test_noise_is_reproducible_and_belongs_to_rows() -> None:
    policy = make_policy(prefix_max=3)
    first, same = (policy.sample_noise(4000, torch.Generator().manual_seed(0)) for _ in range(2))
    assert [tuple(value.shape) for value in first.tensors()] == [(4000, HORIZON, 2), (4000,), (4000,)]
    assert all(torch.equal(*pair) for pair in zip(first.tensors(), same.tensors(), strict=True))
    assert first.prefix_length is not None
    share = torch.bincount(first.prefix_length) / 4000
    assert share.tolist() == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6], abs=0.03)
    assert make_policy().sample_noise(4, torch.Generator()).prefix_length is None
    assert float(first.path.t.mean()) == pytest.approx(0.4, abs=0.02)


# Configurations.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "unet"}, "unknown network 'unet'; there are mlp, mixer"),
        ({"time_density": "normal"}, "unknown time_density 'normal'; there are uniform, beta"),
        ({"solver": "rk5"}, "unknown solver 'rk5'"),
        ({"n_action_steps": 9}, "n_action_steps=9: expected 1 <= n_action_steps <= horizon"),
        ({"n_action_steps": 0}, "n_action_steps=0"),
        ({"observation_steps": 0}, "observation_steps=0"),
        ({"prefix_max": 8}, "prefix_max=8 must be from 0 to horizon - 1 = 7"),
        ({"prefix_max": -1}, "prefix_max=-1"),
        ({"network_options": {"depth": 3}}, "cannot make network 'mlp': .*depth"),
        (
            {"network": "unet1d", "network_options": {}, "horizon": 10},
            "cannot make network 'unet1d': horizon=10 must be",
        ),
    ],
)
def test_impossible_configurations(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_policy(**options)
