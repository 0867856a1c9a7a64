"""Tasks of a store: texts once, an index per frame, also of recordings that are killed, and named if damaged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.formats.zarr_store import Store
from flowchunk.datasets.recorder import StoreWriter
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from flowchunk.datasets.tasks import TaskTable
from tests.datasets.formats.episodes import interrupted

OBSERVATIONS = ObservationSpec({"state": ObservationField((1,))})
ACTIONS = ActionSpec((ActionDimension("x", "m", "world"),), control_hz=10.0)
FRAMES = 4


def writer_of(path: Path, **options: Any) -> StoreWriter:
    return StoreWriter(path, observation_spec=OBSERVATIONS, action_spec=ACTIONS, **options)


def add(writer: StoreWriter, task: Any) -> None:
    writer.add_episode({"state": np.zeros((FRAMES, 1))}, np.zeros((FRAMES, 1)), task=task)


def record(path: Path, *tasks: Any, **options: Any) -> Store:
    with writer_of(path, **options) as writer:
        for task in tasks:
            add(writer, task)
    return Store.open(path)


def texts(store: Store) -> list[str]:
    """The task of each frame."""
    assert store.task_indices is not None
    assert store.task_indices.dtype == np.int64
    return [store.tasks[index] for index in store.task_indices]


each_way = pytest.mark.parametrize("options", [{}, {"keep_unfinished": False}, {"zarr_format": 2}])


@each_way
def test_tasks_come_back(tmp_path: Path, options: dict[str, Any]) -> None:
    store = record(tmp_path / "set.zarr", "push", ["pull", "pull", "push", ""], "push", None, **options)
    assert store.tasks == ("push", "pull", "")
    assert texts(store) == ["push"] * 4 + ["pull", "pull", "push", ""] + ["push"] * 4 + [""] * 4


@each_way
def test_tasks_that_come_later(tmp_path: Path, options: dict[str, Any]) -> None:
    store = record(tmp_path / "set.zarr", None, None, "push", **options)
    assert store.tasks == ("", "push")
    assert texts(store) == [""] * 8 + ["push"] * 4


@each_way
def test_without_tasks_nothing_is_stored(tmp_path: Path, options: dict[str, Any]) -> None:
    store = record(tmp_path / "set.zarr", None, "", **options)
    assert (store.tasks, store.task_indices) == ((), None)
    assert "meta/task_index" not in store.root


def test_foreign_stores_have_no_tasks(tmp_path: Path) -> None:
    record(tmp_path / "set.zarr", "push")
    del zarr.open_group(tmp_path / "set.zarr", mode="r+").attrs["flowchunk"]
    store = Store.open(tmp_path / "set.zarr")
    assert (store.tasks, store.task_indices) == ((), None)


def test_a_recording_has_its_tasks_after_every_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kill leaves at any moment: the tasks of all episodes that readers see."""
    replace, seen = os.replace, set[int]()

    with writer_of(tmp_path / "set.zarr") as writer:
        add(writer, None)

        def replace_and_read(*arguments: Any, **options: Any) -> None:
            replace(*arguments, **options)
            store = Store.open(writer.partial)
            episodes = len(store.episode_ends)
            seen.add(episodes)
            if episodes > 1:
                assert texts(store) == ([""] * 4 + ["push"] * 4 + ["pull"] * 4)[: 4 * episodes]

        monkeypatch.setattr(os, "replace", replace_and_read)
        add(writer, "push")
        add(writer, "pull")
        monkeypatch.undo()
    assert seen >= {1, 2}
    assert texts(Store.open(tmp_path / "set.zarr")) == [""] * 4 + ["push"] * 4 + ["pull"] * 4


@pytest.mark.parametrize("keep", [True, False])
def test_an_interrupted_episode_leaves_no_task_in_any_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    with writer_of(tmp_path / "set.zarr", keep_unfinished=keep) as writer:
        add(writer, None)
        for name in ("_column", "_describe", "_add_tasks"):
            with monkeypatch.context() as patch:
                patch.setattr(writer, name, interrupted(getattr(writer, name)))
                with pytest.raises(KeyboardInterrupt):
                    add(writer, "lost")
        add(writer, "push")
        add(writer, None)
    assert texts(Store.open(tmp_path / "set.zarr")) == [""] * 4 + ["push"] * 4 + [""] * 4


def test_damaged_tasks_are_named(tmp_path: Path) -> None:
    path = record(tmp_path / "set.zarr", "push", "pull").path
    indices: Any = zarr.open_group(path, mode="r+")["meta/task_index"]
    indices[3] = 2
    with pytest.raises(DatasetError, match=r"meta/task_index in .* must hold 8 numbers from 0 to 1"):
        _ = Store.open(path).task_indices
    indices[3] = -1
    with pytest.raises(DatasetError, match="must hold 8 numbers from 0 to 1"):
        _ = Store.open(path).task_indices
    indices[3] = 0
    indices.resize((7,))
    with pytest.raises(DatasetError, match="must hold 8 numbers"):
        _ = Store.open(path).task_indices
    del zarr.open_group(path, mode="r+")["meta/task_index"]
    with pytest.raises(DatasetError, match="names tasks, but has no meta/task_index"):
        _ = Store.open(path).task_indices


def test_a_table_of_tasks() -> None:
    table = TaskTable()
    assert table.add("push", 2).tolist() == [0, 0]
    assert table.add(np.array(["pull", "push"]), 2).tolist() == [1, 0]  # type: ignore[arg-type]
    assert table.add(None, 1).tolist() == [2]
    assert table.texts == ["push", "pull", ""]
    with pytest.raises(DatasetError, match="a task that is a text, 2 texts or None, but got"):
        table.add(["new", "newer", "newest"], 2)
    assert table.texts == ["push", "pull", ""]
