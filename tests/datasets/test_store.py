"""Stores: recordings come back, foreign stores are read, and damage is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from flowchunk.datasets import recorder
from flowchunk.datasets.errors import DatasetError, FlowchunkError
from flowchunk.datasets.formats.zarr_store import Store
from flowchunk.datasets.recorder import StoreWriter
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec

OBSERVATIONS = ObservationSpec({"state": ObservationField((3,)), "image": ObservationField((4, 4, 3), camera="front")})
ACTIONS = ActionSpec(tuple(ActionDimension(name, "m", "world") for name in "xy"), control_hz=10.0)
LENGTHS = (5, 1, 7, 12)
FRAMES = sum(LENGTHS)
ENDS = np.cumsum(LENGTHS)


def frames(key: str, length: int = FRAMES) -> np.ndarray:
    """Values that differ between frames and columns."""
    shape = {"state": (3,), "image": (4, 4, 3), "action": (2,)}[key]
    values = np.arange(1, 1 + length * int(np.prod(shape))).reshape(length, *shape)
    return (values % 251).astype(np.uint8) if key == "image" else values.astype(np.float32)


def write_foreign(path: Path, zarr_format: Any, *, ends: Any = ENDS, **arrays: np.ndarray) -> Path:
    """A store as diffusion_policy writes them, in chunks of 4 frames, with only zarr."""
    root = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    for name, values in ({"state": frames("state"), "action": frames("action")} | arrays).items():
        root.create_array(f"data/{name}", data=values, chunks=(4, *values.shape[1:]))
    root.create_array("meta/episode_ends", data=np.asarray(ends))
    return path


def episodes() -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
    cuts = np.cumsum(LENGTHS)[:-1]
    parts = (np.split(frames(key), cuts) for key in ("state", "image", "action"))
    return [({"state": state, "image": image}, action) for state, image, action in zip(*parts, strict=True)]


def record(path: Path, content: list[tuple[dict[str, np.ndarray], np.ndarray]] | None = None) -> Path:
    with StoreWriter(path, observation_spec=OBSERVATIONS, action_spec=ACTIONS) as writer:
        for observations, actions in episodes() if content is None else content:
            writer.add_episode(observations, actions)
    return path


def chunk_files(path: Path, name: str) -> list[Path]:
    """The chunks of an array in either format."""
    folder = path / "data" / name
    return sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(("z", ".")))


each_format = pytest.mark.parametrize("zarr_format", [2, 3])


def test_a_store_recorded_with_the_old_name_of_the_coordinate_frame_is_read(tmp_path: Path) -> None:
    path = record(tmp_path / "demos.zarr")
    root = zarr.open_group(path, mode="r+")
    attributes: Any = root.attrs["flowchunk"]
    for dimension in attributes["action_spec"]["dimensions"]:
        dimension["frame"] = dimension.pop("coordinate_frame")
    root.attrs["flowchunk"] = attributes
    assert Store.open(path).action_spec == ACTIONS


# Foreign stores.


@each_format
def test_foreign_stores_are_read(tmp_path: Path, zarr_format: int) -> None:
    store = Store.open(write_foreign(tmp_path / "demos.zarr", zarr_format, image=frames("image")))
    assert store.num_frames == FRAMES
    assert store.keys == ("action", "image", "state")
    assert (store.observation_spec, store.action_spec) == (None, None)
    np.testing.assert_array_equal(store.episode_ends, [5, 6, 13, 25])
    np.testing.assert_array_equal(store.episode_starts, [0, 5, 6, 13])
    np.testing.assert_array_equal(store.episode_lengths, LENGTHS)
    for key in ("state", "action", "image"):
        np.testing.assert_array_equal(store.read(key), frames(key))
        assert store.read(key).dtype == frames(key).dtype
        assert store.shape(key) == frames(key).shape[1:]


@each_format
@given(start=st.integers(0, FRAMES), stop=st.integers(0, FRAMES), size=st.integers(1, 30))
@settings(max_examples=10, deadline=None)
def test_any_slice_and_any_blocks(
    tmp_path_factory: pytest.TempPathFactory, zarr_format: int, start: int, stop: int, size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / f"slices_{zarr_format}.zarr"
    store = Store.open(path if path.exists() else write_foreign(path, zarr_format))
    np.testing.assert_array_equal(store.read("state", start, stop), frames("state")[start:stop])
    blocks = list(store.blocks("state", frames=size))
    assert max(map(len, blocks)) <= size
    np.testing.assert_array_equal(np.concatenate(blocks), frames("state"))


@each_format
def test_sources_rename_and_slice(tmp_path: Path, zarr_format: int) -> None:
    path = write_foreign(tmp_path / "demos.zarr", zarr_format, img=frames("image"))
    sources = {"position": "state[:2]", "rest": "state[1:]", "middle": "state[1:2]", "image": "img"}
    store = Store.open(path, sources=sources)
    assert {"position", "rest", "middle", "image", "action"} <= set(store.keys)
    for key, columns in (("position", slice(2)), ("rest", slice(1, None)), ("middle", slice(1, 2))):
        np.testing.assert_array_equal(store.read(key), frames("state")[:, columns])
        assert store.shape(key) == frames("state")[:, columns].shape[1:]
    np.testing.assert_array_equal(store.read("image", 3, 9), frames("image")[3:9])


def test_sources_of_images_slice_rows(tmp_path: Path) -> None:
    path = write_foreign(tmp_path / "demos.zarr", 3, image=frames("image"))
    store = Store.open(path, sources={"top": "image[:1]"})
    assert store.shape("top") == (1, 4, 3)
    np.testing.assert_array_equal(store.read("top"), frames("image")[:, :1])


@pytest.mark.parametrize("source", ["state[2]", "state[a:b]", "state[", "state[0:1:2]", "state[:2]x"])
def test_sources_that_are_no_slices_are_refused(tmp_path: Path, source: str) -> None:
    path = write_foreign(tmp_path / "demos.zarr", 3)
    with pytest.raises(FlowchunkError, match="state"):
        Store.open(path, sources={"position": source}).read("position")


@each_format
def test_reading_is_lazy(tmp_path: Path, zarr_format: int) -> None:
    path = write_foreign(tmp_path / "demos.zarr", zarr_format)
    store = Store.open(path)
    first, *_, last = chunk_files(path, "state")
    last.write_bytes(b"\x00damaged")
    np.testing.assert_array_equal(store.read("state", 0, 4), frames("state")[:4])
    first.write_bytes(b"\x00damaged")
    with pytest.raises(DatasetError, match="cannot be read: a chunk is damaged"):
        store.read("state", 0, 4)


# Flowchunk's stores.


def test_recordings_come_back(tmp_path: Path) -> None:
    store = Store.open(record(tmp_path / "deeper" / "demos.zarr"))
    assert store.observation_spec == OBSERVATIONS
    assert store.action_spec == ACTIONS
    np.testing.assert_array_equal(store.episode_lengths, LENGTHS)
    for key in ("state", "action", "image"):
        np.testing.assert_array_equal(store.read(key), frames(key))
        assert store.read(key).dtype == frames(key).dtype
    assert [file.name for file in (tmp_path / "deeper").iterdir()] == ["demos.zarr"]


def test_sources_are_ignored_for_flowchunks_stores(tmp_path: Path) -> None:
    store = Store.open(record(tmp_path / "demos.zarr"), sources={"state": "image"})
    np.testing.assert_array_equal(store.read("state"), frames("state"))


def test_the_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    record(Path("~/demos.zarr"))
    assert Store.open("~/demos.zarr").num_frames == FRAMES


@pytest.mark.parametrize("chunk_frames", [1, 4, 6, 100])
def test_chunks_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_frames: int) -> None:
    monkeypatch.setattr(recorder, "CHUNK_FRAMES", chunk_frames)
    store = Store.open(record(tmp_path / "demos.zarr"))
    for key in ("state", "action", "image"):
        np.testing.assert_array_equal(store.read(key), frames(key))


def test_frames_that_are_all_zero_are_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "CHUNK_FRAMES", 4)
    observations: dict[str, np.ndarray] = {"state": np.zeros((8, 3)), "image": np.zeros((8, 4, 4, 3), np.uint8)}
    content = [(observations, np.zeros((8, 2)))] * 3
    store = Store.open(record(tmp_path / "demos.zarr", content))
    for key in ("state", "action", "image"):
        np.testing.assert_array_equal(store.read(key), 0)
        assert len(store.read(key)) == 24


def test_integers_first_and_fractions_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "CHUNK_FRAMES", 4)
    content = [
        ({"state": np.full((4, 3), value), "image": np.zeros((4, 4, 4, 3), np.uint8)}, np.full((4, 2), value))
        for value in (1, 0.5)
    ]
    store = Store.open(record(tmp_path / "demos.zarr", content))
    np.testing.assert_array_equal(store.read("action")[:, 0], [1.0] * 4 + [0.5] * 4)


# What the writer refuses.


def test_recordings_are_never_overwritten(tmp_path: Path) -> None:
    record(tmp_path / "demos.zarr")
    with pytest.raises(DatasetError, match=r"demos\.zarr exists already; choose another path"):
        record(tmp_path / "demos.zarr")
    (tmp_path / "file").write_text("precious")
    with pytest.raises(DatasetError, match="exists already"):
        record(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"
    assert Store.open(tmp_path / "demos.zarr").num_frames == FRAMES


def test_nothing_recorded_is_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nothing was recorded, so .*demos\.zarr was not written"):
        record(tmp_path / "demos.zarr", [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": np.zeros((5, 4))}, r"an episode of 5 actions needs observations .* but got .*'state': \(5, 4\)"),
        ({"state": np.zeros((4, 3))}, r"but got .*'state': \(4, 3\)"),
        ({"state": None}, "needs observations .*'state'"),
        ({"more": np.zeros((5, 1))}, r"but got .*'more': \(5, 1\)"),
        ({"action": np.zeros((5, 3))}, r"actions must be \(T, 2\), but are \(5, 3\)"),
        ({"action": np.zeros((6, 2)), "image": None}, "an episode has 5 observations and 6 actions"),
        ({"action": np.zeros((0, 2)), "image": None}, "an episode has no actions: it is empty"),
    ],
)
def test_episodes_of_wrong_shapes_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    observations, actions = episodes()[0]
    changed = observations | {"action": actions} | change
    changed = {key: values for key, values in changed.items() if values is not None}
    with pytest.raises(DatasetError, match=message):
        record(tmp_path / "demos.zarr", [({k: v for k, v in changed.items() if k != "action"}, changed["action"])])
    assert list(tmp_path.iterdir()) == []


# What cannot be read.


def test_no_such_path(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no data set at .*nowhere: the path does not exist; correct it"):
        Store.open(tmp_path / "nowhere")


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file.zarr").write_text("hello")
    with pytest.raises(DatasetError, match="is not a data set"):
        Store.open(tmp_path / "file.zarr")


def test_a_folder_of_something_else_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DatasetError, match=r"is not a data set: .*expected a zarr folder with data/action"):
        Store.open(tmp_path)


@each_format
def test_an_array_alone_is_no_store(tmp_path: Path, zarr_format: Any) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=np.ones(3), zarr_format=zarr_format)
    with pytest.raises(DatasetError, match="is not a data set"):
        Store.open(tmp_path / "a.zarr")


@each_format
@pytest.mark.parametrize("missing", ["data", "meta", "meta/episode_ends"])
def test_a_part_that_is_missing(tmp_path: Path, zarr_format: int, missing: str) -> None:
    path = write_foreign(tmp_path / "demos.zarr", zarr_format)
    shutil.rmtree(path / missing)
    with pytest.raises(DatasetError, match="is not a data set: expected a zarr folder"):
        Store.open(path)


@each_format
def test_data_that_is_no_folder(tmp_path: Path, zarr_format: Any) -> None:
    root = zarr.open_group(tmp_path / "demos.zarr", mode="w", zarr_format=zarr_format)
    root.create_array("data", data=np.ones((5, 2)))
    root.create_array("meta/episode_ends", data=np.array([5]))
    with pytest.raises(DatasetError, match="is not a data set: expected a zarr folder"):
        Store.open(tmp_path / "demos.zarr")


@each_format
def test_an_array_that_is_missing(tmp_path: Path, zarr_format: int) -> None:
    store = Store.open(write_foreign(tmp_path / "demos.zarr", zarr_format), sources={"image": "img"})
    with pytest.raises(
        DatasetError, match=r"has no array data/img \(wanted for 'image'\); it has \['action', 'state'\]"
    ):
        store.read("image")
    with pytest.raises(DatasetError, match="has no array data/keypoints"):
        store.shape("keypoints")


@each_format
def test_an_array_that_is_too_short(tmp_path: Path, zarr_format: int) -> None:
    store = Store.open(write_foreign(tmp_path / "demos.zarr", zarr_format, state=frames("state", FRAMES - 2)))
    with pytest.raises(
        DatasetError, match=r"data/state in .* is truncated: it has 23 frames, but meta/episode_ends counts 25"
    ):
        store.read("state", 0, 3)


@each_format
@pytest.mark.parametrize("rows", [FRAMES - 1, FRAMES + 3])
def test_actions_that_do_not_match_the_episodes(tmp_path: Path, zarr_format: int, rows: int) -> None:
    path = write_foreign(tmp_path / "demos.zarr", zarr_format, action=frames("action", rows))
    with pytest.raises(
        DatasetError, match=f"is inconsistent: meta/episode_ends counts {FRAMES} frames, but data/action has {rows}"
    ):
        Store.open(path)


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([], "must be a non-empty vector"),
        ([[5, 25]], r"must be a non-empty vector, but has shape \(1, 2\)"),
        ([5, 5, 25], "must increase from above 0, but entry 1 is 5 after 5"),
        ([13, 6, 25], "entry 1 is 6 after 13"),
        ([0, 25], "entry 0 is 0 after 0"),
        ([-3, 25], "entry 0 is -3 after 0"),
    ],
)
def test_episodes_that_do_not_add_up(tmp_path: Path, ends: Any, message: str) -> None:
    path = write_foreign(tmp_path / "demos.zarr", 3, ends=np.asarray(ends, dtype=np.int64))
    with pytest.raises(DatasetError, match=message):
        Store.open(path)


def foreign_v2(path: Path) -> Path:
    return write_foreign(path, 2)


each_whole_store = pytest.mark.parametrize("make", [foreign_v2, record])


@each_whole_store
@pytest.mark.parametrize("name", ["state", "action"])
def test_a_chunk_file_that_is_missing(tmp_path: Path, make: Callable[[Path], Path], name: str) -> None:
    path = make(tmp_path / "demos.zarr")
    store, files = Store.open(path), chunk_files(path, name)
    files[0].unlink()
    with pytest.raises(
        DatasetError, match=f"data/{name} in .* is incomplete: 1 of {len(files)} chunk files are missing"
    ):
        store.read(name)


@each_format
@pytest.mark.parametrize("damage", ["truncated", "empty", "overwritten"])
def test_a_chunk_file_that_is_damaged(tmp_path: Path, zarr_format: int, damage: str) -> None:
    path = write_foreign(tmp_path / "demos.zarr", zarr_format)
    file = chunk_files(path, "state")[1]
    content = file.read_bytes()
    file.write_bytes(
        {"truncated": content[: len(content) // 2], "empty": b"", "overwritten": b"#" * len(content)}[damage]
    )
    store = Store.open(path)
    with pytest.raises(DatasetError, match=r"state in .* cannot be read: a chunk is damaged \(.*\); copy the data set"):
        store.read("state")


@each_format
def test_episode_ends_that_are_damaged(tmp_path: Path, zarr_format: int) -> None:
    path = write_foreign(tmp_path / "demos.zarr", zarr_format)
    for file in (path / "meta" / "episode_ends").rglob("*"):
        if file.is_file() and not file.name.startswith(("z", ".")):
            file.write_bytes(b"#")
    with pytest.raises(DatasetError, match=r"episode_ends in .* cannot be read: a chunk is damaged"):
        Store.open(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("row", "episode", "frame"), [(0, 0, 0), (5, 1, 0), (6, 2, 0), (12, 2, 6), (24, 3, 11)])
def test_numbers_that_are_not_finite_are_named(
    tmp_path: Path, value: float, row: int, episode: int, frame: int
) -> None:
    state = frames("state")
    state[row, 1] = value
    state[-1, 2] = value
    store = Store.open(write_foreign(tmp_path / "demos.zarr", 3, state=state))
    message = rf"NaN or infinity, first in episode {episode}, frame {frame} \(row {row}\)"
    with pytest.raises(DatasetError, match=message):
        list(store.blocks("state", frames=4))
