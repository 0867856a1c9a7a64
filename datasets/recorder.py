"""Record episodes into a new store, which appears at its path only when it is whole."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import zarr

from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.specs import ActionSpec, ObservationSpec
from flowchunk.datasets.store import ACTION, ATTRIBUTE

FORMAT_VERSION = 1
CHUNK_FRAMES = 4096


class StoreWriter:
    """Write episodes to ``path``; use it as a context manager.

    Everything goes to a folder beside it, which takes the name ``path`` when the ``with`` block ends well. Raises
    DatasetError where ``path`` exists already: recordings are never overwritten.
    """

    def __init__(self, path: str | Path, *, observation_spec: ObservationSpec, action_spec: ActionSpec) -> None:
        self.path = Path(path).expanduser()
        if self.path.exists():
            raise DatasetError(f"{self.path} exists already; choose another path, or move it away first")
        self.observation_spec, self.action_spec = observation_spec, action_spec
        self._partial = self.path.with_name(f".{self.path.name}.partial")
        self._episode_ends: list[int] = []
        self._buffer: list[dict[str, np.ndarray]] = []

    def __enter__(self) -> Self:
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.parent.mkdir(parents=True, exist_ok=True)
        self._root = zarr.open_group(self._partial, mode="w", zarr_format=3)
        self._root.attrs[ATTRIBUTE] = {
            "format_version": FORMAT_VERSION,
            "observation_spec": self.observation_spec.to_json(),
            "action_spec": self.action_spec.to_json(),
        }
        self._data = self._root.create_group("data")
        self._arrays: dict[str, zarr.Array[Any]] = {}
        return self

    def add_episode(self, observations: Mapping[str, np.ndarray], actions: np.ndarray) -> None:
        """Append one episode of T frames: observations {key: (T, …)}, actions (T, D); action k follows observation k.

        Raises DatasetError where keys, lengths or shapes are not those of the specs.
        """
        length = len(actions)
        expected = {key: field.shape for key, field in self.observation_spec.fields.items()}
        got = {key: np.shape(values) for key, values in observations.items()}
        if got != {key: (length, *shape) for key, shape in expected.items()} or length == 0:
            raise DatasetError(f"an episode of {length} actions needs observations {expected} a frame, but got {got}")
        if np.shape(actions) != (length, self.action_spec.size):
            raise DatasetError(f"actions must be (T, {self.action_spec.size}), but are {np.shape(actions)}")
        self._buffer.append(
            {**{key: np.asarray(value) for key, value in observations.items()}, ACTION: np.asarray(actions)}
        )
        self._episode_ends.append(length + (self._episode_ends[-1] if self._episode_ends else 0))
        if sum(len(episode[ACTION]) for episode in self._buffer) >= CHUNK_FRAMES:
            self._flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and self._episode_ends:
            self._flush()
            ends = np.asarray(self._episode_ends, dtype=np.int64)
            self._root.create_array("meta/episode_ends", data=ends)
            self._partial.rename(self.path)
            return
        shutil.rmtree(self._partial, ignore_errors=True)
        if kind is None:
            raise DatasetError(f"nothing was recorded, so {self.path} was not written")

    def _flush(self) -> None:
        for key in self._buffer[0] if self._buffer else ():
            values = np.concatenate([episode[key] for episode in self._buffer])
            values = values if values.dtype in (np.uint8, np.bool_) else values.astype(np.float32)
            if key not in self._arrays:
                self._arrays[key] = self._data.create_array(
                    key,
                    shape=(0, *values.shape[1:]),
                    dtype=values.dtype,
                    chunks=(CHUNK_FRAMES, *values.shape[1:]),
                    config={"write_empty_chunks": True},  # so that a missing chunk always means damage
                )
            self._arrays[key].append(values)
        self._buffer.clear()
