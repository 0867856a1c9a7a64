"""Images in flowchunk's stores: lossless, or as JPEGs, and what the writer refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowchunk.datasets import recorder
from flowchunk.datasets.errors import ConfigurationError, DatasetError
from flowchunk.datasets.formats.zarr_store import Store
from flowchunk.datasets.recorder import StoreWriter
from tests.datasets.image_stores import ACTIONS, OBSERVATIONS, record, smooth_images

RECORDED = Path(__file__).parents[3] / "shared" / "data" / "pusht" / "pusht_cchi_v7_replay.zarr"


def size_on_disk(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@given(st.lists(st.integers(1, 70), min_size=1, max_size=5))
@settings(max_examples=10, deadline=None)
def test_images_are_stored_without_loss(tmp_path_factory: pytest.TempPathFactory, lengths: list[int]) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (sum(lengths), 6, 8, 3), dtype=np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "SHARD_FRAMES", 32)
        store = record(tmp_path_factory.mktemp("stores") / "demos.zarr", images, lengths)
    assert store.observation_spec == OBSERVATIONS
    assert store.read("image").dtype == np.uint8
    np.testing.assert_array_equal(store.read("image"), images)
    np.testing.assert_array_equal(store.episode_lengths, lengths)


def test_images_are_stored_in_small_chunks_in_large_files(tmp_path: Path) -> None:
    record(tmp_path / "demos.zarr", smooth_images(1100), [600, 500])
    array = Store.open(tmp_path / "demos.zarr").zarr_arrays["image"]
    assert (array.chunks, array.shards) == ((16, 6, 8, 3), (1024, 6, 8, 3))
    assert sum(file.is_file() for file in (tmp_path / "demos.zarr" / "data" / "image" / "c").rglob("*")) == 2
    metadata = json.loads((tmp_path / "demos.zarr" / "data" / "image" / "zarr.json").read_text())
    (sharding,) = metadata["codecs"]
    assert sharding["configuration"]["codecs"][-1] == {"name": "zstd", "configuration": {"level": 1, "checksum": True}}


def test_files_of_large_images_hold_fewer_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "SHARD_BYTES", 40 * 6 * 8 * 3)
    images = smooth_images(100)
    store = record(tmp_path / "demos.zarr", images, [100])
    assert store.zarr_arrays["image"].shards == (32, 6, 8, 3)
    np.testing.assert_array_equal(store.read("image"), images)


def test_black_images_are_no_damage(tmp_path: Path) -> None:
    store = record(tmp_path / "demos.zarr", np.zeros((70, 6, 8, 3), np.uint8), [70])
    np.testing.assert_array_equal(store.read("image"), 0)


@pytest.mark.parametrize("quality", [60, 95])
def test_jpegs_are_close_and_smaller(tmp_path: Path, quality: int) -> None:
    images = smooth_images(80, size=(48, 64))
    lossless = record(tmp_path / "lossless.zarr", images, [80])
    store = record(tmp_path / "jpeg.zarr", images, [80], jpeg=quality)
    assert store.zarr_arrays["image"].chunks == (1, 48, 64, 3)
    error = np.abs(store.read("image").astype(int) - images).mean()
    assert 0 < error < 3
    assert size_on_disk(store.path / "data" / "image") < 0.7 * size_on_disk(lossless.path / "data" / "image")
    np.testing.assert_array_equal(store.read("image", 17, 23), store.read("image")[17:23])


def test_better_jpegs_are_closer_and_larger(tmp_path: Path) -> None:
    images = smooth_images(20, size=(48, 64))
    stores = [record(tmp_path / f"{quality}.zarr", images, [20], jpeg=quality) for quality in (30, 60, 95)]
    errors = [np.abs(store.read("image").astype(int) - images).mean() for store in stores]
    assert errors == sorted(errors, reverse=True)
    sizes = [size_on_disk(store.path / "data" / "image") for store in stores]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("quality", [0, 101, -3])
def test_an_invalid_quality_is_refused(tmp_path: Path, quality: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"jpeg={quality} must be a quality from 1 to 100"):
        StoreWriter(tmp_path / "demos.zarr", observation_spec=OBSERVATIONS, action_spec=ACTIONS, jpeg=quality)


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (np.zeros((5, 6, 8, 3), np.float32), r"float32 \(5, 6, 8, 3\)"),
        (np.zeros((5, 6, 8, 3), np.int64), r"int64 \(5, 6, 8, 3\)"),
        (np.zeros((5, 3, 6, 8), np.uint8), r"uint8 \(5, 3, 6, 8\)"),
        (np.zeros((5, 8, 6, 3), np.uint8), r"uint8 \(5, 8, 6, 3\)"),
        (np.zeros((4, 6, 8, 3), np.uint8), r"uint8 \(4, 6, 8, 3\)"),
        (np.zeros((5, 6, 8), np.uint8), r"uint8 \(5, 6, 8\)"),
    ],
)
def test_arrays_that_do_not_match_the_spec(tmp_path: Path, images: Any, got: str) -> None:
    def write() -> None:
        with StoreWriter(tmp_path / "demos.zarr", observation_spec=OBSERVATIONS, action_spec=ACTIONS) as writer:
            writer.add_episode({"position": np.zeros((5, 2)), "image": images}, np.zeros((5, 1)))

    with pytest.raises(DatasetError, match=rf"'image' needs images, uint8 \(5, 6, 8, 3\) .* but got {got}"):
        write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not RECORDED.exists(), reason=f"needs {RECORDED}")
def test_the_images_of_the_human_demonstrations(tmp_path: Path) -> None:
    images = Store.open(RECORDED).read("img", 0, 200).astype(np.uint8)
    np.testing.assert_array_equal(record(tmp_path / "lossless.zarr", images, [120, 80]).read("image"), images)
    jpeg = record(tmp_path / "jpeg.zarr", images, [120, 80], jpeg=90)
    assert np.abs(jpeg.read("image").astype(int) - images).mean() < 1  # measured over all frames: 0.57
