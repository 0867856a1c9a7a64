"""Where a LeRobot data set keeps its episodes: files, rows and video frames, for the versions 2.0, 2.1 and 3.0.

Versions 2.x have a parquet file and a video per episode, version 3.0 has many episodes in each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flowchunk.datasets.errors import DatasetError

VERSIONS = ("v2.0", "v2.1", "v3.0")


@dataclass(frozen=True)
class VideoPart:
    """An episode's part of a video. first: the number of its first frame there. seconds: the stated time of that frame."""

    file: Path
    first: int
    seconds: float


@dataclass(frozen=True)
class Layout:
    """Files of a LeRobot data set.

    lengths: (E,) of the episodes. data: each parquet file with the number of its rows, in order. videos: for each key, a part
    per episode. tasks: texts by index. notes: contradictions between the files.
    """

    info: Mapping[str, Any]
    lengths: np.ndarray
    data: tuple[tuple[Path, int], ...]
    videos: Mapping[str, tuple[VideoPart, ...]]
    tasks: tuple[str, ...]
    notes: tuple[str, ...]


def read_layout(path: Path) -> Layout:
    """Read the files under ``meta``. Raises DatasetError if one is missing or damaged, or they do not fit together."""
    info = read_json(path / "meta" / "info.json")
    version = str(info.get("codebase_version", ""))
    if version not in VERSIONS:
        raise DatasetError(
            f"{path} is a LeRobot data set of version {version or 'unknown'}, but {', '.join(VERSIONS)} can be read; convert "
            "it by lerobot's own scripts"
        )
    for name in ("fps", "features", "data_path"):
        if name not in info:
            raise DatasetError(f"{path / 'meta' / 'info.json'} has no {name!r}; copy the data set again")
    return _version_3(path, info) if version == "v3.0" else _version_2(path, info)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises DatasetError."""
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file} cannot be read ({error}); copy the data set again") from error
    if not isinstance(value, dict):
        raise DatasetError(f"{file} does not hold a JSON object; copy the data set again")
    return value


def read_table(file: Path, columns: list[str] | None = None) -> Any:
    """A parquet table. Raises DatasetError if the file is missing or truncated."""
    try:
        return pq.read_table(file, columns=columns)
    except Exception as error:  # pyarrow raises exceptions of many types
        raise DatasetError(f"{file} {_UNREADABLE.format(_first_line(error))}") from error


def count_rows(file: Path) -> int:
    """The number of rows of a parquet file. Raises DatasetError if it is missing or truncated."""
    try:
        return int(pq.read_metadata(file).num_rows)
    except Exception as error:  # pyarrow raises exceptions of many types
        raise DatasetError(f"{file} {_UNREADABLE.format(_first_line(error))}") from error


def video_keys(info: Mapping[str, Any]) -> list[str]:
    """The features that are videos."""
    return [key for key, feature in info["features"].items() if feature.get("dtype") == "video"]


def _version_2(path: Path, info: Mapping[str, Any]) -> Layout:
    episodes = _read_lines(path / "meta" / "episodes.jsonl")
    if not episodes:
        raise DatasetError(f"{path / 'meta' / 'episodes.jsonl'} lists no episodes; copy the data set again")
    chunk_size = int(info.get("chunks_size") or 1000)
    data, videos = [], dict[str, list[VideoPart]]()
    for episode in episodes:
        index, length = int(episode["episode_index"]), int(episode["length"])
        names = {"episode_index": index, "episode_chunk": index // chunk_size}
        file = path / info["data_path"].format(**names)
        _require_rows(file, count_rows(file), length, f"meta/episodes.jsonl counts {length} for episode {index}")
        data.append((file, length))
        for key in video_keys(info):
            if not info.get("video_path"):
                raise DatasetError(f"meta/info.json in {path} has no video_path, but {key} is a video; copy it again")
            part = VideoPart(path / info["video_path"].format(video_key=key, **names), 0, 0.0)
            videos.setdefault(key, []).append(part)
    tasks = _by_index([(line["task_index"], line["task"]) for line in _read_lines(path / "meta" / "tasks.jsonl")])
    lengths = np.array([length for _, length in data], dtype=np.int64)
    return Layout(
        info, lengths, tuple(data), {key: tuple(parts) for key, parts in videos.items()}, tasks, _notes(info, lengths)
    )


def _version_3(path: Path, info: Mapping[str, Any]) -> Layout:
    files = sorted((path / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise DatasetError(f"{path / 'meta' / 'episodes'} holds no parquet file; copy the data set again")
    rows = sorted((row for file in files for row in _episode_rows(file)), key=lambda row: int(row["episode_index"]))
    lengths = np.array([row["length"] for row in rows], dtype=np.int64)
    in_files: dict[Path, int] = {}
    for row in rows:
        file = path / info["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        in_files[file] = in_files.get(file, 0) + int(row["length"])
    _require_order(path, rows, [row["data/chunk_index"] for row in rows], [row["data/file_index"] for row in rows])
    for file, wanted in in_files.items():
        _require_rows(file, count_rows(file), wanted, f"meta/episodes counts {wanted} for it")
    videos = {key: _video_parts(path, info, key, rows) for key in video_keys(info)}
    return Layout(info, lengths, tuple(in_files.items()), videos, _read_tasks(path), _notes(info, lengths))


def _read_tasks(path: Path) -> tuple[str, ...]:
    """The texts by index; they stand in the column that pandas made of its index, whose name varies."""
    file = path / "meta" / "tasks.parquet"
    if not file.exists():
        return ()
    table = read_table(file)
    texts = [name for name in table.column_names if _is_text(table.schema.field(name).type)]
    if "task_index" not in table.column_names or not texts:
        raise DatasetError(f"{file} needs a column task_index and one of texts, but has {table.column_names}")
    return _by_index(list(zip(table["task_index"].to_pylist(), table[texts[0]].to_pylist(), strict=True)))


def _require_order(path: Path, rows: list[dict[str, Any]], chunks: list[int], files: list[int]) -> None:
    """Raise DatasetError unless episodes follow one another in the files, in the order of their numbers."""
    places, starts = list(zip(chunks, files, strict=True)), np.cumsum([0, *(row["length"] for row in rows)])
    stated = [row.get("dataset_from_index", start) for row, start in zip(rows, starts, strict=False)]
    if places != sorted(places) or stated != starts[:-1].tolist():
        raise DatasetError(
            f"the episodes of {path} are not stored in the order of their numbers, as meta/episodes says; let lerobot write "
            "the data set anew"
        )


def _episode_rows(file: Path) -> list[dict[str, Any]]:
    try:
        names = pq.read_schema(file).names
    except Exception as error:  # pyarrow raises exceptions of many types
        raise DatasetError(f"{file} {_UNREADABLE.format(_first_line(error))}") from error
    rows: list[dict[str, Any]] = read_table(file, [name for name in names if not name.startswith("stats/")]).to_pylist()
    return rows


def _video_parts(path: Path, info: Mapping[str, Any], key: str, rows: list[dict[str, Any]]) -> tuple[VideoPart, ...]:
    """Each episode's part of its video, by counting the frames of the episodes before it in the same file."""
    counted, parts = dict[Path, int](), list[VideoPart]()
    for row in rows:
        if f"videos/{key}/chunk_index" not in row:
            raise DatasetError(
                f"meta/episodes in {path} does not say where the videos of {key} are; leave this camera out: "
                f"dataset.exclude=[{key.rpartition('.')[2]}]"
            )
        if not info.get("video_path"):
            raise DatasetError(
                f"meta/info.json in {path} has no video_path, but {key} is a video; copy the data set again"
            )
        file = path / info["video_path"].format(
            video_key=key, chunk_index=row[f"videos/{key}/chunk_index"], file_index=row[f"videos/{key}/file_index"]
        )
        first = counted.get(file, 0)
        if parts and parts[-1].file == file and parts[-1].seconds > row[f"videos/{key}/from_timestamp"]:
            raise DatasetError(
                f"meta/episodes in {path} says that the episodes of {key} are not in the order of their numbers in "
                f"{file.name}; let lerobot write the data set anew, or dataset.exclude this camera"
            )
        parts.append(VideoPart(file, first, float(row[f"videos/{key}/from_timestamp"])))
        counted[file] = first + int(row["length"])
    return tuple(parts)


