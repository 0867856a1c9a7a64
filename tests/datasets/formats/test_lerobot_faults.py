"""LeRobot data sets that are damaged or contradict themselves: one message that says where, and what can be done."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flowchunk.datasets.derived_specs import SpecOptions, derive_specs
from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.formats import open_dataset
from flowchunk.datasets.image_cache import ImageCacheOptions, load_image_cache
from tests.datasets.formats.damage import edit_info, read_everything, truncate
from tests.datasets.formats.foreign import (
    FRAMES,
    IMAGES,
    SIZE,
    STATES,
    write_lerobot_2,
    write_lerobot_3,
    write_video,
)

CAMERA = "observation.images.front"


@pytest.mark.parametrize("write", [write_lerobot_2, write_lerobot_3])
@pytest.mark.parametrize("how", ["truncated", "missing"])
def test_a_parquet_file_that_is(how: str, write: Callable[[Path], Path], tmp_path: Path) -> None:
    path = write(tmp_path)
    file = sorted((path / "data").rglob("*.parquet"))[-1]
    truncate(file) if how == "truncated" else file.unlink()
    with pytest.raises(DatasetError, match=rf"{file.name} cannot be read .*missing or truncated; copy"):
        open_dataset(path)


@pytest.mark.parametrize("file", ["info.json", "episodes.jsonl", "tasks.jsonl"])
def test_a_truncated_description(file: str, tmp_path: Path) -> None:
    path = write_lerobot_2(tmp_path)
    truncate(path / "meta" / file, 0.4)
    with pytest.raises(DatasetError, match=rf"{file} cannot be read .*copy the data set again"):
        open_dataset(path)


def test_a_description_of_episodes_without_its_end(tmp_path: Path) -> None:
    """LeRobot keeps its writers open for a whole recording, so a killed one leaves a file without a footer."""
    path = write_lerobot_3(tmp_path)
    truncate(path / "meta" / "episodes" / "chunk-000" / "file-000.parquet", 0.9)
    with pytest.raises(DatasetError, match=r"file-000.parquet cannot be read .*truncated"):
        open_dataset(path)


@pytest.mark.parametrize("write", [write_lerobot_2, write_lerobot_3])
def test_a_truncated_video(write: Callable[[Path], Path], tmp_path: Path) -> None:
    path = write(tmp_path)
    truncate(sorted((path / "videos").rglob("*.mp4"))[0])
    with pytest.raises(DatasetError, match=r"not a video that can be read .*dataset.exclude=\[KEY\]"):
        read_everything(path)


def test_a_damaged_video_costs_only_its_episode(tmp_path: Path) -> None:
    path = write_lerobot_2(tmp_path)
    truncate(sorted((path / "videos").rglob("*.mp4"))[1])
    said: list[str] = []
    source = open_dataset(path)
    fields = derive_specs(source).observation_spec.images
    with pytest.raises(DatasetError, match=r"episode 1, frame 0 .*--skip-corrupt"):
        load_image_cache(source, fields, ImageCacheOptions(mode="ram"), say=said.append)
    cache = load_image_cache(source, fields, ImageCacheOptions(mode="ram", skip_corrupt=True), say=said.append)
    assert {*cache.dropped} == {1}
    assert np.abs(cache.arrays["front"][:7].astype(int) - IMAGES[:7]).mean() < 3


@pytest.mark.parametrize("write", [write_lerobot_2, write_lerobot_3])
def test_missing_videos(write: Callable[[Path], Path], tmp_path: Path) -> None:
    path = write(tmp_path)
    shutil.rmtree(path / "videos")
    source = open_dataset(path)
    with pytest.raises(
        DatasetError, match=r"videos are missing, such as videos/.*leave it out: dataset.exclude=\[front\]"
    ):
        derive_specs(source)
    assert {*derive_specs(source, SpecOptions(exclude=["front"])).observation_spec.fields} == {"state"}
    np.testing.assert_array_equal(source.read("state"), STATES)


def test_a_file_that_is_no_video(tmp_path: Path) -> None:
    path = write_lerobot_2(tmp_path)
    sorted((path / "videos").rglob("*.mp4"))[0].write_bytes(b"this is text, and no video at all" * 50)
    with pytest.raises(DatasetError, match="not a video that can be read"):
        read_everything(path)


def test_a_description_that_contradicts_the_files_is_noted(tmp_path: Path) -> None:
    path = write_lerobot_2(tmp_path)
    edit_info(path, lambda info: info.update(total_episodes=100, total_frames=7, splits={"train": "0:100", "val": "x"}))
    notes = " ".join(open_dataset(path).description.notes)
    assert "total_episodes 100, but there are 3" in notes
    assert f"total_frames 7, but there are {FRAMES}" in notes
    assert "train 0:100, but there are 3 episodes; it is ignored" in notes
    assert "val 'x', which is no START:STOP" in notes
    assert open_dataset(path).validation_episodes is None


def test_rows_that_are_not_as_many_as_the_episode_is_long(tmp_path: Path) -> None:
    path = write_lerobot_2(tmp_path)
    file = path / "meta" / "episodes.jsonl"
    file.write_text(file.read_text().replace('"length": 4', '"length": 5'))
    with pytest.raises(DatasetError, match=r"episode_000001.parquet has 4 rows, but .*counts 5 for episode 1"):
        open_dataset(path)


def test_rows_of_a_shared_file_that_are_not_as_many_as_its_episodes(tmp_path: Path) -> None:
    path = write_lerobot_3(tmp_path)
    file = path / "data" / "chunk-000" / "file-000.parquet"
    pq.write_table(pq.read_table(file).slice(1), file)
    with pytest.raises(DatasetError, match=r"file-000.parquet has 10 rows, but meta/episodes counts 11"):
        open_dataset(path)


@pytest.mark.parametrize("frames", [3, 5])
def test_a_video_with_another_number_of_frames(frames: int, tmp_path: Path) -> None:
    path = write_lerobot_2(tmp_path)
    write_video(sorted((path / "videos").rglob("*.mp4"))[1], IMAGES[:frames])
    with pytest.raises(DatasetError, match=rf"has {frames} frames, but its episodes have 4 rows.*exclude=\[front\]"):
        read_everything(path)


def test_times_that_drift_are_reported_and_not_used(tmp_path: Path) -> None:
    """Reported of real data: 33 ms after 30 episodes. Frames are counted, so the images stay those of their rows."""
    source = open_dataset(write_lerobot_3(tmp_path, drift=0.08))
    assert "observation.images.front: stated times of episodes are up to 160 ms off; frames are counted" in " ".join(
        source.description.notes
    )
    assert np.abs(source.read("front").astype(int) - IMAGES).mean() < 3
    assert not open_dataset(write_lerobot_3(tmp_path / "exact")).description.notes


def test_images_of_another_size_than_described(tmp_path: Path) -> None:
    path = write_lerobot_2(tmp_path)
    edit_info(path, lambda info: info["features"][CAMERA].update(shape=[16, 48, 3]))
    with pytest.raises(DatasetError, match=r"has images of 32x48 pixels, but meta/info.json says 16x48"):
        read_everything(path)


def test_a_shape_with_the_channels_first_is_understood(tmp_path: Path) -> None:
    path = write_lerobot_2(tmp_path)
    edit_info(
        path, lambda info: info["features"][CAMERA].update(shape=[3, *SIZE], names=["channels", "height", "width"])
    )
    assert open_dataset(path).shape("front") == (*SIZE, 3)


def test_encoded_images_of_another_size_than_described(tmp_path: Path) -> None:
    path = write_lerobot_3(tmp_path, codec="png")
    edit_info(path, lambda info: info["features"][CAMERA].update(shape=[16, 48, 3]))
    with pytest.raises(DatasetError, match=r"image of shape \(32, 48, 3\), but meta/info.json says \(16, 48, 3\)"):
        read_everything(path)


def test_an_encoded_image_that_is_damaged(tmp_path: Path) -> None:
    path = write_lerobot_3(tmp_path, codec="png")
    file = path / "data" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(file)
    values = table[CAMERA].to_pylist()
    values[8]["bytes"] = values[8]["bytes"][:40]
    pq.write_table(table.set_column(table.column_names.index(CAMERA), CAMERA, pa.array(values)), file)
    with pytest.raises(DatasetError, match=r"episode 1, frame 1 .*cannot be decoded"):
        read_everything(path)


def test_a_feature_that_is_nowhere(tmp_path: Path) -> None:
    path = write_lerobot_2(tmp_path)
    edit_info(path, lambda info: info["features"].update({"observation.force": {"dtype": "float32", "shape": [6]}}))
    with pytest.raises(DatasetError, match=r"parquet files do not hold it; leave it out: dataset.exclude=\[force\]"):
        read_everything(path)


@pytest.mark.parametrize("version", ["v1.6", "v4.0", ""])
def test_an_unknown_version(version: str, tmp_path: Path) -> None:
    path = write_lerobot_2(tmp_path)
    edit_info(path, lambda info: info.update(codebase_version=version))
    with pytest.raises(DatasetError, match=r"version (v1.6|v4.0|unknown), but v2.0, v2.1, v3.0 can be read"):
        open_dataset(path)


@pytest.mark.parametrize("name", ["fps", "features", "data_path"])
def test_a_description_without(name: str, tmp_path: Path) -> None:
    path = write_lerobot_2(tmp_path)
    edit_info(path, lambda info: info.pop(name))
    with pytest.raises(DatasetError, match=f"has no '{name}'"):
        open_dataset(path)


def test_ragged_rows(tmp_path: Path) -> None:
    path = write_lerobot_2(tmp_path)
    file = path / "data" / "chunk-000" / "episode_000001.parquet"
    table = pq.read_table(file)
    ragged = pa.array([[0.0], [1.0, 2.0], [], [3.0]])
    pq.write_table(table.set_column(table.column_names.index("action"), "action", ragged), file)
    with pytest.raises(DatasetError, match=r"action in .*episode_000001.parquet is ragged"):
        read_everything(path)


def test_missing_values(tmp_path: Path) -> None:
    path = write_lerobot_2(tmp_path)
    file = path / "data" / "chunk-000" / "episode_000000.parquet"
    table = pq.read_table(file)
    holes = pa.array([[0.0], [None], [1.0], [2.0], [3.0], [4.0], [5.0]], pa.list_(pa.float32()))
    pq.write_table(table.set_column(table.column_names.index("action"), "action", holes), file)
    with pytest.raises(DatasetError, match=r"action in .* has 1 missing value"):
        read_everything(path)


def test_episodes_that_are_not_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """Rows would be those of other episodes."""
    path = write_lerobot_3(tmp_path, codec="png")
    file = path / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(file)
    for column, values in (("data/file_index", [0, 1, 0]), ("dataset_from_index", [4, 0, 11])):
        others = table.drop_columns([column]) if column in table.column_names else table
        pq.write_table(others.append_column(column, pa.array(values)), file)
        with pytest.raises(DatasetError, match="not stored in the order of their numbers"):
            open_dataset(path)


def test_videos_whose_episodes_are_in_another_order(tmp_path: Path) -> None:
    path = write_lerobot_3(tmp_path)
    file = path / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    table, column = pq.read_table(file), f"videos/{CAMERA}/from_timestamp"
    pq.write_table(table.drop_columns([column]).append_column(column, pa.array([0.4, 0.0, 0.0])), file)
    with pytest.raises(DatasetError, match=r"are not in the order of their numbers in file-000\.mp4"):
        open_dataset(path)


def test_tasks_that_are_not_there(tmp_path: Path) -> None:
    path = write_lerobot_2(tmp_path)
    file = path / "data" / "chunk-000" / "episode_000000.parquet"
    table = pq.read_table(file)
    for index in (-1, 2):
        place = table.column_names.index("task_index")
        pq.write_table(table.set_column(place, "task_index", pa.array([index] * 7)), file)
        with pytest.raises(DatasetError, match=r"task indices from .* but the texts of 2 tasks"):
            open_dataset(path).read("task")


def test_features_that_are_not_numbers_are_left_out(tmp_path: Path) -> None:
    path = write_lerobot_2(tmp_path)
    edit_info(path, lambda info: info["features"].update({"say": {"dtype": "language", "shape": [1]}}))
    assert "say" not in open_dataset(path).arrays


def test_rows_of_another_shape_than_described(tmp_path: Path) -> None:
    path = write_lerobot_2(tmp_path)
    edit_info(path, lambda info: info["features"]["observation.state"].update(shape=[3]))
    with pytest.raises(DatasetError, match=r"rows of shape \(2,\), but meta/info.json says \(3,\)"):
        open_dataset(path).read("state")


def test_names_given_with_their_places(tmp_path: Path) -> None:
    path = write_lerobot_2(tmp_path)
    edit_info(path, lambda info: info["features"]["observation.state"].update(names={"y": 1, "x": 0}))
    assert open_dataset(path).description.observations["state"].names == ("x", "y")


def test_keys_that_would_be_the_same_stay_apart(tmp_path: Path) -> None:
    path = write_lerobot_2(tmp_path)
    more = {
        "observation.a.b": {"dtype": "float32", "shape": [1]},
        "observation.a_b": {"dtype": "float32", "shape": [1]},
    }
    edit_info(path, lambda info: info["features"].update(more))
    assert {"observation.a.b", "observation.a_b"} < {*open_dataset(path).description.observations}
