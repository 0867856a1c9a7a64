"""The image cache: what does not fit, what is damaged, and its memory."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from flowchunk.datasets import image_cache, image_cache_file
from flowchunk.datasets.errors import ConfigurationError, DatasetError
from flowchunk.datasets.formats.zarr_store import Store
from flowchunk.datasets.image_cache import DeviceMemory, ImageCacheOptions, Write, load_image_cache
from flowchunk.datasets.windows import load_image_tensors
from tests.datasets.image_caches import FIELDS, IMAGES, LENGTHS, NBYTES, change_a_frame, load, messages
from tests.datasets.image_stores import chunk_files, open_foreign, record, smooth_images, write_foreign


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return record(tmp_path / "demos.zarr", IMAGES, LENGTHS)


@pytest.mark.parametrize("mode", ["disk", "ram"])
def test_the_images_are_those_of_the_store(store: Store, tmp_path: Path, mode: str) -> None:
    cache = load(store, tmp_path / "cache", mode)
    assert cache.place == mode
    assert f"{NBYTES / 1e6:.2f} MB of images" in messages(cache)
    assert cache.arrays["image"].dtype == np.uint8
    np.testing.assert_array_equal(cache.arrays["image"], IMAGES)


def test_a_foreign_store_gives_the_same_images(tmp_path: Path) -> None:
    foreign = write_foreign(tmp_path / "foreign.zarr", IMAGES.astype(np.float32), LENGTHS)
    np.testing.assert_array_equal(load(foreign, tmp_path / "cache").arrays["image"], IMAGES)


def test_images_are_decoded_in_blocks(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache_file, "BLOCK_BYTES", 3000)
    np.testing.assert_array_equal(load(store, tmp_path / "cache").arrays["image"], IMAGES)


def test_the_default_directory_is_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert ImageCacheOptions().folder == tmp_path / "home" / ".cache" / "flowchunk"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert ImageCacheOptions().folder == tmp_path / "xdg" / "flowchunk"
    assert ImageCacheOptions(directory="~/mine").folder == tmp_path / "home" / "mine"


# Where the images fit.


@pytest.mark.parametrize(
    ("device_free", "limit_gb", "memory", "place", "why"),
    [
        (NBYTES * 3, 200, NBYTES * 10, "device", "fit into a third of its free memory"),
        (NBYTES * 3 - 1, 200, NBYTES * 10, "disk", "the device has .* 1/3 may be used; memory does not grow"),
        (None, 200, NBYTES * 10, "disk", r"\(memory does not grow"),
        (None, NBYTES / 1e9, 0, "disk", "memory does not grow"),
        (None, 0, NBYTES * 2, "ram", "cache_limit_gb=0 .*; they fit into half of the available memory"),
    ],
)
def test_auto_reports_its_choice_and_the_reason(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device_free: int | None,
    limit_gb: float,
    memory: int,
    place: str,
    why: str,
) -> None:
    monkeypatch.setattr(image_cache, "available_memory", lambda: memory)
    cache = load(store, tmp_path / "cache", "auto", device_free=device_free, limit_gb=limit_gb)
    assert cache.place == place
    np.testing.assert_array_equal(cache.arrays["image"], IMAGES)
    assert re.search(f"cache={place} .*{why}", messages(cache)), messages(cache)


def test_no_place_at_all(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache, "available_memory", lambda: NBYTES)
    with pytest.raises(
        DatasetError,
        match=r"cache=auto: no place for 0\.01 MB of images: .*cache holds 0\.00 MB and needs 0\.01 MB more, but "
        r"cache_limit_gb=0 .*memory has 0\.01 MB free, of which 1/2 may be used\. .*cache_dir .*cache=ram",
    ):
        load(store, tmp_path / "cache", "auto", limit_gb=0)


def test_the_limit_includes_existing_files(store: Store, tmp_path: Path) -> None:
    load(store, tmp_path / "cache")
    load(store, tmp_path / "cache", limit_gb=0)  # nothing new is written
    other = change_a_frame(store)
    with pytest.raises(DatasetError, match=r"holds 0\.01 MB and needs 0\.01 MB more, but cache_limit_gb=1.5e-05"):
        load(other, tmp_path / "cache", limit_gb=1.5e-5)


def test_a_disk_that_is_full(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(DatasetError, match=r"the disk of .*cache has 0\.00 MB free and 0\.01 MB are needed"):
        load(store, tmp_path / "cache")


@pytest.fixture(params=["a file in the way", "a name too long"])
def no_folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A cache folder that cannot be created; for a name too long, the system does not even say whether it is there."""
    (tmp_path / "file").write_text("in the way")
    return tmp_path / ("file" if request.param == "a file in the way" else "long" * 100) / "cache"


def test_a_folder_that_cannot_be_created_is_no_obstacle_to_memory(store: Store, no_folder: Path) -> None:
    cache = load(store, no_folder, "auto")
    assert cache.place == "ram"
    np.testing.assert_array_equal(cache.arrays["image"], IMAGES)
    assert re.search(f"cache=ram .*{re.escape(str(no_folder))} cannot be written .*; they fit", messages(cache))


def test_a_folder_that_cannot_be_created_is_an_error_for_the_disk(store: Store, no_folder: Path) -> None:
    with pytest.raises(DatasetError, match=r"cache=disk: no place for .*cache cannot be written .*cache_dir"):
        load(store, no_folder, "disk")


