"""LeRobot data sets as they are written: the layout of real recordings, exact values and times, files of limited size."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.formats import lerobot_files, lerobot_layout
from flowchunk.datasets.formats.lerobot_writer import LeRobotWriter
from flowchunk.datasets.specs import ActionSpec, ObservationField, ObservationSpec
from tests.datasets.formats.episodes import (
    ACTIONS,
    LENGTHS,
    OBSERVATIONS,
    TASK_TEXTS,
    everything,
    interrupted,
    make_episode,
    shades,
    write,
)

FRAMES = sum(LENGTHS)
EPISODE = np.repeat(range(len(LENGTHS)), LENGTHS)
FRAME = np.concatenate([np.arange(length) for length in LENGTHS])
FRONT = "observation.images.front"


def read_json(path: Path, name: str) -> Any:
    return json.loads((path / "meta" / f"{name}.json").read_text())


def data_files(path: Path) -> list[Path]:
    return sorted((path / "data").rglob("*.parquet"))


def read_data(path: Path) -> pa.Table:
    return pa.concat_tables([pq.ParquetFile(file).read() for file in data_files(path)])


def read_episodes(path: Path) -> list[dict[str, Any]]:
    files = sorted((path / "meta" / "episodes").rglob("*.parquet"))
    return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]


def decode(file: Path) -> tuple[np.ndarray, list[float]]:
    """A video's images and their times in seconds."""
    with av.open(file) as container:
        frames = list(container.decode(video=0))
    return np.stack([frame.to_ndarray(format="rgb24") for frame in frames]), [float(frame.time) for frame in frames]


def column(path: Path, name: str) -> np.ndarray:
    return np.array(read_data(path).column(name).to_pylist())


# The layout. The expected values are those of LeRobot's own recordings (lerobot/pusht of version 3.0).


def test_info_describes_the_data_set(tmp_path: Path) -> None:
    info = read_json(write(LeRobotWriter, tmp_path / "set", robot_type="so100"), "info")
    features = info.pop("features")
    assert info == {
        "codebase_version": "v3.0",
        "robot_type": "so100",
        "total_episodes": 3,
        "total_frames": FRAMES,
        "total_tasks": 3,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": 10,
        "splits": {"train": "0:3"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    assert features.pop(FRONT) == {
        "dtype": "video",
        "shape": [16, 24, 3],
        "names": ["height", "width", "channels"],
        "info": {
            "video.height": 16,
            "video.width": 24,
            "video.codec": "h264",
            "video.pix_fmt": "yuv420p",
            "video.is_depth_map": False,
            "video.fps": 10,
            "video.channels": 3,
            "has_audio": False,
        },
    }
    assert features == {
        "observation.state": {"dtype": "float32", "shape": [3], "names": ["x", "y", "angle"]},
        "observation.gripper": {"dtype": "float32", "shape": [1], "names": ["width"]},
        "observation.force": {"dtype": "float32", "shape": [1], "names": None},
        "observation.grid": {"dtype": "float32", "shape": [2, 4], "names": None},
        "action": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        **{
            name: {"dtype": "int64", "shape": [1], "names": None}
            for name in ("frame_index", "episode_index", "index", "task_index")
        },
    }


@pytest.mark.parametrize("codec", ["h264", "png"])
def test_columns_have_the_types_of_lerobots_recordings(tmp_path: Path, codec: str) -> None:
    (file,) = data_files(write(LeRobotWriter, tmp_path / "set", codec=codec))
    assert file == tmp_path / "set" / "data" / "chunk-000" / "file-000.parquet"
    schema = pq.ParquetFile(file).schema_arrow
    types = {field.name: str(field.type) for field in schema}
    images = {FRONT: "struct<bytes: binary, path: string>"} if codec == "png" else {}
    assert types == images | {
        "observation.state": "fixed_size_list<element: float>[3]",
        "observation.gripper": "float",
        "observation.force": "float",
        "observation.grid": "list<element: list<element: float>>",
        "action": "fixed_size_list<element: float>[2]",
        "timestamp": "float",
        **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64"),
    }
    number, integer = {"dtype": "float32", "_type": "Value"}, {"dtype": "int64", "_type": "Value"}
    described = {
        "observation.state": {"feature": number, "length": 3, "_type": "Sequence"},
        "observation.gripper": number,
        "observation.force": number,
        "observation.grid": {"shape": [2, 4], "dtype": "float32", "_type": "Array2D"},
        "action": {"feature": number, "length": 2, "_type": "Sequence"},
        "timestamp": number,
        **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), integer),
    } | ({FRONT: {"_type": "Image"}} if codec == "png" else {})
    assert json.loads(schema.metadata[b"huggingface"]) == {"info": {"features": described}}
    assert list(types) == [name for name in read_json(tmp_path / "set", "info")["features"] if name in types]


