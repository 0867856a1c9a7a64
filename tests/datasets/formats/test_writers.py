"""What all writers promise: nothing is overwritten, nothing incomplete is left, and what is wrong is named."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.formats.lerobot_writer import LeRobotWriter
from flowchunk.datasets.formats.robomimic_writer import RobomimicWriter
from flowchunk.datasets.recorder import StoreWriter
from tests.datasets.formats.episodes import ACTIONS, OBSERVATIONS, make_episode, write

MakeWriter = Callable[..., Any]
WRITERS: dict[str, MakeWriter] = {
    "lerobot": LeRobotWriter,
    "lerobot_png": partial(LeRobotWriter, codec="png"),
    "robomimic": RobomimicWriter,
    "zarr_2": partial(StoreWriter, zarr_format=2, keep_unfinished=False),
    "zarr_3": partial(StoreWriter, keep_unfinished=False),
}
each_writer = pytest.mark.parametrize("make_writer", WRITERS.values(), ids=WRITERS)


def writer_of(make_writer: MakeWriter, path: Path) -> Any:
    return make_writer(path, observation_spec=OBSERVATIONS, action_spec=ACTIONS)


def open_files(folder: Path) -> list[str]:
    """The files in a folder that this process has open, deleted ones included."""
    descriptors = [descriptor for descriptor in Path("/proc/self/fd").iterdir() if descriptor.is_symlink()]
    return [name for name in map(os.readlink, descriptors) if name.startswith(str(folder))]


@each_writer
def test_the_result_appears_at_the_end(tmp_path: Path, make_writer: MakeWriter) -> None:
    path, episode = tmp_path / "deeper" / "set", make_episode(0, 3)
    with writer_of(make_writer, path) as writer:
        writer.add_episode(episode.observations, episode.actions)
        assert [file.name for file in path.parent.iterdir()] == [writer.partial.name]
        assert writer.partial.name.startswith("set.")
        assert writer.partial.suffix == ".partial"
        assert writer.num_episodes == 1
    assert list(path.parent.iterdir()) == [writer.path] == [path]


@each_writer
def test_nothing_is_overwritten(tmp_path: Path, make_writer: MakeWriter) -> None:
    (tmp_path / "set").write_text("precious")
    with pytest.raises(DatasetError, match="set exists already; choose another path"):
        writer_of(make_writer, tmp_path / "set")
    assert (tmp_path / "set").read_text() == "precious"


@each_writer
def test_nothing_is_overwritten_that_appeared_meanwhile(tmp_path: Path, make_writer: MakeWriter) -> None:
    episode = make_episode(0, 3)

    def write_twice() -> None:
        with writer_of(make_writer, tmp_path / "set") as writer:
            writer.add_episode(episode.observations, episode.actions)
            (tmp_path / "set").write_text("precious")

    with pytest.raises(DatasetError, match="set exists by now"):
        write_twice()
    assert [file.read_text() for file in tmp_path.iterdir()] == ["precious"]


@each_writer
def test_an_exception_leaves_nothing(tmp_path: Path, make_writer: MakeWriter) -> None:
    episode = make_episode(0, 100)  # enough for encoders to begin a file

    def write_and_fail() -> None:
        with writer_of(make_writer, tmp_path / "set") as writer:
            writer.add_episode(episode.observations, episode.actions)
            raise RuntimeError("the source is damaged")

    with pytest.raises(RuntimeError, match="the source is damaged") as raised:
        write_and_fail()
    assert list(tmp_path.iterdir()) == []
    assert not open_files(tmp_path), "while the exception, and what it refers to, is still there"
    del raised


@each_writer
def test_nothing_recorded_is_nothing_written(tmp_path: Path, make_writer: MakeWriter) -> None:
    with (
        pytest.raises(DatasetError, match=r"nothing was recorded, so .*set was not written"),
        writer_of(make_writer, tmp_path / "set"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@each_writer
def test_an_empty_episode_is_called_so(tmp_path: Path, make_writer: MakeWriter) -> None:
    episode = make_episode(0, 3)
    with writer_of(make_writer, tmp_path / "set") as writer:
        writer.add_episode(episode.observations, episode.actions)
        with pytest.raises(DatasetError, match="an episode has no actions: it is empty; leave it out"):
            writer.add_episode({key: values[:0] for key, values in episode.observations.items()}, episode.actions[:0])
        assert writer.num_episodes == 1


@each_writer
@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("state", np.zeros((3, 4)), r"an episode of 3 actions needs observations .* got .*'state': \(3, 4\)"),
        ("other", np.zeros((3, 4)), r"got .*'other': \(3, 4\)"),
        ("front", np.zeros((3, 16, 24, 3)), r"'front' needs images, uint8 \(3, 16, 24, 3\)"),
        ("state", np.array([[0, 0, 0], [0, np.inf, 0], [0, 0, np.nan]]), "'state' holds NaN .* episode 1, frame 1"),
        ("state", np.full((3, 3), 1e39), "'state' holds a value outside the range of float32"),
        ("action", np.zeros((3, 3)), r"actions must be \(T, 2\), but are \(3, 3\)"),
        ("action", np.full((3, 2), np.nan), "'action' holds NaN or infinity, first in episode 1, frame 0"),
    ],
)
def test_what_is_wrong_is_named_and_left_out(
    tmp_path: Path, make_writer: MakeWriter, key: str, values: np.ndarray, message: str
) -> None:
    episode = make_episode(0, 3)
    wrong = {**episode.observations, "action": episode.actions, key: values}
    with writer_of(make_writer, tmp_path / "set") as writer:
        writer.add_episode(episode.observations, episode.actions)
        with pytest.raises(DatasetError, match=message):
            writer.add_episode({name: wrong[name] for name in wrong if name != "action"}, wrong["action"])
        assert writer.num_episodes == 1
        writer.add_episode(episode.observations, episode.actions)
        assert writer.num_episodes == 2
    assert (tmp_path / "set").exists()


@each_writer
@pytest.mark.parametrize("task", [["push", "pull"], ["push", None, "pull"], 3])
def test_tasks_that_are_no_text(tmp_path: Path, make_writer: MakeWriter, task: Any) -> None:
    episode = make_episode(0, 3)
    with writer_of(make_writer, tmp_path / "set") as writer:
        with pytest.raises(DatasetError, match="an episode of 3 frames needs a task that is a text, 3 texts or None"):
            writer.add_episode(episode.observations, episode.actions, task=task)
        writer.add_episode(episode.observations, episode.actions)


@each_writer
def test_everything_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_writer: MakeWriter
) -> None:
    synced, fsync, rename = set[int](), os.fsync, Path.rename

    def note_fsync(descriptor: int) -> None:
        fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def check_rename(path: Path, target: Path) -> Path:
        assert {file.stat().st_ino for file in (path, *path.rglob("*"))} <= synced
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", check_rename)
    write(make_writer, tmp_path / "set")
    assert tmp_path.stat().st_ino in synced  # the new name too


@each_writer
@pytest.mark.parametrize("limit", [0, 10_000])
def test_a_disk_that_is_full_leaves_nothing(tmp_path: Path, make_writer: MakeWriter, limit: int) -> None:
    """Files that cannot grow beyond a limit; the images are noise of about 1 MB."""
    spec, rng = OBSERVATIONS, np.random.default_rng(0)
    episode = make_episode(0, 1000)
    noise = rng.integers(0, 256, (1000, 16, 24, 3), dtype=np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write_noise() -> None:
        with make_writer(tmp_path / "set", observation_spec=spec, action_spec=ACTIONS) as writer:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            writer.add_episode(episode.observations | {"front": noise}, episode.actions)

    try:
        with pytest.raises((DatasetError, OSError)):
            write_noise()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
