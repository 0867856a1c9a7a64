"""Statistics equal those of numpy, of values and of images, of an episode and of all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flowchunk.datasets.formats.lerobot_statistics import (
    QUANTILES,
    StatisticsRecorder,
    count_levels,
    image_statistics,
    value_statistics,
)

images = hnp.arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.just(3)))
FEATURES = {"front": {"dtype": "video", "shape": [4, 5, 3]}, "action": {"dtype": "float32", "shape": [2]}}


@given(hnp.arrays(np.float32, (7, 2, 3), elements=st.floats(-100, 100, width=32)))
def test_statistics_of_values(values: np.ndarray) -> None:
    statistics = value_statistics(values)
    assert set(statistics) == {"min", "max", "mean", "std", "count", *QUANTILES}
    for name, expected in (
        ("min", values.min(axis=0)),
        ("max", values.max(axis=0)),
        ("mean", values.astype(float).mean(axis=0)),
        ("std", values.astype(float).std(axis=0)),
        *((name, np.quantile(values, part, axis=0)) for name, part in QUANTILES.items()),
    ):
        np.testing.assert_allclose(statistics[name], expected, atol=1e-5)
        assert statistics[name].dtype == np.float64
    assert statistics["count"].tolist() == [7]


def test_the_precision_of_float32_is_not_that_of_the_mean() -> None:
    values = np.full((2_000_000, 1), 16_777_216, np.float32)
    values[0] = 0
    assert value_statistics(values)["mean"] == pytest.approx(16_777_216 * (1 - 1 / 2_000_000), abs=1e-3)


def test_integers_stay_integers() -> None:
    statistics = value_statistics(np.arange(5)[:, None])
    assert {name for name in statistics if statistics[name].dtype == np.int64} == {"min", "max", "count"}


@given(images)
@settings(deadline=None)
def test_statistics_of_images(values: np.ndarray) -> None:
    statistics = image_statistics(count_levels(values), len(values))
    assert set(statistics) == {"min", "max", "mean", "std", "count", *QUANTILES}
    pixels = values.reshape(-1, 3) / 255
    for name, expected in (
        ("min", pixels.min(axis=0)),
        ("max", pixels.max(axis=0)),
        ("mean", pixels.mean(axis=0)),
        ("std", pixels.std(axis=0)),
        *((name, np.quantile(pixels, part, axis=0, method="inverted_cdf")) for name, part in QUANTILES.items()),
    ):
        np.testing.assert_allclose(statistics[name], expected.reshape(3, 1, 1), atol=1e-12)
    assert statistics["count"].tolist() == [len(values)]


def test_images_of_all_episodes_are_counted() -> None:
    rng, recorder = np.random.default_rng(0), StatisticsRecorder({"front": FEATURES["front"]})
    episodes = [rng.integers(0, 256, (length, 4, 5, 3), dtype=np.uint8) for length in (3, 1)]
    for episode in episodes:
        np.testing.assert_array_equal(
            recorder.add({"front": episode})["front"]["q50"], image_statistics(count_levels(episode), 1)["q50"]
        )
    total, expected = recorder.total([])["front"], image_statistics(count_levels(np.concatenate(episodes)), 4)
    assert total.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(total[name], expected[name])