def test_episodes_have_the_columns_of_lerobots_recordings(tmp_path: Path) -> None:
    write(LeRobotWriter, tmp_path / "set")
    schema = pq.ParquetFile(tmp_path / "set" / "meta" / "episodes" / "chunk-000" / "file-000.parquet").schema_arrow
    types = {field.name: str(field.type) for field in schema}
    numbers, images = "list<element: double>", "list<element: list<element: list<element: double>>>"
    expected = {
        "episode_index": "int64",
        "data/chunk_index": "int64",
        "data/file_index": "int64",
        "dataset_from_index": "int64",
        "dataset_to_index": "int64",
        f"videos/{FRONT}/chunk_index": "int64",
        f"videos/{FRONT}/file_index": "int64",
        f"videos/{FRONT}/from_timestamp": "double",
        f"videos/{FRONT}/to_timestamp": "double",
        "tasks": "list<element: string>",
        "length": "int64",
        "stats/observation.state/min": numbers,
        "stats/observation.state/q99": numbers,
        "stats/observation.grid/mean": "list<element: list<element: double>>",
        "stats/action/std": numbers,
        "stats/action/count": "list<element: int64>",
        "stats/index/max": "list<element: int64>",
        "stats/index/mean": numbers,
        f"stats/{FRONT}/min": images,
        f"stats/{FRONT}/q01": images,
        f"stats/{FRONT}/count": "list<element: int64>",
        "meta/episodes/chunk_index": "int64",
        "meta/episodes/file_index": "int64",
    }
    assert expected.items() <= types.items()
    assert len(types) == 13 + 10 * len(read_json(tmp_path / "set", "info")["features"])
    described = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(described) == list(types)
    value = {"dtype": "float64", "_type": "Value"}
    assert described["length"] == {"dtype": "int64", "_type": "Value"}
    assert described["tasks"] == {"feature": {"dtype": "string", "_type": "Value"}, "_type": "Sequence"}
    assert described["stats/action/std"] == {"feature": value, "_type": "Sequence"}
    assert described["stats/observation.grid/mean"]["feature"] == {"feature": value, "_type": "Sequence"}


def test_tasks_are_a_table_of_pandas(tmp_path: Path) -> None:
    table = pq.ParquetFile(write(LeRobotWriter, tmp_path / "set") / "meta" / "tasks.parquet").read()
    assert table.to_pydict() == {"task_index": [0, 1, 2], "__index_level_0__": ["push", "pull", ""]}
    assert [str(kind) for kind in table.schema.types] == ["int64", "string"]
    pandas = json.loads(table.schema.metadata[b"pandas"])
    assert pandas["index_columns"] == ["__index_level_0__"]
    assert [entry["field_name"] for entry in pandas["columns"]] == ["task_index", "__index_level_0__"]


def test_the_specs_are_kept_beside_what_lerobot_reads(tmp_path: Path) -> None:
    kept = read_json(write(LeRobotWriter, tmp_path / "set"), "flowchunk")
    assert kept["format_version"] == 1
    assert ObservationSpec.from_json(kept["observation_spec"]) == OBSERVATIONS
    assert ActionSpec.from_json(kept["action_spec"]) == ACTIONS
    keys = ("state", "gripper", "force", "grid")
    assert kept["features"] == {key: f"observation.{key}" for key in keys} | {"front": FRONT, "action": "action"}


# Values.


@pytest.mark.parametrize("options", [{}, {"data_file_mb": 0.001}])
def test_values_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    monkeypatch.setattr(lerobot_files, "ROWS_PER_GROUP", 4)
    path, expected = write(LeRobotWriter, tmp_path / "set", **options), everything()
    for key, values in expected.observations.items():
        if key != "front":
            np.testing.assert_array_equal(column(path, f"observation.{key}"), values.squeeze())
    np.testing.assert_array_equal(column(path, "action"), expected.actions)
    np.testing.assert_array_equal(column(path, "index"), np.arange(FRAMES))
    np.testing.assert_array_equal(column(path, "episode_index"), EPISODE)
    np.testing.assert_array_equal(column(path, "frame_index"), FRAME)
    np.testing.assert_array_equal(column(path, "timestamp"), (FRAME / 10).astype(np.float32))
    texts = np.array(["push", "pull", ""])
    assert texts[column(path, "task_index")].tolist() == TASK_TEXTS


