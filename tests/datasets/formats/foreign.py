"""Small data sets in every format that is read, written by hand with the formats' own libraries.

All hold the same three episodes: frame k of the data set has state (k, -k), action (k + 0.5,) and a smooth image.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
import zarr
from PIL import Image

LENGTHS = (7, 4, 9)
ENDS = np.cumsum(LENGTHS)
FRAMES = int(ENDS[-1])
HZ = 10
SIZE = (32, 48)
TASKS = ("push", "pull")
ROWS = np.arange(FRAMES, dtype=np.float32)
STATES = np.stack([ROWS, -ROWS], axis=1)
ACTIONS = ROWS[:, None] + np.float32(0.5)


def _images() -> np.ndarray:
    frame, row, column, channel = np.ogrid[:FRAMES, : SIZE[0], : SIZE[1], :3]
    return (128 + 50 * np.sin(frame / 3 + row / 9) + 50 * np.cos(column / 11 + channel)).astype(np.uint8)


IMAGES = _images()


def episodes() -> list[slice]:
    """The rows of each episode."""
    return [slice(end - length, end) for end, length in zip(ENDS.tolist(), LENGTHS, strict=True)]


def task_indices() -> np.ndarray:
    """(FRAMES,) the first episode shows "push", the others "pull"."""
    return (np.arange(FRAMES) >= LENGTHS[0]).astype(np.int64)


def write_zarr(folder: Path) -> Path:
    """diffusion_policy's layout, zarr format 2, with images in floats."""
    path = folder / "demos.zarr"
    root = zarr.open_group(path, mode="w", zarr_format=2)
    for name, values in (("img", IMAGES.astype(np.float32)), ("state", STATES), ("action", ACTIONS)):
        root.create_array(f"data/{name}", data=values, chunks=(4, *values.shape[1:]))
    root.create_array("meta/episode_ends", data=ENDS)
    return path


def write_zarr_zip(folder: Path) -> Path:
    """The same, in a zip file as UMI's data are."""
    source, path = write_zarr(folder), folder / "demos.zarr.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as content:
        for file in sorted(source.rglob("*")):
            if file.is_file():
                content.write(file, file.relative_to(source).as_posix())
    return path


def write_robomimic(folder: Path, *, dtype: type = np.float32) -> Path:
    """robomimic's HDF5, with more than ten episodes' worth of names so that their order is by number."""
    path = folder / "demos.hdf5"
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        env_kwargs = {"control_freq": HZ, "controller_configs": {"control_delta": False}}
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": env_kwargs})
        for number, rows in zip((2, 9, 10), episodes(), strict=True):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = rows.stop - rows.start
            demo["actions"], demo["obs/state"] = ACTIONS[rows].astype(dtype), STATES[rows].astype(dtype)
            demo["next_obs/state"], demo["rewards"] = STATES[rows], np.zeros(rows.stop - rows.start)
            demo.create_dataset("obs/front", data=IMAGES[rows], chunks=(1, *SIZE, 3), compression="gzip")
        file["mask/train"], file["mask/valid"] = [b"demo_2", b"demo_10"], [b"demo_9"]
    return path


def write_mapped_hdf5(folder: Path) -> Path:
    """A group per episode, in an HDF5 file of no known layout."""
    with h5py.File(folder / "trajectories.h5", "w") as file:
        for number, rows in zip((2, 9, 10), episodes(), strict=True):
            group = file.create_group(f"traj_{number}")
            group["act"], group["proprio"], group["rgb"] = ACTIONS[rows], STATES[rows], IMAGES[rows]
    return write_mapping(folder, data="trajectories.h5", episodes="traj_*")


def write_mapped_npz(folder: Path) -> Path:
    """All episodes in one npz file, with their ends."""
    np.savez(folder / "all.npz", act=ACTIONS, proprio=STATES, rgb=IMAGES, ends=ENDS)
    return write_mapping(folder, data="all.npz", episode_ends="ends")


def write_mapped_npz_files(folder: Path) -> Path:
    """One npz file per episode."""
    for number, rows in enumerate(episodes()):
        np.savez(folder / f"episode_{number}.npz", act=ACTIONS[rows], proprio=STATES[rows], rgb=IMAGES[rows])
    return write_mapping(folder, data="episode_*.npz")


def write_mapping(folder: Path, **entries: Any) -> Path:
    """The mapping of the three writers above."""
    path = folder / "mapping.yaml"
    described = {
        "control_hz": HZ,
        "action": {"array": "act", "names": ["a"], "unit": "m"},
        "observations": {
            "state": {"array": "proprio", "names": ["x", "y"], "units": ["m", "rad"], "wraps": ["y"]},
            "front": {"array": "rgb", "camera": "front"},
        },
    }
    path.write_text(yaml.safe_dump({**entries, **described}))
    return path


