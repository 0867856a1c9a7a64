"""Read images from any store as uint8 RGB, and name those that cannot be read.

Flowchunk's stores hold uint8 (N, H, W, 3). diffusion_policy's hold float32 with integers from 0 to 255, which are converted.
An image whose size, channel order or range of values differs from the specification is an error, never a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flowchunk.datasets.episode_source import ArrayInfo, DamageError, EpisodeSource
from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.image_scaling import scale_images
from flowchunk.datasets.specs import ObservationField


@dataclass(frozen=True)
class ImageReader:
    """Reads the images of one observation key; create it with ``ImageReader.find``.

    name, info: the array that holds them. columns: the slice of its rows of pixels that is read.
    """

    store: EpisodeSource
    key: str
    field: ObservationField
    name: str
    info: ArrayInfo
    columns: slice

    @classmethod
    def find(cls, store: EpisodeSource, key: str, field: ObservationField) -> ImageReader:
        """A reader for ``key``. Raises DatasetError if its images are missing, or differ from the field in size or order."""
        name = (store.sources.get(key) or store.description.arrays.get(key) or key).partition("[")[0]
        if name not in store.arrays and name not in store.description.arrays:
            raise DatasetError(
                f"camera {field.camera!r} is missing: {store.path} has no array {store.label(name)} (wanted for {key!r}), "
                f"only {sorted(store.arrays)}; use a data set that was recorded with this camera, or set "
                f"dataset.sources.{key} to the array that holds its images"
            )
        parts = store.find(key)
        if len(parts) > 1:
            raise DatasetError(f"dataset.sources.{key} joins several arrays, but images are read from one")
        name, columns = parts[0]
        source = cls(store, key, field, name, store.arrays[name], slice(None) if columns is None else columns)
        source._check_shape(store.shape(key))
        if source.info.dtype != np.uint8 and source.info.dtype.kind != "f":
            raise DatasetError(
                f"{source} holds {source.info.dtype}, but images are uint8 from 0 to 255 (or floats that are integers in "
                "that range); convert them"
            )
        return source

    def __str__(self) -> str:
        return f"{self.store.label(self.name)} in {self.store.path}"

    def frame_bytes(self) -> int:
        """Bytes of one stored frame before compression."""
        return self.info.dtype.itemsize * int(np.prod(self.info.shape))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Frames start … stop - 1, uint8 (stop - start, H, W, 3).

        Raises DatasetError, with the episode and the frame, if one is damaged or has values that no image has.
        """
        frames, damaged = self.read_undamaged(start, stop)
        if damaged:
            raise self.damage_error(damaged)
        return frames

    def read_undamaged(self, start: int, stop: int) -> tuple[np.ndarray, dict[int, str]]:
        """Frames start … stop - 1, uint8 (stop - start, H, W, 3), and {frame: what is wrong} of those that are damaged.

        Damaged frames are black. Raises DatasetError for values that no image has.
        """
        try:
            return self._read(start, stop), {}
        except DamageError:
            pass
        frames = np.zeros((stop - start, *self.field.shape), np.uint8)
        damaged: dict[int, str] = {}
        chunk = self.store.chunk_rows(self.name)
        for first in range(start // chunk * chunk, stop, chunk):  # damage is limited to its chunk
            rows = range(max(first, start), min(first + chunk, stop))
            try:
                frames[rows.start - start : rows.stop - start] = self._read(rows.start, rows.stop)
            except DamageError as error:
                damaged |= dict.fromkeys(rows, error.problem)
        return frames, damaged

    def damage_error(self, damaged: Mapping[int, str]) -> DatasetError:
        """The error for {frame: what is wrong}, with the first of these frames."""
        frame = min(damaged)
        return DatasetError(
            f"{self.name_of(frame)} cannot be read: {damaged[frame]}; copy the data set again, or leave damaged episodes "
            "out: --skip-corrupt"
        )

    def name_of(self, frame: int) -> str:
        """A frame's name in messages: ``episode 3, frame 17 of data/image in PATH``."""
        episode, number = self.store.place_of(frame)
        return f"episode {episode}, frame {number} of {self}"

    def _read(self, start: int, stop: int) -> np.ndarray:
        values = self.store.read_array(self.name, start, stop)[:, self.columns]
        if values.dtype != np.uint8 and len(values):
            self._check_values(start, values)
        images = values.astype(np.uint8, copy=False)
        size = self.field.shape[:2]
        return images if images.shape[1:3] == size or self.store.image_size is None else scale_images(images, size)

    def _check_shape(self, got: tuple[int, ...]) -> None:
        height, width, channels = expected = self.field.shape
        if got == expected:
            return
        if got == (channels, height, width) or (len(got) == 3 and got[0] in (1, 3) and got[2] not in (1, 3)):
            raise DatasetError(
                f"{self} has the channel order (channels, height, width), frames of shape {got}, but the task expects "
                f"(height, width, RGB), {expected}; record it in that order, or convert it (np.moveaxis(images, 1, -1))"
            )
        if len(got) == 3 and got[2] == channels:
            raise DatasetError(
                f"{self} has images of {got[0]}x{got[1]} pixels, but the task expects {height}x{width}; use the "
                "task that the data was recorded with, or resize them"
            )
        raise DatasetError(
            f"{self} has frames of shape {got}, but the task expects images (height, width, RGB), {expected}; use the task "
            "that the data was recorded with"
        )

    def _check_values(self, start: int, values: np.ndarray) -> None:
        """Raise DatasetError unless floats are integers from 0 to 255."""
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
        """Whether any readable value is above 1; if so, a block of only zeros and ones is merely dark."""
        step = self.store.chunk_rows(self.name)
        for start in range(0, self.store.num_frames, step):
            stop = min(start + step, self.store.num_frames)
            with suppress(DamageError):  # ``read`` reports damage
                if self.store.read_array(self.name, start, stop)[:, self.columns].max() > 1:
                    return True
        return False

    def _wrong_range(self, frame: int, values: np.ndarray, what: str) -> str:
        low, high = float(values.min()), float(values.max())
        advice = "multiply them by 255" if low >= 0 and high <= 1 else "convert them to that range"
        return (
            f"{self.name_of(frame)} holds {what} (from {low:g} to {high:g}), but images hold integers from 0 to 255; "
            f"{advice}"
        )


def report_dropped_episodes(
    store: EpisodeSource,
    sources: Mapping[str, ImageReader],
    damaged: Mapping[str, Mapping[int, str]],
    say: Callable[[str], None],
) -> dict[int, str]:
    """Report the episodes that are left out because of unreadable frames, and return {episode: reason}.

    damaged: {frame: what is wrong} for each key. Raises DatasetError if no episode is left.
    """
    reasons: dict[int, str] = {}
    for key, frames in damaged.items():
        for frame, reason in sorted(frames.items()):
            episode, number = store.place_of(frame)
            reasons.setdefault(episode, f"frame {number} of {store.label(sources[key].name)}: {reason}")
    if reasons:
        episodes = len(store.episode_ends)
        listed = "; ".join(f"episode {episode} ({reason})" for episode, reason in sorted(reasons.items()))
        say(f"left out {len(reasons)} of {episodes} episodes with frames that cannot be read: {listed}")
        if len(reasons) == episodes:
            raise DatasetError(
                f"every episode of {store.path} holds frames that cannot be read; copy the data set again"
            )
    return reasons
