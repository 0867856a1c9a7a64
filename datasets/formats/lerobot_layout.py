"""LeRobot's data set format v3.0: names of features and files, and the schemas of its parquet files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from flowchunk.datasets.episode_source import ACTION
from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.formats.video_encoder import VideoCodec, pixel_format
from flowchunk.datasets.specs import ActionSpec, ObservationField, ObservationSpec

VERSION = "v3.0"
FILES_PER_CHUNK = 1000  # LeRobot calls a folder of files a chunk
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
INDICES = ("frame_index", "episode_index", "index", "task_index")
MAX_DIMENSIONS = 5  # of a feature's array, in Hugging Face's ``datasets``

Feature = dict[str, Any]


@dataclass(frozen=True)
class FilePlace:
    """The number of a file in its folder, and of the folder."""

    chunk: int = 0
    file: int = 0

    @property
    def next(self) -> FilePlace:
        """The place of the file after this one."""
        chunk, file = divmod(self.chunk * FILES_PER_CHUNK + self.file + 1, FILES_PER_CHUNK)
        return FilePlace(chunk, file)

    def path(self, template: str, **names: str) -> str:
        """The file's path in the data set."""
        return template.format(chunk_index=self.chunk, file_index=self.file, **names)


def feature_names(spec: ObservationSpec) -> dict[str, str]:
    """{key: the name of its feature}, of all observations and of the action.

    Raises DatasetError if LeRobot cannot hold a name, or if two keys would have the same.
    """
    names = {
        key: f"observation.images.{key}" if field.is_image else f"observation.{key}"
        for key, field in spec.fields.items()
    } | {ACTION: ACTION}
    for key, name in names.items():
        if "/" in name or list(names.values()).count(name) > 1:
            raise DatasetError(
                f"the observation {key!r} would be LeRobot's feature {name!r}, but a feature's name has no '/' and is used "
                "once; rename the observation"
            )
    return names


def describe_features(
    observations: ObservationSpec, actions: ActionSpec, *, codec: VideoCodec | None, fps: int
) -> dict[str, Feature]:
    """The entry ``features`` of info.json. codec: None for images in the parquet files."""
    names = feature_names(observations)
    features: dict[str, Feature] = {
        names[key]: _describe_images(field, codec, fps) if field.is_image else _describe_values(names[key], field)
        for key, field in observations.fields.items()
    }
    features[ACTION] = {"dtype": "float32", "shape": [actions.size], "names": list(actions.names)}
    features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    return features | {name: {"dtype": "int64", "shape": [1], "names": None} for name in INDICES}


def data_schema(features: Mapping[str, Feature]) -> pa.Schema:
    """The schema of the data files: a column for each feature that is not a video."""
    columns = {name: feature for name, feature in features.items() if feature["dtype"] != "video"}
    described = {name: _huggingface_feature(feature) for name, feature in columns.items()}
    fields = [pa.field(name, _column_type(feature)) for name, feature in columns.items()]
    return pa.schema(fields, metadata=_huggingface_metadata(described))


def episodes_schema(row: Mapping[str, Any]) -> pa.Schema:
    """The schema of the files of episodes, by the first row: numbers, texts, and lists of them."""
    fields = [pa.field(name, pa.array([value]).type) for name, value in row.items()]
    described = {field.name: _huggingface_value(field.type) for field in fields}
    return pa.schema(fields, metadata=_huggingface_metadata(described))


def tasks_table(texts: list[str]) -> pa.Table:
    """The file of tasks as pandas writes it: the texts are the index, ``task_index`` is the only column."""
    index = "__index_level_0__"
    columns = [
        {
            "name": "task_index",
            "field_name": "task_index",
            "pandas_type": "int64",
            "numpy_type": "int64",
            "metadata": None,
        },
        {"name": None, "field_name": index, "pandas_type": "unicode", "numpy_type": "object", "metadata": None},
    ]
    named = {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object"}
    pandas = {
        "index_columns": [index],
        "column_indexes": [{**named, "metadata": {"encoding": "UTF-8"}}],
        "columns": columns,
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.3",
    }
    table = pa.table({"task_index": pa.array(range(len(texts)), pa.int64()), index: pa.array(texts, pa.string())})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def frame_shape(feature: Feature) -> tuple[int, ...]:
    """The shape of one frame in a column: a single value is stored as a number."""
    shape = tuple(feature["shape"])
    return () if shape == (1,) else shape


def _describe_values(name: str, field: ObservationField) -> Feature:
    if len(field.shape) > MAX_DIMENSIONS:
        raise DatasetError(
            f"{name} has frames of {len(field.shape)} dimensions, but LeRobot's features have {MAX_DIMENSIONS} at most"
        )
    names = list(field.names) if field.names and len(field.shape) <= 1 else None
    return {"dtype": "float32", "shape": list(field.shape) or [1], "names": names}


def _describe_images(field: ObservationField, codec: VideoCodec | None, fps: int) -> Feature:
    described = {"shape": list(field.shape), "names": ["height", "width", "channels"]}
    if codec is None:
        return {"dtype": "image", **described}
    height, width, channels = field.shape
    info = {
        "video.height": height,
        "video.width": width,
        "video.codec": codec.name,
        "video.pix_fmt": pixel_format(height, width, codec),
        "video.is_depth_map": False,
        "video.fps": fps,
        "video.channels": channels,
        "has_audio": False,
    }
    return {"dtype": "video", **described, "info": info}


def _column_type(feature: Feature) -> pa.DataType:
    if feature["dtype"] == "image":
        return pa.struct({"bytes": pa.binary(), "path": pa.string()})
    kind, shape = pa.from_numpy_dtype(np.dtype(feature["dtype"])), frame_shape(feature)
    if len(shape) == 1:
        return pa.list_(kind, shape[0])
    for _ in shape:
        kind = pa.list_(kind)
    return kind


def _huggingface_feature(feature: Feature) -> Feature:
    """A feature in the words of Hugging Face's ``datasets``, which would guess it otherwise."""
    value, shape = {"dtype": feature["dtype"], "_type": "Value"}, frame_shape(feature)
    if feature["dtype"] == "image":
        return {"_type": "Image"}
    if len(shape) > 1:
        return {"shape": list(shape), "dtype": feature["dtype"], "_type": f"Array{len(shape)}D"}
    return {"feature": value, "length": shape[0], "_type": "Sequence"} if shape else value


def _huggingface_value(kind: pa.DataType) -> Feature:
    if pa.types.is_list(kind):
        return {"feature": _huggingface_value(kind.value_type), "_type": "Sequence"}
    return {"dtype": "float64" if pa.types.is_float64(kind) else str(kind), "_type": "Value"}


def _huggingface_metadata(features: Mapping[str, Feature]) -> dict[str, str]:
    return {"huggingface": json.dumps({"info": {"features": features}})}
