"""A data set of three episodes, and what a frame cache says of its pictures, for the tests of this folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flowchunk.datasets import frame_cache
from flowchunk.datasets.frame_cache import DeviceMemory, FrameCacheOptions, Frames, load_frames
from flowchunk.datasets.store import Store
from tests.datasets.picture_stores import OBSERVATIONS, record, smooth_pictures

FIELDS = OBSERVATIONS.pictures
LENGTHS = (30, 10, 40)
PICTURES = smooth_pictures(80)
NBYTES = PICTURES.nbytes


def load(store: Store, folder: Path, mode: str = "disk", *, device_free: int | None = None, **options: Any) -> Frames:
    said: list[str] = []
    options = {"mode": mode, "directory": folder, **options}
    on_device: dict[str, np.ndarray] = {}
    device = None if device_free is None else DeviceMemory(device_free, partial(frame_cache._allocate, on_device))
    frames = load_frames(store, FIELDS, FrameCacheOptions(**options), device=device, say=said.append)
    frames.arrays = frames.arrays or on_device
    frames.said = said  # type: ignore[attr-defined]
    return frames


def said(frames: Frames) -> str:
    return "\n".join(frames.said)  # type: ignore[attr-defined]


def is_new(frames: Frames) -> bool:
    assert ("are expanded to" in said(frames)) != ("found in" in said(frames))
    return "are expanded to" in said(frames)


def change_a_frame(store: Store) -> Store:
    pictures = PICTURES.copy()
    pictures[79, 5, 7, 2] ^= 1
    return record(store.path.parent / "changed.zarr", pictures, LENGTHS)
