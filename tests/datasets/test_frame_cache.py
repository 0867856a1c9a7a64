"""The frame cache: what does not fit, what is damaged, and its memory."""

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

from flowchunk.datasets import frame_cache, frame_file
from flowchunk.datasets.errors import ConfigurationError, DatasetError
from flowchunk.datasets.frame_cache import DeviceMemory, FrameCacheOptions, Write, load_frames
from flowchunk.datasets.store import Store
from flowchunk.datasets.windows import load_pictures
from tests.datasets.frame_caches import FIELDS, LENGTHS, NBYTES, PICTURES, change_a_frame, load, said
from tests.datasets.picture_stores import chunk_files, open_others, record, smooth_pictures, write_others


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return record(tmp_path / "demos.zarr", PICTURES, LENGTHS)


@pytest.mark.parametrize("mode", ["disk", "ram"])
def test_the_frames_are_those_of_the_store(store: Store, tmp_path: Path, mode: str) -> None:
    frames = load(store, tmp_path / "cache", mode)
    assert frames.place == mode
    assert f"{NBYTES / 1e6:.2f} MB of pictures" in said(frames)
    assert frames.arrays["image"].dtype == np.uint8
    np.testing.assert_array_equal(frames.arrays["image"], PICTURES)


def test_a_store_of_others_gives_the_same_frames(tmp_path: Path) -> None:
    others = write_others(tmp_path / "others.zarr", PICTURES.astype(np.float32), LENGTHS)
    np.testing.assert_array_equal(load(others, tmp_path / "cache").arrays["image"], PICTURES)


def test_frames_are_expanded_in_blocks(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_file, "BLOCK_BYTES", 3000)
    np.testing.assert_array_equal(load(store, tmp_path / "cache").arrays["image"], PICTURES)


def test_the_directory_is_that_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert FrameCacheOptions().folder == tmp_path / "home" / ".cache" / "flowchunk"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert FrameCacheOptions().folder == tmp_path / "xdg" / "flowchunk"
    assert FrameCacheOptions(directory="~/mine").folder == tmp_path / "home" / "mine"


# Where they fit.


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
def test_auto_says_what_it_chose_and_why(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device_free: int | None,
    limit_gb: float,
    memory: int,
    place: str,
    why: str,
) -> None:
    monkeypatch.setattr(frame_cache, "available_memory", lambda: memory)
    frames = load(store, tmp_path / "cache", "auto", device_free=device_free, limit_gb=limit_gb)
    assert frames.place == place
    np.testing.assert_array_equal(frames.arrays["image"], PICTURES)
    assert re.search(f"cache={place} .*{why}", said(frames)), said(frames)


def test_no_place_at_all(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_cache, "available_memory", lambda: NBYTES)
    with pytest.raises(
        DatasetError,
        match=r"cache=auto: no place for 0\.01 MB of pictures: .*cache holds 0\.00 MB and needs 0\.01 MB more, but "
        r"cache_limit_gb=0 .*memory has 0\.01 MB free, of which 1/2 may be used\. .*cache_dir .*cache=ram",
    ):
        load(store, tmp_path / "cache", "auto", limit_gb=0)


def test_the_limit_counts_what_is_there_already(store: Store, tmp_path: Path) -> None:
    load(store, tmp_path / "cache")
    load(store, tmp_path / "cache", limit_gb=0)  # nothing new is written
    other = change_a_frame(store)
    with pytest.raises(DatasetError, match=r"holds 0\.01 MB and needs 0\.01 MB more, but cache_limit_gb=1.5e-05"):
        load(other, tmp_path / "cache", limit_gb=1.5e-5)


