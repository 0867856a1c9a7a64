"""Stores with images, flowchunk's and foreign ones, that the tests of this folder write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from flowchunk.datasets.formats.zarr_store import Store
from flowchunk.datasets.recorder import StoreWriter
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec

ACTIONS = ActionSpec((ActionDimension("x", "m", "world"),), control_hz=10.0)


def observations(size: tuple[int, int] = (6, 8)) -> ObservationSpec:
    """A position and an image of (height, width)."""
    return ObservationSpec({"position": ObservationField((2,)), "image": ObservationField((*size, 3), camera="front")})


OBSERVATIONS = observations()


def smooth_images(frames: int, size: tuple[int, int] = (6, 8)) -> np.ndarray:
    """Images (N, H, W, 3) with smooth shades that differ between frames, rows, columns and channels."""
    frame, row, column, channel = np.ogrid[:frames, : size[0], : size[1], :3]
    shade = 128 + 60 * np.sin(frame / 7 + row / 5) + 60 * np.cos(column / 9 + channel + frame / 11)
    return shade.astype(np.uint8)


def positions(frames: int) -> np.ndarray:
    """Frame k holds (k, -k)."""
    k = np.arange(frames, dtype=np.float32)
    return np.stack([k, -k], axis=1)


def record(path: Path, images: np.ndarray, lengths: Sequence[int], *, jpeg: int | None = None) -> Store:
    """One of flowchunk's stores: frame k's position is (k, -k), its action k."""
    frames = len(images)
    spec = observations(images.shape[1:3])
    with StoreWriter(path, observation_spec=spec, action_spec=ACTIONS, jpeg=jpeg) as writer:
        for stop, length in zip(np.cumsum(lengths), lengths, strict=True):
            rows = slice(stop - length, stop)
            values = {"position": positions(frames)[rows], "image": images[rows]}
            writer.add_episode(values, positions(frames)[rows, :1])
    return Store.open(path)


def write_foreign(path: Path, images: np.ndarray, lengths: Sequence[int], *, zarr_format: Any = 2) -> Store:
    """A store in diffusion_policy's layout, in chunks of 4 frames: ``data/img`` holds the images in any type and shape."""
    frames = len(images)
    root = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    arrays = {"img": images, "state": positions(frames), "action": positions(frames)[:, :1]}
    for name, values in arrays.items():
        root.create_array(f"data/{name}", data=values, chunks=(4, *values.shape[1:]))
    root.create_array("meta/episode_ends", data=np.cumsum(lengths))
    return open_foreign(path)


def open_foreign(path: Path) -> Store:
    """That store under the keys of ``OBSERVATIONS``."""
    return Store.open(path, sources={"image": "img", "position": "state"})


def chunk_files(store: Store, name: str) -> list[Path]:
    """The chunk files of an array, in order of their frames."""
    folder = store.path / "data" / name
    files = [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(("z", "."))]
    return sorted(
        files,
        key=lambda file: [
            int(part) for part in file.relative_to(folder).as_posix().replace("/", ".").split(".") if part.isdigit()
        ],
    )
