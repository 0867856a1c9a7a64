"""A data set of three episodes, and what an image cache reports about its images, for the tests of this folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flowchunk.datasets import image_cache
from flowchunk.datasets.formats.zarr_store import Store
from flowchunk.datasets.image_cache import DeviceMemory, ImageCache, ImageCacheOptions, load_image_cache
from tests.datasets.image_stores import OBSERVATIONS, record, smooth_images

FIELDS = OBSERVATIONS.images
LENGTHS = (30, 10, 40)
IMAGES = smooth_images(80)
NBYTES = IMAGES.nbytes


def load(
    store: Store, folder: Path, mode: str = "disk", *, device_free: int | None = None, **options: Any
) -> ImageCache:
    messages: list[str] = []
    options = {"mode": mode, "directory": folder, **options}
    on_device: dict[str, np.ndarray] = {}
    device = None if device_free is None else DeviceMemory(device_free, partial(image_cache._allocate, on_device))
    cache = load_image_cache(store, FIELDS, ImageCacheOptions(**options), device=device, say=messages.append)
    cache.arrays = cache.arrays or on_device
    cache.messages = messages  # type: ignore[attr-defined]
    return cache


def messages(cache: ImageCache) -> str:
    return "\n".join(cache.messages)  # type: ignore[attr-defined]


def is_new(cache: ImageCache) -> bool:
    assert ("are decoded to" in messages(cache)) != ("found in" in messages(cache))
    return "are decoded to" in messages(cache)


def change_a_frame(store: Store) -> Store:
    images = IMAGES.copy()
    images[79, 5, 7, 2] ^= 1
    return record(store.path.parent / "changed.zarr", images, LENGTHS)