def test_without_tasks_every_frame_has_the_empty_task(tmp_path: Path) -> None:
    path = write(LeRobotWriter, tmp_path / "set", tasks=None)
    assert pq.ParquetFile(path / "meta" / "tasks.parquet").read().column(1).to_pylist() == [""]
    assert column(path, "task_index").tolist() == [0] * FRAMES
    assert [row["tasks"] for row in read_episodes(path)] == [[""]] * 3


def test_episodes_are_described(tmp_path: Path) -> None:
    rows = read_episodes(write(LeRobotWriter, tmp_path / "set"))
    ends = np.cumsum(LENGTHS).tolist()
    assert [row["episode_index"] for row in rows] == [0, 1, 2]
    assert [row["length"] for row in rows] == list(LENGTHS)
    assert [row["dataset_from_index"] for row in rows] == [0, *ends[:-1]]
    assert [row["dataset_to_index"] for row in rows] == ends
    assert [row["tasks"] for row in rows] == [["push"], ["pull"], ["push", ""]]
    assert [row[f"videos/{FRONT}/from_timestamp"] for row in rows] == [0, 5 / 10, 6 / 10]
    assert [row[f"videos/{FRONT}/to_timestamp"] for row in rows] == [5 / 10, 6 / 10, 15 / 10]
    assert [row["stats/action/max"] for row in rows] == [[4.5, 8], [5.5, 10], [14.5, 28]]
    assert [row["stats/observation.gripper/min"] for row in rows] == [[0], [2.5], [3]]
    assert [row[f"stats/{FRONT}/count"] for row in rows] == [[length] for length in LENGTHS]


def test_times_do_not_drift(tmp_path: Path) -> None:
    """A running sum of 1/30 would differ from the product after a few episodes."""
    spec, actions = ObservationSpec({"front": OBSERVATIONS.fields["front"]}), replace(ACTIONS, control_hz=30.0)
    with LeRobotWriter(tmp_path / "set", observation_spec=spec, action_spec=actions) as writer:
        for _ in range(120):
            writer.add_episode({"front": np.zeros((1, 16, 24, 3), np.uint8)}, np.zeros((1, 2)))
    rows = read_episodes(tmp_path / "set")
    assert [row[f"videos/{FRONT}/from_timestamp"] for row in rows] == [k / 30 for k in range(120)]
    assert [row[f"videos/{FRONT}/to_timestamp"] for row in rows] == [(k + 1) / 30 for k in range(120)]


@pytest.mark.parametrize("options", [{}, {"data_file_mb": 0.001}])
def test_statistics_are_those_of_all_frames(tmp_path: Path, options: dict[str, Any]) -> None:
    stats = read_json(write(LeRobotWriter, tmp_path / "set", **options), "stats")
    assert list(stats) == list(read_json(tmp_path / "set", "info")["features"])
    actions = everything().actions
    np.testing.assert_allclose(stats["action"]["mean"], actions.mean(axis=0))
    np.testing.assert_allclose(stats["action"]["std"], actions.std(axis=0))
    np.testing.assert_allclose(stats["action"]["q90"], np.quantile(actions, 0.9, axis=0), rtol=1e-6)
    assert stats["action"]["count"] == [FRAMES]
    np.testing.assert_allclose(stats["observation.grid"]["max"], everything().observations["grid"].max(axis=0))
    assert (stats["index"]["min"], stats["index"]["max"]) == ([0], [FRAMES - 1])
    images = everything().observations["front"] / 255
    np.testing.assert_allclose(stats[FRONT]["mean"], images.mean(axis=(0, 1, 2)).reshape(3, 1, 1))
    assert stats[FRONT]["count"] == [FRAMES]


# Images.


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_images_come_back_in_their_places(tmp_path: Path, codec: str) -> None:
    path = write(LeRobotWriter, tmp_path / "set", codec=codec)
    assert FRONT not in read_data(path).column_names
    images, times = decode(path / "videos" / FRONT / "chunk-000" / "file-000.mp4")
    expected = everything().observations["front"].astype(int)
    assert times == pytest.approx([k / 10 for k in range(FRAMES)])
    errors = np.abs(images[:, None] - expected[None]).mean(axis=(2, 3, 4))  # between any two frames
    np.testing.assert_array_equal(errors.argmin(axis=1), np.arange(FRAMES))
    assert np.diag(errors).max() < 2