def _require_rows(file: Path, rows: int, expected: int, said_by: str) -> None:
    if rows != expected:
        raise DatasetError(f"{file} has {rows} rows, but {said_by}; copy the data set again")


def _read_lines(file: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file} cannot be read ({error}); copy the data set again") from error


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _by_index(tasks: list[tuple[int, str]]) -> tuple[str, ...]:
    size = max((int(index) for index, _ in tasks), default=-1) + 1
    texts = {int(index): str(text) for index, text in tasks}
    return tuple(texts.get(index, f"task {index}") for index in range(size))


def _notes(info: Mapping[str, Any], lengths: np.ndarray) -> tuple[str, ...]:
    """Where meta/info.json contradicts the files."""
    notes = []
    for name, found in (("total_episodes", len(lengths)), ("total_frames", int(lengths.sum()))):
        if name in info and info[name] != found:
            notes.append(f"meta/info.json says {name} {info[name]}, but there are {found}")
    for split, span in (info.get("splits") or {}).items():
        first, _, last = str(span).partition(":")
        if last.isdigit() and int(last) > len(lengths):
            notes.append(
                f"meta/info.json has the split {split} {span}, but there are {len(lengths)} episodes; it is ignored"
            )
        elif not (first.isdigit() and last.isdigit()):
            notes.append(f"meta/info.json has the split {split} {span!r}, which is no START:STOP; it is ignored")
    return tuple(notes)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


_UNREADABLE = "cannot be read ({}): it is missing or truncated; copy the data set again"
