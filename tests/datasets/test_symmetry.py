"""A task's symmetry: transforms, and windows of recorded and transformed episodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.formats.zarr_store import Store
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from flowchunk.datasets.symmetry import Symmetry, ValueTransform
from flowchunk.datasets.windows import load_windows

SWAP = ValueTransform(order=(1, 0), sign=(-1.0, -1.0), offset=(10.0, 10.0))
OPTIONS = {
    "state": {"order": [1, 0], "sign": [-1, -1], "offset": [10, 10]},
    "action": {"order": [0], "sign": [-1], "offset": [0]},
}
SIZES = {"state": 2, "action": 1}
OBSERVATION = ObservationSpec({"state": ObservationField((2,))})
ACTION = ActionSpec((ActionDimension("x", "m", "world"),), 10.0)


def test_a_reflection_applied_twice_is_the_identity() -> None:
    values = np.random.default_rng(0).normal(size=(7, 2))
    np.testing.assert_allclose(SWAP(SWAP(values)), values, atol=1e-12)
    np.testing.assert_array_equal(SWAP(np.array([[1.0, 2.0]])), [[8.0, 9.0]])


def test_a_transform_keeps_the_type() -> None:
    assert SWAP(np.ones((2, 2), np.float32)).dtype == np.float32


def test_dimensions_of_a_table_are_counted_in_flattened_order(tmp_path: Path) -> None:
    """Push-T's keypoints: two points of (x, y), exchanged."""
    points = np.arange(12.0, dtype=np.float32).reshape(3, 2, 2)
    options = {"points": {"order": [2, 3, 0, 1], "sign": [-1, 1, -1, 1], "offset": [0, 5, 0, 5]}}
    swap = Symmetry.from_options(options, {"points": 4}).value_transforms["points"]
    expected = points[:, ::-1] * [-1, 1] + [0, 5]
    np.testing.assert_array_equal(swap(points), expected)
    assert swap(points).dtype == np.float32
    root = zarr.open_group(tmp_path / "store", mode="w", zarr_format=2)
    arrays: dict[str, np.ndarray] = {
        "data/points": points,
        "data/action": np.ones((3, 1)),
        "meta/episode_ends": np.array([3]),
    }
    for key, values in arrays.items():
        root.create_array(key, data=values)
    windows = load_windows(
        Store.open(tmp_path / "store"),
        ObservationSpec({"points": ObservationField((2, 2))}),
        ACTION,
        episodes=[0],
        observation_steps=1,
        horizon=1,
        symmetry=Symmetry({"points": swap, "action": ValueTransform((0,), (1.0,), (0.0,))}),
    )
    np.testing.assert_array_equal(windows.batch(torch.arange(3, 6))["observation.points"][:, 0], expected)


def test_windows_hold_every_episode_and_its_transform(tmp_path: Path) -> None:
    states, actions = np.arange(12.0, dtype=np.float32).reshape(6, 2), np.arange(6, dtype=np.float32)[:, None]
    root = zarr.open_group(tmp_path / "store", mode="w", zarr_format=2)
    for key, values in {"data/state": states, "data/action": actions, "meta/episode_ends": np.array([4, 6])}.items():
        root.create_array(key, data=values)
    windows = load_windows(
        Store.open(tmp_path / "store"),
        OBSERVATION,
        ACTION,
        episodes=[0],  # only the first of two
        observation_steps=2,
        horizon=3,
        symmetry=Symmetry.from_options(OPTIONS, SIZES),
    )
    assert len(windows) == 8
    batch = windows.batch(torch.arange(8))
    recorded, transformed = batch["observation.state"][:4], batch["observation.state"][4:]
    np.testing.assert_array_equal(recorded[:, -1], states[:4])
    np.testing.assert_array_equal(transformed[:, -1], SWAP(states[:4]))
    np.testing.assert_array_equal(batch["action"][4:], -batch["action"][:4])
    np.testing.assert_array_equal(batch["mask"][4:], batch["mask"][:4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state": OPTIONS["state"]}, r"dataset\.symmetry needs .* \['action'\]"),
        ({**OPTIONS, "action": {"order": [0], "sign": [-1]}}, r"dataset\.symmetry\.action.*offset"),
        (
            {**OPTIONS, "state": {"order": [0, 0], "sign": [1, 1], "offset": [0, 0]}},
            r"dataset\.symmetry\.state: order must be a permutation of 0 to 1",
        ),
        (
            {**OPTIONS, "state": {"order": [0, 1], "sign": [1], "offset": [0, 0]}},
            r"dataset\.symmetry\.state: .* 2 values each",
        ),
    ],
)
def test_a_symmetry_that_does_not_fit_says_what_is_wrong(
    options: dict[str, dict[str, list[float]]], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Symmetry.from_options(options, SIZES)