def test_a_disk_that_is_full(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(DatasetError, match=r"the disk of .*cache has 0\.00 MB free and 0\.01 MB are needed"):
        load(store, tmp_path / "cache")


@pytest.fixture
def no_folder(tmp_path: Path) -> Path:
    """A cache folder that cannot be made."""
    (tmp_path / "file").write_text("in the way")
    return tmp_path / "file" / "cache"


def test_a_folder_that_cannot_be_made_is_no_obstacle_to_memory(store: Store, no_folder: Path) -> None:
    frames = load(store, no_folder, "auto")
    assert frames.place == "ram"
    np.testing.assert_array_equal(frames.arrays["image"], PICTURES)
    assert re.search(f"cache=ram .*{re.escape(str(no_folder))} cannot be written .*; they fit", said(frames))


def test_a_folder_that_cannot_be_made_is_an_error_for_the_disk(store: Store, no_folder: Path) -> None:
    with pytest.raises(DatasetError, match=r"cache=disk: no place for .*cache cannot be written .*cache_dir"):
        load(store, no_folder, "disk")


def test_the_device_takes_frames_block_by_block(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory need not hold them all."""
    taken: list[tuple[int, int]] = []

    def allocate(key: str, shape: tuple[int, ...]) -> Write:
        assert (key, shape) == ("image", PICTURES.shape)
        return take

    def take(start: int, block: np.ndarray) -> None:
        np.testing.assert_array_equal(block, PICTURES[start : start + len(block)])
        taken.append((start, len(block)))

    monkeypatch.setattr(frame_file, "BLOCK_BYTES", 3000)
    options = FrameCacheOptions(mode="device", directory=tmp_path)
    frames = load_frames(store, FIELDS, options, device=DeviceMemory(NBYTES, allocate), say=None)
    assert frames.arrays == {}
    assert taken == [(start, 16) for start in range(0, 80, 16)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pictures_on_a_gpu_are_those_of_the_store(store: Store) -> None:
    assert store.observation_spec is not None
    options = FrameCacheOptions(mode="device")
    pictures = load_pictures(store, store.observation_spec, options, device="cuda", say=None)
    assert pictures is not None
    assert pictures.tensors["image"].is_cuda
    np.testing.assert_array_equal(pictures.tensors["image"].cpu(), PICTURES)


def test_memory_that_is_too_small(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_cache, "available_memory", lambda: NBYTES - 1)
    with pytest.raises(DatasetError, match=r"cache=ram: no place for 0\.01 MB .*memory has 0\.01 MB free"):
        load(store, tmp_path / "cache", "ram")
    with pytest.raises(DatasetError, match=r"cache=device: no place for .*the device has 0\.01 MB free"):
        load(store, tmp_path / "cache", "device", device_free=NBYTES - 1)


def test_a_device_that_is_not_there(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cache=device needs a GPU, but training runs on the CPU"):
        load(store, tmp_path / "cache", "device")


def test_options_that_there_are_not() -> None:
    with pytest.raises(ConfigurationError, match="cache=fast: unknown; there are auto, device, disk, ram"):
        FrameCacheOptions(mode="fast")
    with pytest.raises(ConfigurationError, match="cache_limit_gb=-1 must be at least 0"):
        FrameCacheOptions(limit_gb=-1)


def test_memory_is_known_here() -> None:
    assert 1e8 < frame_cache.available_memory() <= psutil.virtual_memory().total


# Damage.


@pytest.fixture
def damaged(tmp_path: Path) -> Store:
    """Frames 12 to 15 and 32 to 35 are lost, so are episodes 0 and 1."""
    store = write_others(tmp_path / "damaged.zarr", PICTURES.astype(np.float32), LENGTHS)
    files = chunk_files(store, "img")
    files[3].unlink()
    files[8].write_bytes(b"")
    return open_others(store.path)


@pytest.mark.parametrize("mode", ["disk", "ram"])
def test_damage_is_an_error_that_names_the_frame(damaged: Store, tmp_path: Path, mode: str) -> None:
    with pytest.raises(DatasetError, match=r"episode 0, frame 12 of data/img .*3\.0\.0\.0 is missing"):
        load(damaged, tmp_path / "cache", mode)
    assert not list((tmp_path / "cache").glob("*")) if mode == "disk" else not (tmp_path / "cache").exists()


@pytest.mark.parametrize("mode", ["disk", "ram"])
def test_episodes_with_damage_are_left_out_and_that_is_said(damaged: Store, tmp_path: Path, mode: str) -> None:
    for _ in range(2):  # built, and found
        frames = load(damaged, tmp_path / "cache", mode, skip_corrupt=True)
        assert list(frames.dropped) == [0, 1]
        assert "left out 2 of 3 episodes with frames that cannot be read: episode 0 (frame 12 of data/img" in said(
            frames
        )
        assert "episode 1 (frame 2 of data/img" in said(frames)
        np.testing.assert_array_equal(frames.arrays["image"][40:], PICTURES[40:])
    if mode == "disk":
        with pytest.raises(DatasetError, match="episode 0, frame 12 of data/img"):  # what is found, is not trusted
            load(damaged, tmp_path / "cache", mode)
        (note,) = (tmp_path / "cache").glob("*.json")
        assert sorted(map(int, json.loads(note.read_text())["damaged"])) == [12, 13, 14, 15, 32, 33, 34, 35]


def test_nothing_is_left(tmp_path: Path) -> None:
    store = record(tmp_path / "demos.zarr", PICTURES, LENGTHS)
    for file in chunk_files(store, "image"):
        file.unlink()
    with pytest.raises(DatasetError, match=r"every episode of .* holds frames that cannot be read"):
        load(store, tmp_path / "cache", skip_corrupt=True)


def test_several_cameras(tmp_path: Path) -> None:
    store = record(tmp_path / "demos.zarr", PICTURES, LENGTHS)
    fields = {"image": FIELDS["image"], "again": FIELDS["image"]}
    both = Store(store.path, store.root, sources={"again": "image"})
    frames = load_frames(both, fields, FrameCacheOptions("disk", tmp_path / "cache"), say=None)
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1  # the same data
    for key in fields:
        np.testing.assert_array_equal(frames.arrays[key], PICTURES)


# Memory.


def test_private_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    """Reading every frame of 45 MB and of 450 MB, in batches, from a map whose pages are given back."""
    grown = []
    for number, frames in enumerate((1600, 16000)):
        pictures = np.broadcast_to(smooth_pictures(1, (96, 98))[:, :, :98], (frames, 96, 98, 3))
        store = record(tmp_path / f"{number}.zarr", pictures, [100] * (frames // 100))
        assert store.observation_spec is not None
        options = FrameCacheOptions("disk", tmp_path / "cache")
        pictures_of = load_pictures(store, store.observation_spec, options, say=None)
        assert pictures_of is not None
        before, order = psutil.Process().memory_full_info().uss, torch.randperm(frames)
        highest = before
        for rows in order.view(-1, 64):
            assert pictures_of.read("image", rows[:, None], None).shape == (len(rows), 1, 96, 98, 3)
            highest = max(highest, psutil.Process().memory_full_info().uss)
        grown.append(highest - before)
    assert max(grown) < 300e6
