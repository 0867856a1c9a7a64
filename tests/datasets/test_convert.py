"""Converting a foreign store: the result, and that nothing is written on errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from flowchunk.datasets.convert import convert
from flowchunk.datasets.errors import ConfigurationError, DatasetError
from flowchunk.datasets.formats.zarr_store import Store
from tests.datasets.image_stores import ACTIONS, OBSERVATIONS, chunk_files, open_foreign, smooth_images, write_foreign

LENGTHS = (30, 10, 40)
IMAGES = smooth_images(80)


@pytest.fixture
def source(tmp_path: Path) -> Store:
    return write_foreign(tmp_path / "foreign.zarr", IMAGES.astype(np.float32), LENGTHS)


def run(source: Store, out: Path, **options: Any) -> tuple[Store, str]:
    messages: list[str] = []
    convert(source, OBSERVATIONS, ACTIONS, out, say=messages.append, **options)
    return Store.open(out), "\n".join(messages)


def test_all_frames_are_converted_to_flowchunks_keys(source: Store, tmp_path: Path) -> None:
    store, messages = run(source, tmp_path / "converted.zarr")
    assert store.observation_spec == OBSERVATIONS
    assert store.action_spec == ACTIONS
    assert store.keys == ("action", "image", "position")
    np.testing.assert_array_equal(store.episode_lengths, LENGTHS)
    np.testing.assert_array_equal(store.read("image"), IMAGES)
    assert store.read("image").dtype == np.uint8
    for key in ("position", "action"):
        np.testing.assert_array_equal(store.read(key), source.read(key))
    assert "converted.zarr: 3 episodes, 80 frames, " in messages


def test_a_converted_store_can_be_converted_again(source: Store, tmp_path: Path) -> None:
    first, _ = run(source, tmp_path / "first.zarr")
    second, _ = run(first, tmp_path / "second.zarr", jpeg=95)
    assert second.zarr_arrays["image"].chunks == (1, 6, 8, 3)
    assert 0 < np.abs(second.read("image").astype(int) - IMAGES).mean() < 3


def test_damaged_episodes_are_left_out_and_named(source: Store, tmp_path: Path) -> None:
    chunk_files(source, "img")[8].unlink()
    source = open_foreign(source.path)
    with pytest.raises(DatasetError, match=r"episode 1, frame 2 of data/img .*--skip-corrupt"):
        run(source, tmp_path / "converted.zarr")
    assert not (tmp_path / "converted.zarr").exists()
    store, messages = run(source, tmp_path / "converted.zarr", skip_corrupt=True)
    np.testing.assert_array_equal(store.episode_lengths, [30, 40])
    np.testing.assert_array_equal(store.read("image"), IMAGES[np.r_[0:30, 40:80]])
    assert "left out 1 of 3 episodes with frames that cannot be read: episode 1 (frame 2 of data/img" in messages


def test_nothing_is_left(source: Store, tmp_path: Path) -> None:
    for file in chunk_files(source, "img"):
        file.unlink()
    with pytest.raises(DatasetError, match=r"every episode of .* holds frames that cannot be read"):
        run(open_foreign(source.path), tmp_path / "converted.zarr", skip_corrupt=True)
    assert not (tmp_path / "converted.zarr").exists()


def test_numbers_that_are_not_finite_are_named(source: Store, tmp_path: Path) -> None:
    zarr.open_array(source.path, path="data/state", mode="r+")[41, 0] = np.nan
    with pytest.raises(DatasetError, match=r"data/position .* NaN or infinity, first in episode 2, frame 1"):
        run(open_foreign(source.path), tmp_path / "converted.zarr")
    assert not (tmp_path / "converted.zarr").exists()


def test_data_that_do_not_match_the_specification(source: Store, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has no array data/position"):
        run(Store.open(source.path, sources={"image": "img"}), tmp_path / "converted.zarr")
    with pytest.raises(DatasetError, match="camera 'front' is missing"):
        run(Store.open(source.path, sources={"position": "state"}), tmp_path / "converted.zarr")
    with pytest.raises(DatasetError, match=r"data/position .* frames of shape \(1,\), but the task expects \(2,\)"):
        run(Store.open(source.path, sources={"image": "img", "position": "action"}), tmp_path / "converted.zarr")
    with pytest.raises(ConfigurationError, match="jpeg=0 must be a quality"):
        run(source, tmp_path / "converted.zarr", jpeg=0)
    assert not (tmp_path / "converted.zarr").exists()


def test_nothing_is_overwritten(source: Store, tmp_path: Path) -> None:
    run(source, tmp_path / "converted.zarr")
    with pytest.raises(DatasetError, match="exists already"):
        run(source, tmp_path / "converted.zarr")
