"""Write episodes as a LeRobot data set, format v3.0."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow.parquet as pq

from flowchunk.datasets.episode_checks import check_episode
from flowchunk.datasets.errors import ConfigurationError, DatasetError
from flowchunk.datasets.formats.lerobot_files import DataFiles, EpisodeFiles, VideoFiles
from flowchunk.datasets.formats.lerobot_layout import (
    DATA_PATH,
    FILES_PER_CHUNK,
    VERSION,
    VIDEO_PATH,
    data_schema,
    describe_features,
    feature_names,
    tasks_table,
)
from flowchunk.datasets.formats.lerobot_statistics import StatisticsRecorder
from flowchunk.datasets.formats.video_encoder import CODECS
from flowchunk.datasets.partial_output import PartialOutput
from flowchunk.datasets.specs import ActionSpec, ObservationSpec
from flowchunk.datasets.tasks import EpisodeTask, TaskTable

FORMAT_VERSION = 1  # of meta/flowchunk.json
PNG = "png"


class LeRobotWriter:
    """Write episodes to the folder ``path``; use it as a context manager.

    Each observation KEY becomes the feature ``observation.images.KEY`` if it is an image, else ``observation.KEY``; the
    action is ``action``. What the format cannot hold, the specifications, is in ``meta/flowchunk.json``. The folder appears
    under its name when the ``with`` block ends normally; after an exception, nothing is left.

    codec: of the images. "h264" and "av1" are videos, with a mean error of about 1 of 255; "png" is lossless, in the parquet
    files. robot_type: LeRobot's name of the robot. data_file_mb, video_file_mb: a file of this size is followed by another.
    Raises DatasetError if ``path`` exists, or if the format cannot hold the specifications: a control rate that is no whole
    number of Hz, a key with "/"; ConfigurationError for another codec.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        observation_spec: ObservationSpec,
        action_spec: ActionSpec,
        codec: str = "h264",
        robot_type: str = "unknown",
        data_file_mb: float = 100,
        video_file_mb: float = 200,
    ) -> None:
        if codec not in (*CODECS, PNG):
            raise ConfigurationError(f"codec={codec!r} must be one of {[*CODECS, PNG]}")
        self._output = PartialOutput(path)
        self.path, self.partial = self._output.path, self._output.partial
        self.observation_spec, self.action_spec = observation_spec, action_spec
        self._codec, self._fps, self._robot_type = CODECS.get(codec), _frames_per_second(action_spec), robot_type
        self._data_file_mb, self._video_file_mb = data_file_mb, video_file_mb
        self._names = feature_names(observation_spec)
        self._features = describe_features(observation_spec, action_spec, codec=self._codec, fps=self._fps)
        self._tasks = TaskTable()
        self._num_frames, self.num_episodes = 0, 0
        self._is_writing = False

    def __enter__(self) -> Self:
        (self.partial / "meta").mkdir(parents=True)
        self._statistics = StatisticsRecorder(self._features)
        self._data = DataFiles(self.partial, data_schema(self._features), limit_mb=self._data_file_mb)
        self._episodes = EpisodeFiles(self.partial, limit_mb=self._data_file_mb)
        self._videos = {
            self._names[key]: VideoFiles(
                self.partial, self._names[key], field.shape, self._codec, fps=self._fps, limit_mb=self._video_file_mb
            )
            for key, field in self.observation_spec.images.items()
            if self._codec is not None
        }
        return self

    def add_episode(
        self, observations: Mapping[str, np.ndarray], actions: np.ndarray, *, task: EpisodeTask = None
    ) -> None:
        """Append one episode of T frames: observations {key: (T, …)}, actions (T, D); action k follows observation k.

        task: a text for the episode, a sequence of T texts, or None. Values are stored as float32.
        Raises DatasetError as ``check_episode`` does, and for a task of another kind: such an episode is left out, and
        further episodes can be added. Raises DatasetError or OSError if a file cannot be written; then nothing can be added.
        """
        if self._is_writing:
            raise DatasetError(f"{self.path} cannot be completed, because an episode could not be written; begin anew")
        checked = check_episode(
            observations,
            actions,
            observation_spec=self.observation_spec,
            action_spec=self.action_spec,
            episode=self.num_episodes,
        )
        columns = {self._names[key]: values for key, values in checked.items()} | self._indices(task, len(actions))
        self._is_writing = True
        self._write(columns, len(actions))
        self._num_frames += len(actions)
        self.num_episodes += 1
        self._is_writing = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            if self.partial.exists():
                self._remove_unfinished()

    def _indices(self, task: EpisodeTask, length: int) -> dict[str, np.ndarray]:
        frames = np.arange(length)
        return {
            "timestamp": (frames / self._fps).astype(np.float32),
            "frame_index": frames,
            "episode_index": np.full(length, self.num_episodes),
            "index": self._num_frames + frames,
            "task_index": self._tasks.add(task, length),
        }

    def _write(self, columns: Mapping[str, np.ndarray], length: int) -> None:
        place = self._data.add(columns)
        row: dict[str, Any] = {
            "episode_index": self.num_episodes,
            "data/chunk_index": place.chunk,
            "data/file_index": place.file,
            "dataset_from_index": self._num_frames,
            "dataset_to_index": self._num_frames + length,
        }
        for name, files in self._videos.items():
            row |= self._add_video(name, files, columns[name])
        tasks = dict.fromkeys(self._tasks.texts[index] for index in columns["task_index"].tolist())
        row |= {"tasks": list(tasks), "length": length}
        for name, statistics in self._statistics.add(columns).items():
            row |= {f"stats/{name}/{kind}": values.tolist() for kind, values in statistics.items()}
        self._episodes.add(row)

    def _add_video(self, name: str, files: VideoFiles, images: np.ndarray) -> dict[str, int | float]:
        place = files.add(images)
        return {
            f"videos/{name}/chunk_index": place.file.chunk,
            f"videos/{name}/file_index": place.file.file,
            f"videos/{name}/from_timestamp": place.first_image / self._fps,
            f"videos/{name}/to_timestamp": (place.first_image + len(images)) / self._fps,
        }

    def _finish(self) -> None:
        if self._is_writing:
            raise DatasetError(f"{self.path} was not written, because an episode could not be written")
        if self.num_episodes == 0:
            raise DatasetError(f"nothing was recorded, so {self.path} was not written")
        for files in self._videos.values():
            files.finish()
        self._data.close()
        self._episodes.close()
        total = self._statistics.total(self._data.paths)
        stats = {name: {kind: values.tolist() for kind, values in each.items()} for name, each in total.items()}
        pq.write_table(tasks_table(self._tasks.texts), self.partial / "meta" / "tasks.parquet")
        for name, content in (("info", self._describe()), ("stats", stats), ("flowchunk", self._describe_specs())):
            (self.partial / "meta" / f"{name}.json").write_text(json.dumps(content, indent=4))
        self._output.publish()

    def _describe(self) -> dict[str, Any]:
        return {
            "codebase_version": VERSION,
            "robot_type": self._robot_type,
            "total_episodes": self.num_episodes,
            "total_frames": self._num_frames,
            "total_tasks": len(self._tasks.texts),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": self._data_file_mb,
            "video_files_size_in_mb": self._video_file_mb,
            "fps": self._fps,
            "splits": {"train": f"0:{self.num_episodes}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self._videos else None,
            "features": self._features,
        }

    def _describe_specs(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "observation_spec": self.observation_spec.to_json(),
            "action_spec": self.action_spec.to_json(),
            "features": self._names,
        }

    def _remove_unfinished(self) -> None:
        for video in self._videos.values():
            video.abandon()
        with suppress(OSError):  # nothing of it is kept
            self._data.close()
            self._episodes.close()
        self._output.remove()


def _frames_per_second(spec: ActionSpec) -> int:
    """The control rate. Raises DatasetError unless it is a whole number above 0, which is what LeRobot stores."""
    if not (spec.control_hz > 0 and float(spec.control_hz).is_integer()):
        raise DatasetError(
            f"LeRobot's format needs a whole number of frames per second above 0, but the control rate is "
            f"{spec.control_hz:g} Hz; write a zarr store or a robomimic file instead"
        )
    return int(spec.control_hz)
