"""A replay store: episodes of demonstrations, concatenated in zarr arrays and read lazily.

The layout is diffusion_policy's: ``data/KEY`` (N, …) with one row per frame, and ``meta/episode_ends`` (E,). Zarr formats 2
and 3 are supported. Flowchunk's stores add the observation and action specifications to the root's attributes; stores
without them are called foreign.
"""

from __future__ import annotations

import glob
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import zarr
from numcodecs.errors import UnknownCodecError
from zarr.errors import ZarrUserWarning
from zarr.storage import ZipStore

import flowchunk.datasets.jpeg_codec  # noqa: F401 -- registers the codec, also without an installation
from flowchunk.datasets.description import describe_arrays, describe_specs, is_image_array
from flowchunk.datasets.episode_source import ACTION, ArrayInfo, DamageError, Description, EpisodeSource, Part
from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.formats.zarr_integrity import count_files, find_damage, missing_files
from flowchunk.datasets.partial_output import PARTIAL
from flowchunk.datasets.specs import ActionSpec, ObservationSpec

ATTRIBUTE = "flowchunk"
TASK_INDEX = "meta/task_index"


@dataclass(frozen=True, kw_only=True)
class Store(EpisodeSource):
    """A zarr data set; open it with ``Store.open(path)``.

    root: its zarr group. sources: ignored for flowchunk's stores, which use their own keys.
    """

    root: zarr.Group
    _checked: set[str] = field(default_factory=set, repr=False, compare=False)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        sources: Mapping[str, str] | None = None,
        image_size: tuple[int, int] | None = None,
    ) -> Self:
        """Open a store for reading. Raises DatasetError if the path is not a store or its episodes are inconsistent.

        sources: for foreign stores, the array that each key reads; ignored for flowchunk's stores, which use its keys.
        """
        path = Path(path).expanduser()
        if not path.exists():
            found = "; ".join(describe_unfinished(path)) or "the path does not exist; correct it"
            raise DatasetError(f"no data set at {path}: {found}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ZarrUserWarning)
                root = zarr.open(ZipStore(path, mode="r") if path.is_file() else path, mode="r")
        except Exception as error:
            raise DatasetError(f"{path} is not a data set: zarr cannot open it ({error}); {_EXPECTED}") from error
        if (
            not isinstance(root, zarr.Group)
            or "meta/episode_ends" not in root
            or not isinstance(root.get("data"), zarr.Group)
        ):
            raise DatasetError(f"{path} is not a data set: {_EXPECTED}")
        used = {} if ATTRIBUTE in root.attrs else dict(sources or {})
        store = cls(path=path, root=root, sources=used, image_size=image_size)
        store._check_episodes()
        return store

    @property
    def format(self) -> str:
        kind = "flowchunk's" if self._attributes else "diffusion_policy's"
        return f"{kind} zarr, format {self.root.metadata.zarr_format}{', zipped' * self.path.is_file()}"

    @cached_property
    def episode_ends(self) -> np.ndarray:
        """(E,) int64: episode i consists of the frames ``episode_ends[i - 1] … episode_ends[i] - 1``."""
        array = self.root["meta/episode_ends"]
        ends = _read(self, "meta/episode_ends", array, slice(None)).astype(np.int64)
        return ends if self.is_finished else ends[ends > 0]  # the last is 0 if a kill interrupted its writing

    @property
    def episode_lengths(self) -> np.ndarray:
        """(E,) the number of frames of each episode."""
        return np.diff(self.episode_ends, prepend=0)

    @cached_property
    def zarr_arrays(self) -> dict[str, zarr.Array[Any]]:
        """The zarr arrays under ``data``, by name."""
        group = self.root["data"]
        assert isinstance(group, zarr.Group)
        try:
            return _arrays_in(group)
        except UnknownCodecError as error:
            raise DatasetError(
                f"an array in {self.path} has a codec that is not installed ({error}); those of UMI come with "
                "pip install 'flowchunk[umi]'"
            ) from error
        except Exception as error:  # zarr raises exceptions of many types
            raise DatasetError(
                f"{self.path} is not a data set: the description of an array is damaged ({error}); copy it again"
            ) from error

    @cached_property
    def arrays(self) -> Mapping[str, ArrayInfo]:
        """The arrays under ``data``, by name."""
        numbers = {name: array for name, array in self.zarr_arrays.items() if array.ndim and array.dtype.kind in "biuf"}
        return {name: _info(array) for name, array in numbers.items()}

    @cached_property
    def description(self) -> Description:
        """The stored specifications; for foreign stores, what follows from the arrays' names and shapes."""
        if self.observation_spec is None or self.action_spec is None:
            return describe_arrays(self.arrays, ACTION, origin="array's shape")
        return describe_specs(self.observation_spec, self.action_spec)

    @property
    def observation_spec(self) -> ObservationSpec | None:
        """The stored specification; None in foreign stores."""
        attributes = self._attributes
        return ObservationSpec.from_json(attributes["observation_spec"]) if attributes else None

    @property
    def action_spec(self) -> ActionSpec | None:
        """The stored specification; None in foreign stores."""
        attributes = self._attributes
        return ActionSpec.from_json(attributes["action_spec"]) if attributes else None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The distinct tasks of the frames, as texts; frames without a task have the empty text. Empty if none has one."""
        return tuple((self._attributes or {}).get("tasks", ()))

    @cached_property
    def task_indices(self) -> np.ndarray | None:
        """(N,) int64, the index in ``tasks`` of each frame's task; None if no episode has a task.

        Raises DatasetError if they are damaged.
        """
        if not self.tasks:
            return None
        if TASK_INDEX not in self.root:
            raise DatasetError(f"{self.path} names tasks, but has no {TASK_INDEX}; copy the data set again")
        indices = _read(self, TASK_INDEX, self.root[TASK_INDEX], slice(self.num_frames)).astype(np.int64)
        if indices.shape != (self.num_frames,) or not np.isin(indices, range(len(self.tasks))).all():
            raise DatasetError(
                f"{TASK_INDEX} in {self.path} must hold {self.num_frames} numbers from 0 to {len(self.tasks) - 1}, the "
                "indices of the tasks; copy the data set again"
            )
        return indices

    @property
    def is_finished(self) -> bool:
        """Whether the recording ended normally; if not, its arrays may hold a part of one more episode."""
        return self._attributes is None or bool(self._attributes.get("finished", True))

    def read(self, key: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start … stop - 1 of ``key``. Raises DatasetError if they are damaged or files are missing."""
        if not self._is_task(key):
            for name, _ in self.find(key):
                self._require_all_files(self.zarr_arrays[name])
        return super().read(key, start, stop)

    def read_array(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start … stop - 1 of an array. Raises DamageError if they are damaged."""
        array = self.zarr_arrays[name]
        if not self.path.is_file() and (problem := self._damage(array, start, stop)):
            raise self.damage_error(name, problem)
        values = _read(self, name, array, slice(start, stop))
        return values.reshape(len(values), 1) if values.ndim == 1 else values

    def chunk_rows(self, name: str) -> int:
        """The number of rows in a chunk."""
        return int(self.zarr_arrays[name].chunks[0])

    def files(self, name: str) -> tuple[Path, list[Path]]:
        """The array's folder and its files."""
        if self.path.is_file():
            return self.path.parent, [self.path]
        folder = self._folder(self.zarr_arrays[name])
        return folder, sorted(file for file in folder.rglob("*") if file.is_file())

    def find(self, key: str) -> tuple[Part, ...]:
        """The arrays that ``key`` reads, with the slices of their columns. Raises DatasetError if one is missing."""
        parts = super().find(key)
        for name, _ in parts:
            if (rows := self.zarr_arrays[name].shape[0]) < self.num_frames:
                raise DatasetError(
                    f"data/{name} in {self.path} is truncated: it has {rows} frames, but meta/episode_ends counts "
                    f"{self.num_frames}; restore the array or shorten meta/episode_ends"
                )
        return parts

    def label(self, name: str) -> str:
        """The name of an array or a key in messages."""
        return f"data/{name}"

    def damage_error(self, name: str, problem: str) -> DamageError:
        """The error for rows of an array that cannot be read."""
        return DamageError(f"{name} in {self.path} {_DAMAGED.format(problem)}", problem)

    def _damage(self, array: zarr.Array[Any], start: int, stop: int) -> str | None:
        """What is wrong with the files of frames start … stop - 1 of an array, of what zarr does not detect; else None."""
        return find_damage(array, self._folder(array), start, stop, may_have_holes=not self._was_written_whole(array))

    def _require_all_files(self, array: zarr.Array[Any]) -> None:
        if self.path.is_file() or array.basename in self._checked or not self._was_written_whole(array):
            return
        if missing := missing_files(array, self._folder(array), self.num_frames):
            raise DatasetError(
                f"data/{array.basename} in {self.path} is incomplete: {len(missing)} of {count_files(array)} chunk files "
                f"are missing; copy the data set again{'' if self._attributes else _EMPTY_CHUNKS}"
            )
        self._checked.add(array.basename)

    def _was_written_whole(self, array: zarr.Array[Any]) -> bool:
        """Whether a missing chunk is damage; in foreign stores of format 3, it may stand for zeros."""
        return array.metadata.zarr_format == 2 or self._attributes is not None

    def _folder(self, array: zarr.Array[Any]) -> Path:
        return self.path / "data" / array.basename

    @cached_property
    def _attributes(self) -> Mapping[str, Any] | None:
        attributes = self.root.attrs.get(ATTRIBUTE)
        return attributes if isinstance(attributes, Mapping) else None

    def _check_episodes(self) -> None:
        ends = self.episode_ends
        if ends.ndim != 1 or len(ends) == 0:
            raise DatasetError(
                f"meta/episode_ends in {self.path} must be a non-empty vector, but has shape {ends.shape}"
            )
        if (steps := np.diff(ends, prepend=0)).min() <= 0:
            worst = int(np.argmin(steps))
            raise DatasetError(
                f"meta/episode_ends in {self.path} must increase from above 0, but entry {worst} is {ends[worst]} after "
                f"{ends[worst - 1] if worst else 0}; rebuild it from the episodes' lengths"
            )
        rows = self.zarr_arrays[ACTION].shape[0] if ACTION in self.arrays else self.num_frames
        if rows < self.num_frames or (rows > self.num_frames and self.is_finished):
            raise DatasetError(
                f"{self.path} is inconsistent: meta/episode_ends counts {self.num_frames} frames, but data/action has "
                f"{rows}; one of the two is truncated"
            )


def describe_unfinished(path: Path) -> list[str]:
    """One sentence for each recording for this path that was interrupted, or that is still running."""
    sentences = []
    for folder in sorted(path.parent.glob(f"{glob.escape(path.name)}.*{PARTIAL}")):
        with suppress(DatasetError):  # interrupted before the first episode was finished
            episodes = len(Store.open(folder).episode_ends)
            sentences.append(
                f"{folder} holds {episodes} finished episodes of a recording for {path.name} that was interrupted or is "
                "still running; it opens as a data set, and may be renamed once nothing writes to it"
            )
    return sentences


_EXPECTED = "expected a zarr folder with data/action, other arrays beside it, and meta/episode_ends"


_EMPTY_CHUNKS = (
    ", or, if its writer left out chunks of zeros, as zarr-python 3 does, write it anew with "
    "zarr.config.set({'array.write_empty_chunks': True})"
)


_DAMAGED = "cannot be read: a chunk is damaged ({}); copy the data set again"


def _read(store: Store, key: str, array: Any, rows: slice) -> np.ndarray:
    try:
        return np.asarray(array[rows])
    except Exception as error:  # codecs raise exceptions of any type
        raise store.damage_error(key, str(error) or type(error).__name__) from error


def _info(array: zarr.Array[Any]) -> ArrayInfo:
    shape = tuple(array.shape[1:]) or (1,)
    return ArrayInfo(shape, np.dtype(array.dtype), is_image=is_image_array(shape, np.dtype(array.dtype)))


def _arrays_in(group: zarr.Group) -> dict[str, zarr.Array[Any]]:
    try:
        return dict(group.arrays())
    except UnknownCodecError:
        try:
            from imagecodecs.numcodecs import register_codecs  # the extra umi
        except ImportError:
            pass
        else:
            register_codecs(verbose=False)
        return dict(group.arrays())
