"""Stores of zarr format 2, which diffusion_policy reads: its layout and compression, and our specifications come back."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from flowchunk.datasets.errors import ConfigurationError, DatasetError
from flowchunk.datasets.formats.zarr_store import Store
from flowchunk.datasets.recorder import StoreWriter
from tests.datasets.formats.episodes import (
    ACTIONS,
    LENGTHS,
    OBSERVATIONS,
    TASK_TEXTS,
    everything,
    make_episode,
    write,
)

Writer = partial(StoreWriter, zarr_format=2)


def metadata(path: Path, array: str) -> dict[str, object]:
    return dict(json.loads((path / array / ".zarray").read_text()))


def test_everything_comes_back(tmp_path: Path) -> None:
    store = Store.open(write(Writer, tmp_path / "set.zarr"))
    assert (store.observation_spec, store.action_spec) == (OBSERVATIONS, ACTIONS)
    np.testing.assert_array_equal(store.episode_lengths, LENGTHS)
    for key, values in everything().observations.items():
        np.testing.assert_array_equal(store.read(key), values)
        assert store.read(key).dtype == (np.uint8 if key == "front" else np.float32)
    np.testing.assert_array_equal(store.read("action"), everything().actions)
    assert store.task_indices is not None
    assert [store.tasks[index] for index in store.task_indices] == TASK_TEXTS


def test_the_layout_is_diffusion_policys(tmp_path: Path) -> None:
    path = write(Writer, tmp_path / "set.zarr", tasks=None)
    assert json.loads((path / ".zgroup").read_text()) == {"zarr_format": 2}
    assert not list(path.rglob("zarr.json"))
    arrays = {str(file.parent.relative_to(path)) for file in path.rglob(".zarray")}
    assert arrays == {"meta/episode_ends", *(f"data/{key}" for key in (*OBSERVATIONS.fields, "action"))}
    for array, dtype, chunks in (("action", "<f4", [4096, 2]), ("front", "|u1", [16, 16, 24, 3])):
        described = metadata(path, f"data/{array}")
        assert (described["dtype"], described["chunks"], described["order"]) == (dtype, chunks, "C")
        assert described["compressor"] == {"id": "blosc", "cname": "zstd", "clevel": 5, "shuffle": 2, "blocksize": 0}
        assert described.get("dimension_separator", ".") == "."
    assert metadata(path, "meta/episode_ends")["dtype"] == "<i8"


def test_missing_and_truncated_chunks_are_noticed(tmp_path: Path) -> None:
    episode = make_episode(0, 40)
    with Writer(tmp_path / "set.zarr", observation_spec=OBSERVATIONS, action_spec=ACTIONS) as writer:
        zeros = {**episode.observations, "front": np.zeros((40, 16, 24, 3), np.uint8)}
        writer.add_episode(zeros, episode.actions)
    chunk = tmp_path / "set.zarr" / "data" / "front" / "1.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(DatasetError, match="a chunk is damaged"):
        Store.open(tmp_path / "set.zarr").read("front")
    chunk.unlink()
    with pytest.raises(DatasetError, match="1 of 3 chunk files are missing"):
        Store.open(tmp_path / "set.zarr").read("front")


def test_format_2_holds_no_jpegs(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="jpeg=90 needs zarr_format=3"):
        Writer(tmp_path / "set.zarr", observation_spec=OBSERVATIONS, action_spec=ACTIONS, jpeg=90)
