"""Normalization: a common range and its inverse, fitted in one pass over blocks of any size, and never guessed."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowchunk.datasets.errors import ConfigurationError, SpecMismatchError
from flowchunk.policy import normalizer as module
from flowchunk.policy.normalizer import MODES, Mode, Normalizer, RunningStatistics, Scaling
from tests.policy.small_policies import make_policy, observe

ROWS = np.random.default_rng(0).normal([0.0, 5.0, -300.0], [1.0, 0.01, 40.0], (500, 3))


def normalizer(mode: Mode, rows: np.ndarray = ROWS, *, identity: tuple[int, ...] = ()) -> Normalizer:
    return Normalizer({"key": Scaling.fit(mode, [rows], identity=identity)})


def normalized(mode: Mode, rows: np.ndarray = ROWS, *, identity: tuple[int, ...] = ()) -> np.ndarray:
    return normalizer(mode, rows, identity=identity).normalize("key", torch.tensor(rows, dtype=torch.float32)).numpy()


def test_only_quantiles_need_a_sample_of_the_rows() -> None:
    """Chunks are wide: a sample of them would fill more memory than all else."""
    block, peaks = np.random.default_rng(0).normal(size=(2000, 32 * 14)), {}
    for mode in MODES:
        tracemalloc.start()
        Scaling.fit(mode, (block for _ in range(10)))
        peaks[mode] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks.pop("quantile") > 10 * block.nbytes
    assert max(peaks.values()) < 5 * block.nbytes


# What each mode does.


def test_min_max_fills_minus_one_to_one() -> None:
    values = normalized("min_max")
    np.testing.assert_allclose(values.min(0), -1, atol=1e-4)
    np.testing.assert_allclose(values.max(0), 1, atol=1e-4)


def test_gaussian_has_mean_zero_and_standard_deviation_one() -> None:
    values = normalized("gaussian")
    np.testing.assert_allclose(values.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(values.std(0), 1, atol=1e-3)


def test_quantile_puts_two_percent_outside() -> None:
    values = normalized("quantile")
    np.testing.assert_allclose(np.quantile(values, [0.01, 0.99], axis=0), [[-1] * 3, [1] * 3], atol=1e-3)
    np.testing.assert_allclose((np.abs(values) > 1 + 1e-4).mean(0), 0.02, atol=0.005)


def test_identity_changes_nothing() -> None:
    np.testing.assert_array_equal(normalized("identity"), ROWS.astype(np.float32))


@pytest.mark.parametrize("mode", MODES)
def test_angles_are_not_normalized(mode: Mode) -> None:
    with_angle, without = normalized(mode, identity=(1,)), normalized(mode)
    np.testing.assert_array_equal(with_angle[:, 1], ROWS[:, 1].astype(np.float32))
    np.testing.assert_array_equal(with_angle[:, [0, 2]], without[:, [0, 2]])


def test_identity_counts_flattened_dimensions() -> None:
    rows = np.random.default_rng(1).normal(50, 9, (40, 2, 3))
    values = normalized("min_max", rows, identity=(1, 5))
    as_is = np.isclose(values, rows, rtol=1e-6).all(0)
    np.testing.assert_array_equal(as_is, [[False, True, False], [False, False, True]])


@pytest.mark.parametrize("mode", ["min_max", "gaussian", "quantile"])
@pytest.mark.parametrize("constant", [0.0, 7.5, -1e6])
def test_a_constant_dimension_is_shifted_to_zero_and_not_scaled(mode: Mode, constant: float) -> None:
    rows = np.stack([np.full(50, constant), np.linspace(0, 1, 50)], axis=1)
    scaling = Scaling.fit(mode, [rows])
    assert scaling.scale[0] == 1.0
    values = normalized(mode, rows)
    np.testing.assert_array_equal(values[:, 0], 0)
    seen_later = torch.tensor([[constant + 2.0, 0.5]])
    assert float(normalizer(mode, rows).normalize("key", seen_later)[0, 0]) == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("mode", MODES)
def test_what_is_constant_in_the_data_is_so_in_samples(mode: Mode) -> None:
    rows = np.stack([np.full(50, 0.4), np.linspace(0, 1, 50)], axis=1)
    fitted, samples = normalizer(mode, rows), torch.tensor([[0.7, 0.7], [0.1, 0.1]])
    kept = samples if mode == "identity" else torch.tensor([[0.4, 0.7], [0.4, 0.1]])
    torch.testing.assert_close(fitted.with_constants("key", samples), kept)


def test_an_action_that_never_changed_in_training_does_not_change() -> None:
    """It would be noise of the size of a unit: 1 m, or 1 mm."""
    policy = make_policy()
    policy.model.normalizer = policy.normalizer.with_scaling(
        "action", Scaling.fit("min_max", [np.array([[100.0, 0.01], [300.0, 0.01]])])
    )
    chunks = policy.predict_chunk(observe(), seed=0)
    assert chunks[..., 0].std() > 1
    np.testing.assert_array_equal(chunks[..., 1], np.float32(0.01))


@pytest.mark.parametrize("mode", ["min_max", "gaussian", "quantile"])
def test_a_single_row_is_constant(mode: Mode) -> None:
    np.testing.assert_array_equal(normalized(mode, ROWS[:1]), np.zeros((1, 3)))


def test_unknown_modes_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="unknown normalizer mode 'minmax'; there are min_max, gaussian"):
        Scaling.fit("minmax", [ROWS])  # type: ignore[arg-type]


# Round trips.

blocks = st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=2), min_size=1, max_size=20)


@given(st.sampled_from(MODES), blocks, st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=2))
@settings(max_examples=150, deadline=None)
def test_denormalizing_is_the_inverse(mode: Mode, rows: list[list[float]], value: list[float]) -> None:
    fitted = normalizer(mode, np.array(rows))
    physical = torch.tensor([*rows, value])
    back = fitted.denormalize("key", fitted.normalize("key", physical))
    largest = max(1.0, float(physical.abs().max()), float(np.abs(fitted.scalings["key"].offset).max()))
    torch.testing.assert_close(back, physical, rtol=1e-6, atol=5e-7 * largest)


def test_batch_and_time_axes_pass_through() -> None:
    values = torch.randn(4, 2, 3)
    fitted = normalizer("gaussian")
    together = fitted.normalize("key", values)
    assert together.shape == values.shape
    torch.testing.assert_close(together[1, 1], fitted.normalize("key", values[1, 1]))


def test_each_key_has_its_own_scaling() -> None:
    fitted = Normalizer({"arm.left": Scaling.fit("min_max", [ROWS]), "arm.right": Scaling.fit("min_max", [10 * ROWS])})
    values = torch.tensor(ROWS[:5], dtype=torch.float32)
    torch.testing.assert_close(fitted.normalize("arm.left", values), fitted.normalize("arm.right", 10 * values))


@pytest.mark.parametrize("method", ["normalize", "denormalize", "out_of_range"])
def test_keys_that_were_never_fitted_are_refused(method: str) -> None:
    with pytest.raises(SpecMismatchError, match=r"not fitted to 'other', only to \['key'\]"):
        getattr(normalizer("min_max"), method)("other", torch.zeros(1, 3))


def test_statistics_are_not_weights() -> None:
    assert not normalizer("min_max").state_dict()


# The range of the training data.


def test_out_of_range_is_the_fraction_outside() -> None:
    fitted = normalizer("quantile")
    assert fitted.out_of_range("key", torch.tensor(ROWS, dtype=torch.float32)) == 0
    values = torch.tensor(ROWS[:10], dtype=torch.float32)
    values[:3, 1] = 6.0
    values[5, 2] = -1000.0
    assert fitted.out_of_range("key", values) == pytest.approx(4 / 30)


def test_angles_that_wrap_are_never_out_of_range() -> None:
    fitted = Normalizer({"key": Scaling.fit("min_max", [np.array([[0.0, 0.0], [1.0, 1.0]])])})
    values = torch.tensor([[[9.0, 9.0]], [[0.5, 9.0]]])  # (B, To, 2)
    assert fitted.out_of_range("key", values) == pytest.approx(3 / 4)
    assert fitted.out_of_range("key", values, wraps=(1,)) == pytest.approx(1 / 4)


def test_out_of_range_has_a_tolerance() -> None:
    fitted = normalizer("min_max", np.array([[0.0], [100.0]]))
    assert fitted.out_of_range("key", torch.tensor([[-0.09], [100.09]])) == 0
    assert fitted.out_of_range("key", torch.tensor([[-0.11], [100.11]])) == 1
    assert fitted.out_of_range("key", torch.tensor([[110.0]]), tolerance=0.2) == 0


# Serialization.


@pytest.mark.parametrize("mode", MODES)
def test_json_restores_the_same_normalizer(mode: Mode) -> None:
    before = normalizer(mode, identity=(2,))
    after = Normalizer.from_json(json.loads(json.dumps(before.to_json())))
    assert after.to_json() == before.to_json()
    values = torch.randn(10, 3)
    assert torch.equal(after.normalize("key", values), before.normalize("key", values))
    assert torch.equal(after.denormalize("key", values), before.denormalize("key", values))
    assert after.out_of_range("key", values) == before.out_of_range("key", values)


# One pass.


def split(rows: np.ndarray, cuts: list[int]) -> Iterator[np.ndarray]:
    edges = [0, *sorted(cut % (len(rows) + 1) for cut in cuts), len(rows)]
    return (rows[start:stop] for start, stop in pairwise(edges))


@given(
    st.sampled_from(MODES),
    st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=1, max_size=60),
    st.lists(st.integers(0, 60), max_size=6),
)
@settings(max_examples=150, deadline=None)
def test_blocks_make_no_difference(mode: Mode, rows: list[tuple[float, float]], cuts: list[int]) -> None:
    values = np.array(rows)
    whole, pieces = Scaling.fit(mode, [values]), Scaling.fit(mode, split(values, cuts))
    np.testing.assert_array_equal(pieces.low, values.min(0))
    np.testing.assert_array_equal(pieces.high, values.max(0))
    np.testing.assert_allclose(pieces.offset, whole.offset, rtol=1e-9, atol=1e-9)
    reach = 1 / whole.scale
    close_to_constant = np.abs(reach - 1e-6 * np.maximum(1, np.abs(whole.offset))) < 1e-8
    np.testing.assert_allclose(
        np.where(close_to_constant, 1, 1 / pieces.scale), np.where(close_to_constant, 1, reach), rtol=1e-6, atol=1e-9
    )


def test_statistics_are_those_of_numpy() -> None:
    statistics = RunningStatistics()
    for block in split(ROWS, [3, 100, 101, 400]):
        statistics.update(block)
    assert statistics.count == len(ROWS)
    np.testing.assert_allclose(statistics.mean, ROWS.mean(0))
    np.testing.assert_allclose(statistics.std, ROWS.std(0))
    np.testing.assert_allclose(statistics.quantile(0.3), np.quantile(ROWS, 0.3, axis=0))


def test_a_small_standard_deviation_far_from_zero_is_kept() -> None:
    rows = 1e6 + np.random.default_rng(2).normal(0, 1e-2, (1000, 1))
    statistics = RunningStatistics()
    for block in split(rows, [10, 500]):
        statistics.update(block)
    np.testing.assert_allclose(statistics.std, rows.std(0), rtol=1e-4)


# More rows than the reservoir holds.

CAPACITY, LONG = 50, 400


def reservoir_of(seed: int, rows: np.ndarray, block: int) -> np.ndarray:
    """The numbers that are kept, found by the quantiles at all their ranks."""
    statistics = RunningStatistics(seed=seed)
    for start in range(0, len(rows), block):
        statistics.update(rows[start : start + block])
    ranks = np.linspace(0, 1, CAPACITY)
    return np.array([statistics.quantile(rank) for rank in ranks])[:, 0]


@pytest.mark.parametrize("block", [1, 7, 30, LONG])
def test_a_full_reservoir_is_a_fair_sample(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(module, "RESERVOIR_ROWS", CAPACITY)
    rows = np.arange(float(LONG))[:, None]
    runs = 30 if block == 1 else 200
    kept = np.zeros(LONG)
    for seed in range(runs):
        sample = np.rint(reservoir_of(seed, rows, block)).astype(int)
        assert len(set(sample.tolist())) == CAPACITY
        kept[sample] += 1
    by_age = kept.reshape(8, -1).sum(1)  # each eighth of the rows should be kept alike
    expected = runs * CAPACITY / 8
    assert np.abs(by_age - expected).max() < 4.5 * np.sqrt(expected)


def test_the_reservoir_is_reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESERVOIR_ROWS", CAPACITY)
    rows = np.random.default_rng(0).normal(size=(LONG, 1))
    np.testing.assert_array_equal(reservoir_of(3, rows, 30), reservoir_of(3, rows, 30))
    assert not np.array_equal(reservoir_of(3, rows, 30), reservoir_of(4, rows, 30))


def test_minimum_and_maximum_do_not_depend_on_the_reservoir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESERVOIR_ROWS", 4)
    scaling = Scaling.fit("min_max", split(ROWS, [7, 90]))
    np.testing.assert_array_equal(scaling.low, ROWS.min(0))
    np.testing.assert_array_equal(scaling.high, ROWS.max(0))
