"""Read pictures from any store as uint8 RGB, and say of those that cannot be read which they are.

Ours hold uint8 (N, H, W, 3). diffusion_policy's hold float32 with whole numbers from 0 to 255, which are recognised. What
is of another size, channel order or range of values than the specification says is refused, never guessed at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.specs import ObservationField
from flowchunk.datasets.store import Store


@dataclass(frozen=True)
class PictureSource:
    """Where a picture of the specification is read from; ``PictureSource.find`` makes one.

    array: (at least N, H, W, 3), columns: the part of its rows of pixels that is read.
    """

    store: Store
    key: str
    field: ObservationField
    array: zarr.Array[Any]
    columns: slice

    @classmethod
    def find(cls, store: Store, key: str, field: ObservationField) -> PictureSource:
        """The pictures of ``key``. Raises DatasetError where they are missing, or not of the field's size and order."""
        name = store.sources.get(key, key).partition("[")[0]
        if name not in store.arrays:
            raise DatasetError(
                f"camera {field.camera!r} is missing: {store.path} has no array data/{name} (wanted for {key!r}), only "
                f"{sorted(store.arrays)}; use a data set that was recorded with this camera, or say in "
                f"dataset.sources.{key} which array holds it"
            )
        array, columns = store.find(key)
        source = cls(store, key, field, array, slice(None) if columns is None else columns)
        source._check_shape(store.shape(key))
        if array.dtype != np.uint8 and array.dtype.kind != "f":
            raise DatasetError(
                f"{source} holds {array.dtype}, but pictures are uint8 from 0 to 255 (or floats with whole numbers in that "
                "range); convert them"
            )
        return source

    def __str__(self) -> str:
        return f"data/{self.array.basename} in {self.store.path}"

    @property
    def folder(self) -> Path:
        """The folder that holds the array's files."""
        return self.store.path / "data" / self.array.basename

    def frame_bytes(self) -> int:
        """Bytes of one frame as it lies on disk, before compression."""
        return self.array.dtype.itemsize * int(np.prod(self.array.shape[1:]))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Frames start … stop - 1, uint8 (stop - start, H, W, 3).

        Raises DatasetError that names episode and frame where one is damaged or its values are no picture's.
        """
        frames, damaged = self.read_undamaged(start, stop)
        if damaged:
            raise self.damage_error(damaged)
        return frames

    def read_undamaged(self, start: int, stop: int) -> tuple[np.ndarray, dict[int, str]]:
        """Frames start … stop - 1, uint8 (stop - start, H, W, 3), and {frame: what is wrong} of those that are damaged.

        Damaged frames are black. Raises DatasetError where a value is no picture's.
        """
        try:
            return self._read(start, stop), {}
        except _DamageError:
            pass
        frames = np.zeros((stop - start, *self.field.shape), np.uint8)
        damaged: dict[int, str] = {}
        chunk = self.array.chunks[0]
        for first in range(start // chunk * chunk, stop, chunk):  # only what shares a chunk is lost together
            rows = range(max(first, start), min(first + chunk, stop))
            try:
                frames[rows.start - start : rows.stop - start] = self._read(rows.start, rows.stop)
            except _DamageError as error:
                damaged |= dict.fromkeys(rows, str(error))
        return frames, damaged

    def damage_error(self, damaged: Mapping[int, str]) -> DatasetError:
        """What to raise for {frame: what is wrong}; it names the first."""
        frame = min(damaged)
        return DatasetError(
            f"{self.name_of(frame)} cannot be read: {damaged[frame]}; copy the data set again, or leave damaged episodes "
            "out: --skip-corrupt"
        )

    def name_of(self, frame: int) -> str:
        """How a message names a frame: ``episode 3, frame 17 of data/image in PATH``."""
        episode, number = self.store.place_of(frame)
        return f"episode {episode}, frame {number} of {self}"

    def _read(self, start: int, stop: int) -> np.ndarray:
        if problem := self.store.damage(self.array, start, stop):
            raise _DamageError(problem)
        try:
            values = np.asarray(self.array[start:stop])
        except Exception as error:  # codecs raise errors of their own kinds
            raise _DamageError(str(error) or type(error).__name__) from error
        values = values[:, self.columns]
        if values.dtype != np.uint8 and len(values):
            self._check_values(start, values)
        return values.astype(np.uint8, copy=False)

    def _check_shape(self, got: tuple[int, ...]) -> None:
        height, width, channels = expected = self.field.shape
        if got == expected:
            return
        if got == (channels, height, width) or (len(got) == 3 and got[0] in (1, 3) and got[2] not in (1, 3)):
            raise DatasetError(
                f"{self} has the channel order (channels, height, width), frames of shape {got}, but the task expects "
                f"(height, width, RGB), {expected}; record or convert it that way round (np.moveaxis(frames, 1, -1))"
            )
        if len(got) == 3 and got[2] == channels:
            raise DatasetError(
                f"{self} has pictures of {got[0]}x{got[1]} pixels, but the task expects {height}x{width}; use the "
                "task that the data was recorded with, or resize them"
            )
        raise DatasetError(
            f"{self} has frames of shape {got}, but the task expects pictures (height, width, RGB), {expected}; use the task "
            "that the data was recorded with"
        )

    def _check_values(self, start: int, values: np.ndarray) -> None:
        """Raise DatasetError unless floats hold whole numbers from 0 to 255."""
        rows = values.reshape(len(values), -1)
        for is_bad, what in (
            (~np.isfinite(rows).all(axis=1), "NaN or infinity"),
            ((rows.min(axis=1) < 0) | (rows.max(axis=1) > 255), "values below 0 or above 255"),
            ((rows != np.floor(rows)).any(axis=1), "fractions"),
        ):
            if is_bad.any():
                worst = int(np.argmax(is_bad))
                raise DatasetError(self._wrong_range(start + worst, rows[worst], what))
        if 0 < rows.max() <= 1 and not self._has_bright_values:
            raise DatasetError(self._wrong_range(start + int(np.argmax(rows.max(axis=1))), rows, "no value above 1"))

    @cached_property
    def _has_bright_values(self) -> bool:
        """Whether any value that can be read is above 1; a block of zeros and ones alone is then a dark one."""
        step = self.array.chunks[0]
        for start in range(0, self.store.frames, step):
            stop = min(start + step, self.store.frames)
            with suppress(Exception):  # codecs raise errors of their own kinds; damage is named where it is read
                is_whole = self.store.damage(self.array, start, stop) is None
                if is_whole and np.asarray(self.array[start:stop])[:, self.columns].max() > 1:
                    return True
        return False

    def _wrong_range(self, frame: int, values: np.ndarray, what: str) -> str:
        low, high = float(values.min()), float(values.max())
        advice = "multiply them by 255" if low >= 0 and high <= 1 else "convert them to that range"
        return (
            f"{self.name_of(frame)} holds {what} (from {low:g} to {high:g}), but pictures hold whole numbers from 0 to 255; "
            f"{advice}"
        )


def name_dropped_episodes(
    store: Store,
    sources: Mapping[str, PictureSource],
    damaged: Mapping[str, Mapping[int, str]],
    say: Callable[[str], None],
) -> dict[int, str]:
    """Say which episodes are left out for frames that cannot be read, and return {episode: why}.

    damaged: of every key, {frame: what is wrong}. Raises DatasetError where no episode is left.
    """
    reasons: dict[int, str] = {}
    for key, frames in damaged.items():
        for frame, reason in sorted(frames.items()):
            episode, number = store.place_of(frame)
            reasons.setdefault(episode, f"frame {number} of data/{sources[key].array.basename}: {reason}")
    if reasons:
        episodes = len(store.episode_ends)
        listed = "; ".join(f"episode {episode} ({why})" for episode, why in sorted(reasons.items()))
        say(f"left out {len(reasons)} of {episodes} episodes with frames that cannot be read: {listed}")
        if len(reasons) == episodes:
            raise DatasetError(
                f"every episode of {store.path} holds frames that cannot be read; copy the data set again"
            )
    return reasons


class _DamageError(Exception):
    """Frames that cannot be read; it does not leave this file."""
