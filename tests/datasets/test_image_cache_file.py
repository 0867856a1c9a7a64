"""The file of decoded images: when it is reused, when it is rebuilt, and files larger than memory."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import zarr

from flowchunk.datasets import image_cache_file
from flowchunk.datasets.formats.zarr_store import Store
from flowchunk.datasets.image_cache import ImageCacheOptions, load_image_cache
from flowchunk.datasets.image_cache_file import ImageCacheFile
from flowchunk.datasets.image_reader import ImageReader
from tests.datasets.image_caches import FIELDS, IMAGES, LENGTHS, NBYTES, change_a_frame, is_new, load, messages
from tests.datasets.image_stores import chunk_files, record, smooth_images, write_foreign


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return record(tmp_path / "demos.zarr", IMAGES, LENGTHS)


def test_the_file_is_a_plain_npy_and_its_place_and_size_are_reported(store: Store, tmp_path: Path) -> None:
    cache = load(store, tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("*.npy")
    np.testing.assert_array_equal(np.load(file), IMAGES)
    assert f"{NBYTES / 1e6:.2f} MB are decoded to {file}" in messages(cache)


def test_the_file_cannot_be_written_through_the_array(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        load(store, tmp_path / "cache").arrays["image"][:] = 0
    np.testing.assert_array_equal(load(store, tmp_path / "cache").arrays["image"], IMAGES)


def test_a_file_larger_than_all_memory_opens(tmp_path: Path) -> None:
    frames = (psutil.virtual_memory().total + psutil.swap_memory().total) // IMAGES[0].nbytes + 1
    file = ImageCacheFile(tmp_path / "images.npy", (frames, *IMAGES.shape[1:]))
    with file.path.open("wb") as content:
        np.lib.format.write_array_header_1_0(content, {"descr": "|u1", "fortran_order": False, "shape": file.shape})
        content.truncate(content.tell() + file.nbytes)  # sparse: occupies no disk space
    array, _ = file.open()
    assert array.shape == file.shape
    np.testing.assert_array_equal(array[-1], 0)


# Reuse.


def test_the_same_data_at_another_path_are_found(store: Store, tmp_path: Path) -> None:
    assert is_new(load(store, tmp_path / "cache"))
    assert not is_new(load(store, tmp_path / "cache"))
    copy = shutil.copytree(store.path, tmp_path / "elsewhere" / "copy.zarr")
    assert not is_new(load(Store.open(copy), tmp_path / "cache"))


def compress(store: Store) -> Store:
    return record(store.path.parent / "changed.zarr", IMAGES, LENGTHS, jpeg=95)


def shorten(store: Store) -> Store:
    return record(store.path.parent / "changed.zarr", IMAGES[:70], [30, 40])


@pytest.mark.parametrize("change", [change_a_frame, compress, shorten])
def test_other_data_are_not_found(store: Store, tmp_path: Path, change: Callable[[Store], Store]) -> None:
    load(store, tmp_path / "cache")
    changed = change(store)
    cache = load(changed, tmp_path / "cache")
    assert is_new(cache)
    np.testing.assert_array_equal(cache.arrays["image"], changed.read("image"))


def test_other_columns_of_the_same_array_are_other_images(tmp_path: Path) -> None:
    images = smooth_images(20, (12, 8))
    path = write_foreign(tmp_path / "foreign.zarr", images.astype(np.float32), [20]).path
    for rows in (slice(2, 8), slice(4, 10)):
        part = Store.open(path, sources={"image": f"img[{rows.start}:{rows.stop}]"})
        np.testing.assert_array_equal(load(part, tmp_path / "cache").arrays["image"], images[:, rows])
        assert not is_new(load(part, tmp_path / "cache"))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are hashed."""
    names, digest = list[str](), hashlib.file_digest

    def note(file: Any, name: str) -> Any:
        names.append(file.name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", note)
    return names


def settle(store: Store) -> None:
    """Wait until the files are so old that no later change can have the same timestamp."""
    newest = max(file.stat().st_ctime for file in store.path.rglob("*"))
    time.sleep(max(0.0, newest + image_cache_file.SETTLED_S + 0.1 - time.time()))


def test_files_that_did_not_change_are_hashed_once(store: Store, tmp_path: Path, hashed: list[str]) -> None:
    settle(store)
    first = load(store, tmp_path / "cache")
    assert is_new(first)
    assert hashed
    hashed.clear()
    again = load(Store.open(store.path), tmp_path / "cache")
    assert not is_new(again)
    assert hashed == []
    np.testing.assert_array_equal(again.arrays["image"], IMAGES)


def test_files_of_which_only_the_content_changed_are_noticed(tmp_path: Path) -> None:
    """The size is unchanged, and the time of the last modification is restored."""
    path = tmp_path / "plain.zarr"
    root = zarr.open_group(path, mode="w", zarr_format=3)
    root.create_array("data/image", data=IMAGES, chunks=(80, *IMAGES.shape[1:]), compressors=None)
    root.create_array("meta/episode_ends", data=np.cumsum(LENGTHS))
    store = Store.open(path)
    settle(store)
    load(store, tmp_path / "cache")
    (file,) = chunk_files(store, "image")
    status, content = file.stat(), bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    read = load(Store.open(path), tmp_path / "cache").arrays["image"]
    assert read[-1, -1, -1, -1] == IMAGES[-1, -1, -1, -1] ^ 1


def test_files_that_are_still_changing_are_hashed_each_time(store: Store, tmp_path: Path, hashed: list[str]) -> None:
    future = time.time() + 3600
    for file in chunk_files(store, "image"):
        os.utime(file, (future, future))
    load(store, tmp_path / "cache")
    hashed.clear()
    load(store, tmp_path / "cache")
    assert hashed


def truncate_the_images(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def corrupt_the_header(file: Path) -> None:
    file.write_bytes(b"#" * file.stat().st_size)


def delete_the_note(file: Path) -> None:
    file.with_suffix(".json").unlink()


def corrupt_the_note(file: Path) -> None:
    file.with_suffix(".json").write_text("[")


@pytest.mark.parametrize(
    "harm", [truncate_the_images, corrupt_the_header, delete_the_note, corrupt_the_note, Path.unlink]
)
def test_an_incomplete_file_is_rebuilt(store: Store, tmp_path: Path, harm: Callable[[Path], None]) -> None:
    load(store, tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("*.npy")
    harm(file)
    cache = load(store, tmp_path / "cache")
    assert is_new(cache)
    np.testing.assert_array_equal(cache.arrays["image"], IMAGES)


def test_an_interrupted_build_leaves_nothing(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: ImageReader, start: int, stop: int) -> np.ndarray:
        if start:
            raise KeyboardInterrupt
        return IMAGES[start:stop]

    with monkeypatch.context() as patch:
        patch.setattr(image_cache_file, "BLOCK_BYTES", 3000)
        patch.setattr(ImageReader, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(store, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    assert is_new(load(store, tmp_path / "cache"))


def test_old_leftovers_of_killed_builds_are_removed(store: Store, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    old, young = tmp_path / "cache" / ".a.partial", tmp_path / "cache" / ".b.partial"
    for file in (old, young):
        file.write_bytes(b"")
    os.utime(old, (time.time() - 7200,) * 2)
    load(store, tmp_path / "cache")
    assert not old.exists()
    assert young.exists()


def build_in_another_process(path: Path, folder: Path) -> None:
    load_image_cache(Store.open(path), FIELDS, ImageCacheOptions(mode="disk", directory=folder), say=None)


def test_two_concurrent_processes_do_no_harm(store: Store, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")  # fast, and no relevant threads are running here
    arguments = (store.path, tmp_path / "cache")
    processes = [context.Process(target=build_in_another_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(file.suffix for file in (tmp_path / "cache").iterdir()) == [".json", ".npy"]
    cache = load(store, tmp_path / "cache")
    assert not is_new(cache)
    np.testing.assert_array_equal(cache.arrays["image"], IMAGES)
