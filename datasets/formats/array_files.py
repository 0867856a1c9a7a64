"""Arrays in an HDF5 or an npz file by name, whichever it is; with a suggestion of a mapping for files of no known layout."""

from __future__ import annotations

import fnmatch
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from flowchunk.datasets.description import BOOKKEEPING, is_image_array
from flowchunk.datasets.episode_source import ArrayInfo
from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.formats.robomimic import arrays_in, info_of, open_hdf5


class ArrayFile(ABC):
    """A file with named arrays. kind: its type, in messages. arrays: those with rows, by name."""

    kind: ClassVar[str]

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    @abstractmethod
    def arrays(self) -> Mapping[str, ArrayInfo]:
        """The arrays that have rows, by name."""

    @abstractmethod
    def rows(self, name: str) -> int:
        """The number of rows of an array."""

    @abstractmethod
    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start … stop - 1 of an array."""

    def groups(self, pattern: str) -> list[str]:
        """The prefixes of names, such as ``demo_0/``, whose group matches a pattern, ordered by number."""
        depth = pattern.count("/") + 1
        groups = {"/".join(name.split("/")[:depth]) for name in self.arrays if name.count("/") >= depth}
        return [f"{group}/" for group in sorted(fnmatch.filter(groups, pattern), key=_by_numbers)]


class Hdf5File(ArrayFile):
    """An HDF5 file; rows are read from the disk when they are asked for."""

    kind = "HDF5"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._datasets = {name: dataset for name, dataset in arrays_in(open_hdf5(path)).items() if dataset.shape}

    @cached_property
    def arrays(self) -> Mapping[str, ArrayInfo]:
        return {name: info_of(dataset) for name, dataset in self._datasets.items()}

    def rows(self, name: str) -> int:
        return int(self._datasets[name].shape[0])

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        return np.asarray(self._datasets[name][start:stop])


class NpzFile(ArrayFile):
    """A file of ``np.savez``; an array is read as a whole, and the last one is kept, because rows are read in order."""

    kind = "npz"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._kept: tuple[str, np.ndarray] | None = None
        try:
            with zipfile.ZipFile(path) as content:
                self._headers = {name.removesuffix(".npy"): _header(content, name) for name in content.namelist()}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise DatasetError(f"{path} cannot be opened as npz ({error}): it is truncated; copy it again") from error

    @cached_property
    def arrays(self) -> Mapping[str, ArrayInfo]:
        found = {}
        for name, (shape, dtype) in self._headers.items():
            if shape:
                frame = shape[1:] or (1,)
                found[name] = ArrayInfo(frame, dtype, is_image_array(frame, dtype))
        return found

    def rows(self, name: str) -> int:
        return int(self._headers[name][0][0])

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        if self._kept is None or self._kept[0] != name:
            with np.load(self.path, allow_pickle=False) as content:
                self._kept = name, content[name]
        return self._kept[1][start:stop]


def open_array_file(path: Path) -> ArrayFile:
    """Open an HDF5 or npz file. Raises DatasetError if it is damaged or neither."""
    return NpzFile(path) if path.suffix == ".npz" else Hdf5File(path)


def _header(content: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
    with content.open(name) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    return shape, dtype


def suggest_mapping(file: ArrayFile) -> str:
    """A mapping to start from, as YAML, by the names and shapes in the file."""
    names = sorted(file.arrays)
    first = min((name.split("/")[0] for name in names if "/" in name), key=_by_numbers, default="")
    pattern = re.sub(r"\d+$", "*", first)
    inside = (
        [name.removeprefix(f"{first}/") for name in names if name.startswith(f"{first}/")]
        if pattern != first
        else names
    )
    prefix = f"{first}/" if pattern != first else ""
    action = next((name for name in inside if re.search(r"(^|/)(actions?|act|ctrl)$", name)), None)
    rows = file.rows(prefix + action) if action else None
    inside = [name for name in inside if not BOOKKEEPING.fullmatch(name)]
    observed = [name for name in inside if name != action and (rows is None or file.rows(prefix + name) == rows)]
    lines = [f"data: {file.path.name}", *([f'episodes: "{pattern}"'] if prefix else []), "control_hz: HZ"]
    lines += [f"action: {{array: {action or 'NAME'}, unit: UNIT}}", "observations:"]
    lines += [
        f"  {name.rpartition('/')[2]}: {{array: {name}}}  # {file.arrays[prefix + name].shape}" for name in observed
    ]
    return "\n".join(lines)


def _by_numbers(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else 0 for part in re.split(r"(\d+)", name)[1::2]] + [0]