def test_the_device_receives_images_block_by_block(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory need not hold them all."""
    taken: list[tuple[int, int]] = []

    def allocate(key: str, shape: tuple[int, ...]) -> Write:
        assert (key, shape) == ("image", IMAGES.shape)
        return take

    def take(start: int, block: np.ndarray) -> None:
        np.testing.assert_array_equal(block, IMAGES[start : start + len(block)])
        taken.append((start, len(block)))

    monkeypatch.setattr(image_cache_file, "BLOCK_BYTES", 3000)
    options = ImageCacheOptions(mode="device", directory=tmp_path)
    cache = load_image_cache(store, FIELDS, options, device=DeviceMemory(NBYTES, allocate), say=None)
    assert cache.arrays == {}
    assert taken == [(start, 16) for start in range(0, 80, 16)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_images_on_a_gpu_are_those_of_the_store(store: Store) -> None:
    assert store.observation_spec is not None
    options = ImageCacheOptions(mode="device")
    images = load_image_tensors(store, store.observation_spec, options, device="cuda", say=None)
    assert images is not None
    assert images.tensors["image"].is_cuda
    np.testing.assert_array_equal(images.tensors["image"].cpu(), IMAGES)


def test_memory_that_is_too_small(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache, "available_memory", lambda: NBYTES - 1)
    with pytest.raises(DatasetError, match=r"cache=ram: no place for 0\.01 MB .*memory has 0\.01 MB free"):
        load(store, tmp_path / "cache", "ram")
    with pytest.raises(DatasetError, match=r"cache=device: no place for .*the device has 0\.01 MB free"):
        load(store, tmp_path / "cache", "device", device_free=NBYTES - 1)


def test_a_missing_device(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cache=device needs a GPU, but training runs on the CPU"):
        load(store, tmp_path / "cache", "device")


def test_options_that_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="cache=fast is unknown; choose one of auto, device, disk, ram"):
        ImageCacheOptions(mode="fast")
    with pytest.raises(ConfigurationError, match="cache_limit_gb=-1 must be at least 0"):
        ImageCacheOptions(limit_gb=-1)


def test_memory_is_known_here() -> None:
    assert 1e8 < image_cache.available_memory() <= psutil.virtual_memory().total


# Damage.


@pytest.fixture
def damaged(tmp_path: Path) -> Store:
    """Frames 12 to 15 and 32 to 35 are lost, so are episodes 0 and 1."""
    store = write_foreign(tmp_path / "damaged.zarr", IMAGES.astype(np.float32), LENGTHS)
    files = chunk_files(store, "img")
    files[3].unlink()
    files[8].write_bytes(b"")
    return open_foreign(store.path)


@pytest.mark.parametrize("mode", ["disk", "ram"])
def test_damage_is_an_error_with_the_frame(damaged: Store, tmp_path: Path, mode: str) -> None:
    with pytest.raises(DatasetError, match=r"episode 0, frame 12 of data/img .*3\.0\.0\.0 is missing"):
        load(damaged, tmp_path / "cache", mode)
    assert not list((tmp_path / "cache").glob("*")) if mode == "disk" else not (tmp_path / "cache").exists()


@pytest.mark.parametrize("mode", ["disk", "ram"])
def test_episodes_with_damage_are_left_out_and_reported(damaged: Store, tmp_path: Path, mode: str) -> None:
    for _ in range(2):  # built, then found
        cache = load(damaged, tmp_path / "cache", mode, skip_corrupt=True)
        assert list(cache.dropped) == [0, 1]
        dropped = "left out 2 of 3 episodes with frames that cannot be read: episode 0 (frame 12 of data/img"
        assert dropped in messages(cache)
        assert "episode 1 (frame 2 of data/img" in messages(cache)
        np.testing.assert_array_equal(cache.arrays["image"][40:], IMAGES[40:])
    if mode == "disk":
        with pytest.raises(
            DatasetError, match="episode 0, frame 12 of data/img"
        ):  # damage in a cached file is an error, too
            load(damaged, tmp_path / "cache", mode)
        (note,) = (tmp_path / "cache").glob("*.json")
        assert sorted(map(int, json.loads(note.read_text())["damaged"])) == [12, 13, 14, 15, 32, 33, 34, 35]


def test_nothing_is_left(tmp_path: Path) -> None:
    store = record(tmp_path / "demos.zarr", IMAGES, LENGTHS)
    for file in chunk_files(store, "image"):
        file.unlink()
    with pytest.raises(DatasetError, match=r"every episode of .* holds frames that cannot be read"):
        load(store, tmp_path / "cache", skip_corrupt=True)


def test_several_cameras(tmp_path: Path) -> None:
    store = record(tmp_path / "demos.zarr", IMAGES, LENGTHS)
    fields = {"image": FIELDS["image"], "again": FIELDS["image"]}
    renamed = Store(path=store.path, root=store.root, sources={"again": "image"})
    cache = load_image_cache(renamed, fields, ImageCacheOptions("disk", tmp_path / "cache"), say=None)
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1  # the same data
    for key in fields:
        np.testing.assert_array_equal(cache.arrays[key], IMAGES)


# Memory.


def test_private_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    """Reading every frame of 45 MB and of 450 MB, in batches, from a map whose pages are released."""
    grown = []
    for number, frames in enumerate((1600, 16000)):
        images = np.broadcast_to(smooth_images(1, (96, 98))[:, :, :98], (frames, 96, 98, 3))
        store = record(tmp_path / f"{number}.zarr", images, [100] * (frames // 100))
        assert store.observation_spec is not None
        options = ImageCacheOptions("disk", tmp_path / "cache")
        tensors = load_image_tensors(store, store.observation_spec, options, say=None)
        assert tensors is not None
        before, order = psutil.Process().memory_full_info().uss, torch.randperm(frames)
        highest = before
        for rows in order.view(-1, 64):
            assert tensors.read("image", rows[:, None], None).shape == (len(rows), 1, 96, 98, 3)
            highest = max(highest, psutil.Process().memory_full_info().uss)
        grown.append(highest - before)
    assert max(grown) < 300e6
