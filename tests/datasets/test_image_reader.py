"""Images of any store: what is read, what is refused, and which frames are reported when files are damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.formats.zarr_store import Store
from flowchunk.datasets.image_reader import ImageReader
from flowchunk.datasets.specs import ObservationField
from tests.datasets.image_stores import OBSERVATIONS, chunk_files, open_foreign, record, smooth_images, write_foreign

FIELD = OBSERVATIONS.fields["image"]
LENGTHS = (30, 10, 40)
PUSHT = Path(__file__).parents[3] / "shared" / "data" / "pusht" / "pusht_cchi_v7_replay.zarr"


def find(store: Store, field: ObservationField = FIELD) -> ImageReader:
    return ImageReader.find(store, "image", field)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.float16])
@pytest.mark.parametrize("zarr_format", [2, 3])
@given(start=st.integers(0, 20), stop=st.integers(0, 20))
@settings(max_examples=6, deadline=None)
def test_floats_that_are_integers_are_images(
    tmp_path_factory: pytest.TempPathFactory, dtype: Any, zarr_format: int, start: int, stop: int
) -> None:
    path = tmp_path_factory.getbasetemp() / f"foreign_{np.dtype(dtype)}_{zarr_format}.zarr"
    images = smooth_images(20)
    store = (
        open_foreign(path)
        if path.exists()
        else write_foreign(path, images.astype(dtype), [20], zarr_format=zarr_format)
    )
    start, stop = min(start, stop), max(start, stop)
    read = find(store).read(start, stop)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, images[start:stop])


def test_a_part_of_the_rows_of_pixels(tmp_path: Path) -> None:
    write_foreign(tmp_path / "demos.zarr", smooth_images(8), [8])
    store = Store.open(tmp_path / "demos.zarr", sources={"image": "img[:2]"})
    top = find(store, ObservationField((2, 8, 3), camera="front"))
    np.testing.assert_array_equal(top.read(0, 8), smooth_images(8)[:, :2])


@pytest.mark.skipif(not PUSHT.exists(), reason=f"needs {PUSHT}")
def test_the_frames_of_the_human_demonstrations() -> None:
    store = Store.open(PUSHT, sources={"image": "img"})
    frames = find(store, ObservationField((96, 96, 3), camera="top")).read(1000, 1200)
    assert frames.shape == (200, 96, 96, 3)
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(frames, store.read("image", 1000, 1200))


# Arrays that do not match the specification.


def test_a_camera_that_is_missing(tmp_path: Path) -> None:
    write_foreign(tmp_path / "demos.zarr", smooth_images(8), [8])
    store = Store.open(tmp_path / "demos.zarr", sources={"image": "wrist"})
    with pytest.raises(
        DatasetError, match=r"camera 'front' is missing: .* no array data/wrist \(wanted for 'image'\), only .*'img'"
    ):
        find(store)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((12, 16, 3), "images of 12x16 pixels, but the task expects 6x8; .*resize"),
        ((8, 6, 3), "images of 8x6 pixels, but the task expects 6x8"),
        ((3, 6, 8), r"channel order \(channels, height, width\), frames of shape \(3, 6, 8\), .*moveaxis"),
        ((3, 12, 16), "channel order"),
        ((6, 8), r"frames of shape \(6, 8\), but the task expects images \(height, width, RGB\), \(6, 8, 3\)"),
        ((6, 8, 4), r"frames of shape \(6, 8, 4\)"),
    ],
)
def test_another_size_or_channel_order(tmp_path: Path, shape: tuple[int, ...], message: str) -> None:
    store = write_foreign(tmp_path / "demos.zarr", np.zeros((8, *shape), np.uint8), [8])
    with pytest.raises(DatasetError, match=f"data/img in .* {message}"):
        find(store)


@pytest.mark.parametrize("dtype", [np.uint16, np.int8, np.int64, np.bool_])
def test_another_type(tmp_path: Path, dtype: Any) -> None:
    store = write_foreign(tmp_path / "demos.zarr", np.zeros((8, *FIELD.shape), dtype), [8])
    with pytest.raises(
        DatasetError, match=f"data/img in .* holds {np.dtype(dtype)}, but images are uint8 from 0 to 255"
    ):
        find(store)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images / 255, r"holds fractions \(from 0.* to .*multiply them by 255"),
        (lambda images: (images > 100).astype(float), r"holds no value above 1 .*multiply them by 255"),
        (lambda images: images - 128.0, "holds values below 0 or above 255 .*convert them to that range"),
        (lambda images: images * 2.0, r"holds values below 0 or above 255 .* integers from 0 to 255"),
        (lambda images: images + 0.5, "holds fractions .*convert them"),
        (lambda images: images * np.nan, "holds NaN or infinity"),
    ],
)
def test_another_range_of_values(tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], message: str) -> None:
    images = smooth_images(12).astype(np.float32)
    images[7:] = change(images[7:])
    if "no value" in message:
        images = change(images)
    store = write_foreign(tmp_path / "demos.zarr", images, [5, 7])
    place = "episode 0, frame 0" if "no value" in message else "episode 1, frame 2"
    with pytest.raises(DatasetError, match=f"{place} of data/img in .* {message}"):
        find(store).read(0, 12)


def test_black_floats_are_images(tmp_path: Path) -> None:
    store = write_foreign(tmp_path / "demos.zarr", np.zeros((8, *FIELD.shape), np.float32), [8], zarr_format=3)
    np.testing.assert_array_equal(find(store).read(0, 8), 0)


@pytest.mark.parametrize("dark", [slice(0, 4), slice(4, 8)])
def test_a_block_of_zeros_and_ones_is_dark_if_other_blocks_are_brighter(tmp_path: Path, dark: slice) -> None:
    images = smooth_images(8).astype(np.float32)
    images[dark] = images[dark] > 100
    store = write_foreign(tmp_path / "demos.zarr", images, [5, 3])
    source = find(store)
    for rows in (dark, slice(0, 8)):
        np.testing.assert_array_equal(source.read(rows.start, rows.stop), images[rows])
    np.testing.assert_array_equal(np.concatenate([source.read(k, k + 4) for k in (0, 4)]), images)


# Damage.


def flip_byte(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 0xFF
    file.write_bytes(bytes(content))


def cut(file: Path, _: int) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def delete(file: Path, _: int) -> None:
    file.unlink()


def empty(file: Path, _: int) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("jpeg", [None, 90])
@pytest.mark.parametrize("harm", [cut, delete, empty])
def test_a_lost_shard_is_named_and_nothing_else_is_lost(
    tmp_path: Path, jpeg: int | None, harm: Callable[[Path, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowchunk.datasets.recorder.SHARD_FRAMES", 32)
    store = record(tmp_path / "demos.zarr", smooth_images(80), LENGTHS, jpeg=jpeg)
    whole = store.read("image")
    harm(chunk_files(store, "image")[1], 0)  # frames 32 to 63
    source = find(Store.open(store.path))
    with pytest.raises(DatasetError, match=r"episode 1, frame 2 of data/image in .* cannot be read: .*--skip-corrupt"):
        source.read(0, 80)
    frames, damaged = source.read_undamaged(0, 80)
    assert sorted(damaged) == list(range(32, 64))
    intact = np.r_[0:32, 64:80]
    np.testing.assert_array_equal(frames[intact], whole[intact])
    np.testing.assert_array_equal(frames[32:64], 0)
    np.testing.assert_array_equal(source.read(64, 80), whole[64:])


@pytest.mark.parametrize(("jpeg", "lost"), [(None, range(16)), (90, range(1))])
def test_a_flipped_byte_loses_a_chunk(tmp_path: Path, jpeg: int | None, lost: range) -> None:
    store = record(tmp_path / "demos.zarr", smooth_images(80), LENGTHS, jpeg=jpeg)
    (file,) = chunk_files(store, "image")
    flip_byte(file, 40)  # in the first chunk
    source = find(Store.open(store.path))
    with pytest.raises(
        DatasetError, match=r"episode 0, frame 0 of data/image in .* cannot be read: .*([Cc]hecksum|corruption)"
    ):
        source.read(0, 80)
    assert sorted(source.read_undamaged(0, 80)[1]) == list(lost)


@given(at=st.floats(0, 1, exclude_max=True), jpeg=st.sampled_from([None, 90]))
@settings(max_examples=30, deadline=None)
def test_no_flipped_byte_goes_unnoticed(tmp_path_factory: pytest.TempPathFactory, at: float, jpeg: int | None) -> None:
    path = tmp_path_factory.mktemp("stores") / "demos.zarr"
    store = record(path, smooth_images(40), [40], jpeg=jpeg)
    whole = store.read("image")
    (file,) = chunk_files(store, "image")
    flip_byte(file, int(at * file.stat().st_size))
    frames, damaged = find(Store.open(path)).read_undamaged(0, 40)
    assert damaged
    intact = [frame for frame in range(40) if frame not in damaged]
    np.testing.assert_array_equal(frames[intact], whole[intact])


def test_a_chunk_that_is_missing_in_its_shard_is_damage_and_not_black(tmp_path: Path) -> None:
    """By default, zarr leaves out a chunk of zeros, and reads a missing chunk as zeros."""
    store = record(tmp_path / "demos.zarr", smooth_images(80), LENGTHS)
    zarr.open_array(store.path, path="data/image", mode="r+")[32:48] = 0
    source = find(Store.open(store.path))
    assert sorted(source.read_undamaged(0, 80)[1]) == list(range(32, 48))
    with pytest.raises(DatasetError, match=r"episode 1, frame 2 .* row 32 is missing in its shard"):
        source.read(30, 60)
    with pytest.raises(DatasetError, match="row 32 is missing in its shard"):
        Store.open(store.path).read("image")
    np.testing.assert_array_equal(source.read(48, 80), smooth_images(80)[48:])


@pytest.mark.parametrize("harm", [cut, delete, empty])
def test_a_damaged_chunk_of_a_foreign_store(tmp_path: Path, harm: Callable[[Path, int], None]) -> None:
    images = smooth_images(80)
    store = write_foreign(tmp_path / "demos.zarr", images.astype(np.float32), LENGTHS)
    harm(chunk_files(store, "img")[8], 0)  # frames 32 to 35
    source = find(open_foreign(store.path))
    with pytest.raises(DatasetError, match=r"episode 1, frame 2 of data/img in .* cannot be read"):
        source.read(0, 80)
    frames, damaged = source.read_undamaged(0, 80)
    assert sorted(damaged) == [32, 33, 34, 35]
    np.testing.assert_array_equal(frames[36:], images[36:])