def test_png_is_lossless(tmp_path: Path) -> None:
    path = write(LeRobotWriter, tmp_path / "set", codec="png")
    cells = read_data(path).column(FRONT).to_pylist()
    images = np.stack([np.asarray(Image.open(io.BytesIO(cell["bytes"]), formats=["PNG"])) for cell in cells])
    np.testing.assert_array_equal(images, everything().observations["front"])
    info = read_json(path, "info")
    assert info["video_path"] is None
    assert info["features"][FRONT] == {"dtype": "image", "shape": [16, 24, 3], "names": ["height", "width", "channels"]}
    assert not (path / "videos").exists()


def test_files_of_limited_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lerobot_layout, "FILES_PER_CHUNK", 2)
    monkeypatch.setattr(lerobot_files, "EPISODES_PER_GROUP", 2)
    path = write(LeRobotWriter, tmp_path / "set", data_file_mb=0, video_file_mb=0)
    places = [(0, 0), (0, 1), (1, 0)]
    names = [f"chunk-{chunk:03d}/file-{file:03d}" for chunk, file in places]
    assert [str(file.relative_to(path / "data")) for file in data_files(path)] == [f"{name}.parquet" for name in names]
    videos = path / "videos" / FRONT
    assert [len(decode(videos / f"{name}.mp4")[0]) for name in names] == list(LENGTHS)
    rows = read_episodes(path)
    for folder in ("data", f"videos/{FRONT}"):
        assert [(row[f"{folder}/chunk_index"], row[f"{folder}/file_index"]) for row in rows] == places
    assert [row[f"videos/{FRONT}/from_timestamp"] for row in rows] == [0, 0, 0]
    assert [row["meta/episodes/file_index"] for row in rows] == [0, 0, 1]
    for number, row in enumerate(rows):
        file = path / "meta" / "episodes" / "chunk-000" / f"file-{row['meta/episodes/file_index']:03d}.parquet"
        assert number in pq.ParquetFile(file).read().column("episode_index").to_pylist()


@pytest.mark.parametrize(("codec", "folder", "limit_mb"), [("h264", f"videos/{FRONT}", 0.045), ("png", "data", 0.15)])
def test_files_are_filled_up_to_their_size(tmp_path: Path, codec: str, folder: str, limit_mb: float) -> None:
    """Episodes of noise, of about 31 kB as video and 110 kB as images."""
    spec, rng = ObservationSpec({"front": OBSERVATIONS.fields["front"]}), np.random.default_rng(0)
    limits: dict[str, Any] = {"data_file_mb": limit_mb, "video_file_mb": limit_mb}
    with LeRobotWriter(tmp_path / "set", observation_spec=spec, action_spec=ACTIONS, codec=codec, **limits) as writer:
        for _ in range(4):
            images = rng.integers(0, 256, (90, 16, 24, 3), dtype=np.uint8)
            writer.add_episode({"front": images}, np.zeros((90, 2)))
    rows = read_episodes(tmp_path / "set")
    assert [row[f"{folder}/file_index"] for row in rows] == [0, 0, 1, 1]
    assert len(list((tmp_path / "set" / folder).rglob("file-*"))) == 2
    if codec == "h264":
        assert [row[f"{folder}/from_timestamp"] for row in rows] == [0, 9, 0, 9]


def test_odd_sizes(tmp_path: Path) -> None:
    spec = ObservationSpec({"front": ObservationField((15, 23, 3), camera="front")})
    images = shades(np.arange(6))[:, :15, :23]
    with LeRobotWriter(tmp_path / "set", observation_spec=spec, action_spec=ACTIONS) as writer:
        writer.add_episode({"front": images}, np.zeros((6, 2)))
    decoded, _ = decode(tmp_path / "set" / "videos" / FRONT / "chunk-000" / "file-000.mp4")
    assert decoded.shape == images.shape
    assert np.abs(decoded - images.astype(int)).mean() < 2
    assert read_json(tmp_path / "set", "info")["features"][FRONT]["info"]["video.pix_fmt"] == "yuv444p"


# Episodes that are interrupted.


def test_after_an_interrupted_episode_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its images may be in a video already, from which nothing can be removed."""
    episode = make_episode(0, 3)

    def write_on() -> None:
        with LeRobotWriter(tmp_path / "set", observation_spec=OBSERVATIONS, action_spec=ACTIONS) as writer:
            writer.add_episode(episode.observations, episode.actions)
            with monkeypatch.context() as patch:
                patch.setattr(writer, "_write", interrupted(writer._write))
                with pytest.raises(KeyboardInterrupt):
                    writer.add_episode(episode.observations, episode.actions)
            with pytest.raises(DatasetError, match="cannot be completed, because an episode could not be written"):
                writer.add_episode(episode.observations, episode.actions)

    with pytest.raises(DatasetError, match="was not written, because an episode could not be written"):
        write_on()
    assert list(tmp_path.iterdir()) == []
