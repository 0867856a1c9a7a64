"""LeRobot data sets, versions 2.0, 2.1 and 3.0: values in parquet, images as video (h264, AV1, …) or encoded in parquet."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from flowchunk.datasets.description import describe_arrays, describe_specs
from flowchunk.datasets.episode_source import ArrayInfo, Description, EpisodeSource
from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.formats.lerobot_index import Layout, VideoPart, read_json, read_layout, read_table
from flowchunk.datasets.formats.lerobot_keys import short_keys
from flowchunk.datasets.specs import ActionSpec, ObservationSpec
from flowchunk.datasets.video_reader import VideoReader

ACTION = "action"
TASK_INDEX = "task_index"
OWN = Path("meta", "flowchunk.json")  # specifications, in data sets that flowchunk wrote
DRIFT = 0.5  # frame periods between a video's stated and counted start; more is reported
VALIDATION = ("val", "valid", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class LeRobotSource(EpisodeSource):
    """A LeRobot data set; open it with ``LeRobotSource.open(path)``."""

    layout: Layout
    own: Mapping[str, Any]
    _open: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        sources: Mapping[str, str] | None = None,
        image_size: tuple[int, int] | None = None,
    ) -> Self:
        """Open a data set for reading. Raises DatasetError if its files are damaged or contradict each other."""
        own = read_json(path / OWN) if (path / OWN).exists() else {}
        return cls(path=path, layout=read_layout(path), own=own, sources=dict(sources or {}), image_size=image_size)

    @property
    def format(self) -> str:
        return f"LeRobot {self.layout.info['codebase_version']}"

    @property
    def episode_lengths(self) -> np.ndarray:
        """(E,) the number of time steps of each episode."""
        return self.layout.lengths

    @property
    def tasks(self) -> tuple[str, ...]:
        """The texts of the tasks by index."""
        return self.layout.tasks if TASK_INDEX in self._schema.names else ()

    @cached_property
    def task_indices(self) -> np.ndarray | None:
        """(N,) the index of each row's task."""
        if not self.tasks:
            return None
        return self.require_tasks(self._read_column(TASK_INDEX, 0, self.num_frames).astype(np.int64), len(self.tasks))

    @property
    def validation_episodes(self) -> np.ndarray | None:
        """The episodes of a split named val, valid, validation or test, if it lies within the data set."""
        for name, span in (self.layout.info.get("splits") or {}).items():
            match = re.fullmatch(r"(\d+):(\d+)", str(span))
            if name in VALIDATION and match and int(match[2]) <= len(self.episode_lengths):
                return np.arange(int(match[1]), int(match[2]))
        return None

    @property
    def observation_spec(self) -> ObservationSpec | None:
        """The specification that flowchunk stored beside the data; None without one."""
        return ObservationSpec.from_json(self.own["observation_spec"]) if "observation_spec" in self.own else None

    @property
    def action_spec(self) -> ActionSpec | None:
        """The specification that flowchunk stored beside the data; None without one."""
        return ActionSpec.from_json(self.own["action_spec"]) if "action_spec" in self.own else None

    @cached_property
    def arrays(self) -> Mapping[str, ArrayInfo]:
        """The features by name; texts are left out."""
        found = {}
        for name, feature in self.layout.info["features"].items():
            if feature.get("dtype") == "video":
                found[name] = ArrayInfo(_image_shape(feature), np.dtype(np.uint8), True, self._video_problem(name))
            elif feature.get("dtype") == "image":
                found[name] = ArrayInfo(_image_shape(feature), np.dtype(np.uint8), True, self._column_problem(name))
            elif (dtype := _number_type(feature.get("dtype"))) is not None:
                shape = tuple(feature.get("shape") or (1,))
                found[name] = ArrayInfo(shape, dtype, problem=self._column_problem(name))
        return found

    @cached_property
    def description(self) -> Description:
        """The stored specifications, or those that follow from ``meta/info.json``."""
        notes = (*self.layout.notes, *self._drift_notes())
        if self.observation_spec is not None and self.action_spec is not None:
            stored = describe_specs(self.observation_spec, self.action_spec)
            return Description(
                stored.observations,
                stored.actions,
                stored.control_hz,
                dict(self.own.get("features", {})),
                stored.origins,
                notes,
            )
        return describe_arrays(
            self.arrays,
            ACTION,
            origin="meta/info.json",
            key_of=self._keys.__getitem__,
            names={name: _names(feature) for name, feature in self.layout.info["features"].items()},
            control_hz=float(self.layout.info["fps"]),
            notes=notes,
        )

    def read_array(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start … stop - 1 of a feature. Raises DamageError if they cannot be read or decoded."""
        if name in self.layout.videos:
            return self._read_video(name, start, stop)
        info = self.arrays[name]
        values = self._read_column(name, start, stop)
        if info.is_image:
            return self._decode_images(name, values, info.shape)
        if values.size != len(values) * int(np.prod(info.shape)):
            raise DatasetError(
                f"{name} in {self.path} has rows of shape {values.shape[1:]}, but meta/info.json says {info.shape}; correct "
                "it there"
            )
        return values.reshape(len(values), *info.shape)

    def files(self, name: str) -> tuple[Path, list[Path]]:
        """The videos or the parquet files that hold a feature."""
        if name in self.layout.videos:
            return self.path, sorted({part.file for part in self.layout.videos[name]})
        return self.path, [file for file, _ in self.layout.data]

    def label(self, name: str) -> str:
        """A feature's name in messages, without the key that stands for it."""
        return name

    # -- parquet ------------------------------------------------------------------------------------------------------

    @cached_property
    def _schema(self) -> Any:
        return pq.read_schema(self.layout.data[0][0])

    @cached_property
    def _keys(self) -> dict[str, str]:
        return short_keys(self.layout.info["features"])

    def _read_column(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows of a parquet column: (n, D), (n,) for scalars, or (n,) objects for encoded images."""
        parts = [
            self._table_column(file, name)[first - offset : last - offset]
            for file, offset, first, last in self._files_of(start, stop)
        ]
        if not parts:
            return np.empty((0, *self.arrays[name].shape), self.arrays[name].dtype)
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _files_of(self, start: int, stop: int) -> Iterator[tuple[Path, int, int, int]]:
        """Each data file with rows of start … stop - 1: the file, its first row, and the wanted rows."""
        offset = 0
        for file, rows in self.layout.data:
            first, last = max(start, offset), min(stop, offset + rows)
            if first < last:
                yield file, offset, first, last
            offset += rows

    def _table_column(self, file: Path, name: str) -> np.ndarray:
        """A column of a file; the last one of each name is kept, because blocks of rows are read in order."""
        kept = self._open.get(f"column {name}")
        if kept is None or kept[0] != file:
            column = read_table(file, [name]).column(name).combine_chunks()
            kept = self._open[f"column {name}"] = (file, _to_numpy(column, file, name))
        values: np.ndarray = kept[1]
        return values

    def _column_problem(self, name: str) -> str | None:
        if name in self._schema.names:
            return None
        return f"meta/info.json names it, but the parquet files do not hold it; {_leave_out(self._keys[name])}"

    def _decode_images(self, name: str, encoded: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        images = np.empty((len(encoded), *shape), np.uint8)
        for index, value in enumerate(encoded):
            try:
                content = value["bytes"] if isinstance(value, dict) else value
                image = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
            except Exception as error:  # of any codec
                raise self.damage_error(name, f"an image cannot be decoded: {error}") from error
            if image.shape != shape:
                raise DatasetError(
                    f"{name} in {self.path} has an image of shape {image.shape}, but meta/info.json says {shape}"
                )
            images[index] = image
        return images

    # -- videos -------------------------------------------------------------------------------------------------------

    def _read_video(self, name: str, start: int, stop: int) -> np.ndarray:
        images = np.empty((stop - start, *self.arrays[name].shape), np.uint8)
        for episode, first, last in self.parts_of(start, stop):
            part = self.layout.videos[name][episode]
            offset = part.first - int(self.episode_starts[episode])
            try:
                reader = self._reader(name, part)
                images[first - start : last - start] = reader.read(first + offset, last + offset)
            except DatasetError as error:
                raise self.damage_error(name, f"episode {episode}: {error}") from error
        return images

    def _reader(self, name: str, part: VideoPart) -> VideoReader:
        """The open video of an episode; one per camera stays open."""
        kept: VideoReader | None = self._open.get(f"video {name}")
        if kept is not None and kept.path == part.file:
            return kept
        if kept is not None:
            self._open.pop(f"video {name}").close()
        reader, shape = VideoReader(part.file), self.arrays[name].shape
        if reader.size != shape[:2]:
            raise DatasetError(
                f"{part.file} has images of {reader.size[0]}x{reader.size[1]} pixels, but meta/info.json says "
                f"{shape[0]}x{shape[1]} for {name}; correct it there"
            )
        self._require_frames(name, part.file, reader.num_frames)  # once a file: it looks at every episode
        self._open[f"video {name}"] = reader
        return reader

    def _require_frames(self, name: str, file: Path, frames: int) -> None:
        parts = zip(self.layout.videos[name], self.episode_lengths.tolist(), strict=True)
        ends = [part.first + length for part, length in parts if part.file == file]
        if frames != max(ends):
            raise DatasetError(
                f"{file} has {frames} frames, but its episodes have {max(ends)} rows; copy the data set again, or "
                f"{_leave_out(self._keys[name])}"
            )

    def _video_problem(self, name: str) -> str | None:
        files = sorted({part.file for part in self.layout.videos[name]})
        missing = [file for file in files if not file.exists()]
        if not missing:
            return None
        return (
            f"{len(missing)} of its {len(files)} videos are missing, such as {missing[0].relative_to(self.path)}; copy them, "
            f"or {_leave_out(self._keys[name])}"
        )

    def _drift_notes(self) -> list[str]:
        """Cameras whose stated times differ from the counted frames, which are used instead."""
        fps, notes = float(self.layout.info["fps"]), []
        for name, parts in self.layout.videos.items():
            drift = max((abs(part.seconds - part.first / fps) for part in parts), default=0.0)
            if drift * fps > DRIFT:
                notes.append(
                    f"{name}: stated times of episodes are up to {drift * 1000:.0f} ms off; frames are counted"
                )
        return notes


def _leave_out(key: str) -> str:
    return f"leave it out: dataset.exclude=[{key}]"


def _image_shape(feature: Mapping[str, Any]) -> tuple[int, ...]:
    """(height, width, channels), in which images are read, whatever order the feature names."""
    shape = tuple(feature["shape"])
    return (*shape[1:], shape[0]) if len(shape) == 3 and shape[0] in (1, 3) and shape[2] not in (1, 3) else shape


def _number_type(dtype: Any) -> np.dtype | None:
    """The type of numbers; None for texts and whatever else is not read."""
    try:
        found = np.dtype(str(dtype))
    except TypeError:
        return None
    return found if found.kind in "biuf" else None


def _names(feature: Mapping[str, Any]) -> list[str]:
    """The names of a feature's dimensions; some data sets group them in a dictionary."""
    names = feature.get("names") or []
    if isinstance(names, Mapping):
        if all(isinstance(value, int) for value in names.values()):  # {name: index}
            names = sorted(names, key=names.__getitem__)
        else:
            names = [name for group in names.values() for name in (group if isinstance(group, list) else [group])]
    return [str(name) for name in names]


def _to_numpy(column: Any, file: Path, name: str) -> np.ndarray:
    """A parquet column as (n, D), (n,) for scalars, or (n,) objects. Raises DatasetError if its rows differ in length."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    rows, sizes = len(column), list[int]()
    if pa.types.is_struct(column.type) or pa.types.is_binary(column.type):
        return np.array([*column.to_pylist(), None], dtype=object)[:-1]  # the last keeps numpy from making a matrix
    while (
        pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type) or pa.types.is_large_list(column.type)
    ):
        flat = column.flatten()
        if len(column) and len(flat) % len(column):
            raise DatasetError(
                f"{name} in {file} is ragged: its rows differ in length; repair it, or dataset.exclude it"
            )
        size = len(flat) // max(1, len(column))
        if not pa.types.is_fixed_size_list(column.type) and len(column) and (np.diff(column.offsets) != size).any():
            raise DatasetError(
                f"{name} in {file} is ragged: its rows differ in length; repair it, or dataset.exclude it"
            )
        sizes.append(size)
        column = flat
    if column.null_count:
        raise DatasetError(
            f"{name} in {file} has {column.null_count} missing values; repair them, or dataset.exclude it"
        )
    return column.to_numpy(zero_copy_only=False).reshape(rows, *sizes)