def write_video(path: Path, images: np.ndarray, *, codec: str = "h264") -> None:
    """A video with a key frame every five frames, at HZ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("SVT_LOG", "1")  # read once per process: errors only
    with av.open(str(path), "w") as container:
        options = {"crf": "12", "g": "5"} if codec == "h264" else {"crf": "12", "g": "5", "preset": "10"}
        stream: Any = container.add_stream("libx264" if codec == "h264" else "libsvtav1", rate=HZ, options=options)
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def write_lerobot_2(folder: Path, version: str = "v2.1") -> Path:
    """LeRobot 2.x: a parquet file and a video per episode."""
    path = folder / "lerobot"
    lines = []
    for number, rows in enumerate(episodes()):
        file = path / "data" / "chunk-000" / f"episode_{number:06d}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(_columns(rows, number)), file)
        video = path / "videos" / "chunk-000" / "observation.images.front" / f"episode_{number:06d}.mp4"
        write_video(video, IMAGES[rows])
        lines.append({"episode_index": number, "tasks": list(TASKS), "length": LENGTHS[number]})
    write_info(path, version, "video", "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet")
    (path / "meta" / "episodes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    tasks = [{"task_index": index, "task": task} for index, task in enumerate(TASKS)]
    (path / "meta" / "tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    return path


def write_lerobot_3(folder: Path, *, codec: str = "h264", drift: float = 0.0) -> Path:
    """LeRobot 3.0: two episodes in the first files and one in the second, images as video or, for codec "png", in parquet."""
    path = folder / "lerobot"
    in_file, rows_of_files = (0, 0, 1), (slice(0, int(ENDS[1])), slice(int(ENDS[1]), FRAMES))
    entries, started = [], {0: 0, 1: 0}
    for number, (file, length) in enumerate(zip(in_file, LENGTHS, strict=True)):
        entry = {"episode_index": number, "tasks": [TASKS[number > 0]], "length": length}
        entry |= {"data/chunk_index": 0, "data/file_index": file}
        start = started[file] / HZ + drift * number
        keys = {"chunk_index": 0, "file_index": file, "from_timestamp": start, "to_timestamp": start + length / HZ}
        entries.append(entry | {f"videos/observation.images.front/{key}": value for key, value in keys.items()})
        started[file] += length
    for file, rows in enumerate(rows_of_files):
        columns: dict[str, list[Any]] = {name: [] for name in _columns(slice(0, 0), 0)}
        for number, part in enumerate(episodes()):
            if rows.start <= part.start < rows.stop:
                for name, values in _columns(part, number).items():
                    columns[name] += values.to_pylist()
        table = pa.table({name: _typed(name, values) for name, values in columns.items()})
        if codec == "png":
            table = table.append_column("observation.images.front", _encoded(IMAGES[rows]))
        else:
            video = path / "videos" / "observation.images.front" / "chunk-000" / f"file-{file:03d}.mp4"
            write_video(video, IMAGES[rows], codec=codec)
        target = path / "data" / "chunk-000" / f"file-{file:03d}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, target)
    kind = "image" if codec == "png" else "video"
    write_info(path, "v3.0", kind, "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet")
    described = path / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    described.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(entries), described)
    tasks = pa.table({"task_index": [0, 1], "__index_level_0__": list(TASKS)})
    pq.write_table(tasks, path / "meta" / "tasks.parquet")
    return path


def write_info(path: Path, version: str, kind: str, data_path: str) -> None:
    """``meta/info.json``."""
    scalar = {"shape": [1], "names": None}
    features = {
        "observation.images.front": {"dtype": kind, "shape": [*SIZE, 3], "names": ["height", "width", "channel"]},
        "observation.state": {"dtype": "float32", "shape": [2], "names": {"motors": ["x", "y"]}},
        "action": {"dtype": "float32", "shape": [1], "names": ["a"]},
        "task_index": {"dtype": "int64", **scalar},
        "next.done": {"dtype": "bool", **scalar},
        "note": {"dtype": "string", **scalar},
    }
    videos = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    if version == "v3.0":
        videos = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    info = {"codebase_version": version, "fps": HZ, "total_episodes": 3, "total_frames": FRAMES, "chunks_size": 1000}
    info |= {
        "splits": {"train": "0:2", "val": "2:3"},
        "data_path": data_path,
        "video_path": videos,
        "features": features,
    }
    (path / "meta").mkdir(parents=True, exist_ok=True)
    (path / "meta" / "info.json").write_text(json.dumps(info))


def _columns(rows: slice, number: int) -> dict[str, Any]:
    count = rows.stop - rows.start
    return {
        "observation.state": _typed("observation.state", STATES[rows].tolist()),
        "action": _typed("action", ACTIONS[rows].tolist()),
        "task_index": pa.array(np.full(count, int(number > 0)), pa.int64()),
        "next.done": pa.array(np.arange(count) == count - 1),
        "note": pa.array(["nothing"] * count),
    }


def _typed(name: str, values: list[Any]) -> pa.Array:
    sizes = {"observation.state": pa.list_(pa.float32(), 2), "action": pa.list_(pa.float32())}  # both kinds of lists
    return pa.array(values, sizes.get(name))


def _encoded(images: np.ndarray) -> pa.Array:
    """PNG files as LeRobot stores them."""
    rows = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        rows.append({"bytes": file.getvalue(), "path": "frame.png"})
    return pa.array(rows)


FORMATS: dict[str, Callable[[Path], Path]] = {
    "zarr": write_zarr,
    "zarr.zip": write_zarr_zip,
    "robomimic": write_robomimic,
    "lerobot 2.0": lambda folder: write_lerobot_2(folder, "v2.0"),
    "lerobot 2.1": write_lerobot_2,
    "lerobot 3.0 h264": write_lerobot_3,
    "lerobot 3.0 av1": lambda folder: write_lerobot_3(folder, codec="av1"),
    "lerobot 3.0 png": lambda folder: write_lerobot_3(folder, codec="png"),
    "mapped hdf5": write_mapped_hdf5,
    "mapped npz": write_mapped_npz,
    "mapped npz files": write_mapped_npz_files,
}
LOSSY = ("lerobot 2.0", "lerobot 2.1", "lerobot 3.0 h264", "lerobot 3.0 av1")
