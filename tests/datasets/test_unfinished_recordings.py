"""Recordings: finished episodes are kept however the recording ends, and values that cannot be stored are refused."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from flowchunk.cli.main import main
from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.formats.zarr_store import Store
from flowchunk.datasets.recorder import StoreWriter
from tests.datasets.image_stores import ACTIONS, OBSERVATIONS

FRAMES = 40
ROOT = Path(__file__).parents[2]


def writer_of(path: Path, **options: Any) -> StoreWriter:
    return StoreWriter(path, observation_spec=OBSERVATIONS, action_spec=ACTIONS, **options)


def episode(number: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Episode i: positions i, images of the shade i, actions i."""
    shade = np.full((FRAMES, 6, 8, 3), number % 256, np.uint8)
    return {"position": np.full((FRAMES, 2), float(number)), "image": shade}, np.full((FRAMES, 1), float(number))


def require_whole(path: Path) -> int:
    """The number of episodes of a store, all of which must equal those of ``episode``."""
    store = Store.open(path)
    for number, (start, stop) in enumerate(zip(store.episode_starts, store.episode_ends, strict=True)):
        observations, actions = episode(number)
        for key, expected in (*observations.items(), ("action", actions)):
            np.testing.assert_array_equal(store.read(key, start, stop), expected)
    return len(store.episode_ends)


def kept_beside(path: Path) -> Path:
    (kept,) = path.parent.glob(f"{path.name}.*.partial")
    assert not path.exists()
    return kept


# What ends a recording.


@pytest.mark.parametrize("error", [RuntimeError("the robot fell"), KeyboardInterrupt()])
def test_an_exception_leaves_the_finished_episodes_and_reports_where(
    tmp_path: Path, error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    def record_and_fail() -> None:
        with writer_of(tmp_path / "demos.zarr") as writer:
            for number in range(3):
                writer.add_episode(*episode(number))
            raise error

    with pytest.raises(type(error)):
        record_and_fail()
    kept = kept_beside(tmp_path / "demos.zarr")
    assert require_whole(kept) == 3
    assert f"3 finished episodes are kept in {kept}" in capsys.readouterr().out


def test_an_exception_before_the_first_episode_leaves_nothing(tmp_path: Path) -> None:
    def record_and_fail() -> None:
        with writer_of(tmp_path / "demos.zarr"):
            raise RuntimeError("the robot fell")

    with pytest.raises(RuntimeError):
        record_and_fail()
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_kept_if_nothing_is_to_be_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def record_and_fail() -> None:
        with writer_of(tmp_path / "demos.zarr", keep_unfinished=False) as writer:
            writer.add_episode(*episode(0))
            raise RuntimeError("the source is damaged")

    with pytest.raises(RuntimeError):
        record_and_fail()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that records images endlessly, and prints the number of each episode after adding it."""
    command = [sys.executable, "-m", "tests.datasets.record_until_ended", str(tmp_path / "demos.zarr")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("episodes", [1, 30])  # 1,200 frames: more than one file of images
def test_a_process_that_is_ended_leaves_every_finished_episode(
    recording: subprocess.Popen[str], tmp_path: Path, end: signal.Signals, episodes: int
) -> None:
    assert recording.stdout is not None
    for line in recording.stdout:
        if int(line) + 1 == episodes:
            break
    recording.send_signal(end)
    rest, _ = recording.communicate(timeout=60)
    assert recording.returncode != 0
    added = episodes + sum(line.strip().isdigit() for line in rest.splitlines())
    kept = kept_beside(tmp_path / "demos.zarr")
    assert require_whole(kept) in (added, added + 1)  # added, and killed before it could print the number
    assert main(["data", "inspect", str(kept)]) == 0
    if end == signal.SIGINT:
        assert f"are kept in {kept}" in rest


def test_later_recordings_and_readers_report_where_it_is(
    recording: subprocess.Popen[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recording.stdout is not None
    assert recording.stdout.readline() == "0\n"
    recording.kill()
    recording.communicate(timeout=60)
    path = tmp_path / "demos.zarr"
    kept = kept_beside(path)
    with pytest.raises(DatasetError, match=rf"no data set at .*: {kept} holds \d+ finished episodes"):
        Store.open(path)
    assert main(["data", "inspect", str(path)]) == 1
    assert str(kept) in capsys.readouterr().err
    with writer_of(path) as writer:
        writer.add_episode(*episode(0))
    assert f"{kept} holds" in capsys.readouterr().out
    assert require_whole(path) == 1
    assert require_whole(kept) >= 1


def test_a_recording_can_be_read_while_it_is_running(tmp_path: Path) -> None:
    with writer_of(tmp_path / "demos.zarr") as writer:
        for number in range(3):
            writer.add_episode(*episode(number))
            assert require_whole(writer.partial) == number + 1
    assert require_whole(tmp_path / "demos.zarr") == 3


@pytest.mark.parametrize(
    "grown", [("data/position",), ("data/position", "data/image", "data/action", "meta/episode_ends")]
)
def test_a_part_of_one_more_episode_is_no_damage(tmp_path: Path, grown: tuple[str, ...]) -> None:
    """What a kill leaves between an array's description, which is written first, and its values."""
    with writer_of(tmp_path / "demos.zarr") as writer:
        for number in range(3):
            writer.add_episode(*episode(number))
        root = zarr.open_group(shutil.copytree(writer.partial, tmp_path / "killed.zarr"), mode="r+")
    for name in grown:
        array = root[name]
        assert isinstance(array, zarr.Array)
        more = 1 if name == "meta/episode_ends" else 5000
        array.resize((array.shape[0] + more, *array.shape[1:]))
    assert require_whole(tmp_path / "killed.zarr") == 3


def test_an_episode_that_could_not_be_written_is_overwritten(tmp_path: Path) -> None:
    with writer_of(tmp_path / "demos.zarr") as writer:
        writer.add_episode(*episode(0))
        file = writer.partial / "data" / "action" / "c" / "0" / "0"
        content = file.read_bytes()
        file.unlink()
        file.mkdir()  # which cannot be replaced by a file
        with pytest.raises(IsADirectoryError):
            writer.add_episode(*episode(7))
        file.rmdir()
        file.write_bytes(content)
        assert require_whole(writer.partial) == 1
        writer.add_episode(*episode(1))
    assert require_whole(tmp_path / "demos.zarr") == 2


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("key", ["position", "action"])
def test_an_interrupted_episode_leaves_no_trace_in_a_finished_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, more: int, keep: bool
) -> None:
    """As with Ctrl-C while an episode is added, in a loop that then ends normally."""
    with writer_of(tmp_path / "demos.zarr", keep_unfinished=keep) as writer:
        writer.add_episode(*episode(0))
        column = writer._columns[key]
        add = column.add

        def add_and_be_interrupted(start: int, values: np.ndarray) -> None:
            add(start, values)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(column, "add", add_and_be_interrupted)
            with pytest.raises(KeyboardInterrupt):
                writer.add_episode(*episode(7))
        for number in range(more):
            writer.add_episode(*episode(1 + number))
    assert require_whole(tmp_path / "demos.zarr") == 1 + more
    arrays = Store.open(tmp_path / "demos.zarr").zarr_arrays.values()
    assert {array.shape[0] for array in arrays} == {FRAMES * (1 + more)}


# Two at once.


def test_two_writers_for_one_path_do_not_harm_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = writer_of(tmp_path / "demos.zarr"), writer_of(tmp_path / "demos.zarr")

    def record_at_once() -> None:
        with first:
            first.add_episode(*episode(0))
            with second:
                second.add_episode(*episode(0))
                first.add_episode(*episode(1))

    with pytest.raises(DatasetError, match=r"demos\.zarr exists by now"):
        record_at_once()
    assert require_whole(tmp_path / "demos.zarr") == 1
    assert require_whole(first.partial) == 2
    assert f"2 finished episodes are kept in {first.partial}" in capsys.readouterr().out


def test_everything_is_on_the_disk_before_the_store_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, fsync, rename = set[int](), os.fsync, Path.rename

    def note_fsync(descriptor: int) -> None:
        fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def check_rename(path: Path, target: Path) -> Path:
        assert {file.stat().st_ino for file in (path, *path.rglob("*"))} <= synced
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", check_rename)
    with writer_of(tmp_path / "demos.zarr") as writer:
        writer.add_episode(*episode(0))
    assert tmp_path.stat().st_ino in synced  # the new name too


# What is recorded.


@pytest.mark.parametrize("keep", [True, False])
def test_buffers_may_be_filled_again(tmp_path: Path, keep: bool) -> None:
    position, image, action = np.empty((FRAMES, 2)), np.empty((FRAMES, 6, 8, 3), np.uint8), np.empty((FRAMES, 1))
    with writer_of(tmp_path / "demos.zarr", keep_unfinished=keep) as writer:
        for number in range(3):
            position[:], image[:], action[:] = number, number, number
            writer.add_episode({"position": position, "image": image}, action)
    assert require_whole(tmp_path / "demos.zarr") == 3


@pytest.mark.parametrize(
    "first", [np.zeros((5000, 2), bool), np.ones((5000, 2), np.uint8), np.ones((5000, 2), np.int64)]
)
def test_the_type_of_the_first_values_does_not_decide(tmp_path: Path, first: np.ndarray) -> None:
    with writer_of(tmp_path / "demos.zarr") as writer:
        for values in (first, np.full((5000, 2), 0.4)):
            writer.add_episode({"position": values, "image": np.zeros((5000, 6, 8, 3), np.uint8)}, values[:, :1])
    store = Store.open(tmp_path / "demos.zarr")
    for key in ("position", "action"):
        assert store.read(key).dtype == np.float32
        np.testing.assert_array_equal(store.read(key, 0, 5000)[:, 0], first[:, 0])
        np.testing.assert_array_equal(store.read(key, 5000, 10000), np.float32(0.4))


def spoiled(key: str, value: float) -> tuple[dict[str, np.ndarray], np.ndarray]:
    observations, actions = episode(1)
    (actions if key == "action" else observations[key])[7] = value
    return observations, actions


@pytest.mark.parametrize("key", ["position", "action"])
@pytest.mark.parametrize(
    ("value", "what"),
    [(np.nan, "NaN or infinity"), (-np.inf, "NaN or infinity"), (1e39, "outside the range of float32")],
)
def test_values_that_are_not_finite_are_refused_and_named(tmp_path: Path, key: str, value: float, what: str) -> None:
    with writer_of(tmp_path / "demos.zarr") as writer:
        writer.add_episode(*episode(0))
        with pytest.raises(DatasetError, match=rf"'{key}' holds .*{what}.* in episode 1, frame 7"):
            writer.add_episode(*spoiled(key, value))
        writer.add_episode(*episode(1))
    assert require_whole(tmp_path / "demos.zarr") == 2


def large_integers() -> np.ndarray:
    return np.full((FRAMES, 2), 2**24 + 1)


def text() -> np.ndarray:
    return np.full((FRAMES, 2), "left")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (large_integers, r"'position' holds integers beyond 16777216, .* in episode 0, frame 0"),
        (text, r"'position' needs numbers, but got <U4"),
    ],
)
def test_values_that_float32_cannot_hold(tmp_path: Path, values: Callable[[], np.ndarray], message: str) -> None:
    observations, actions = episode(0)
    with writer_of(tmp_path / "demos.zarr") as writer:
        with pytest.raises(DatasetError, match=message):
            writer.add_episode(observations | {"position": values()}, actions)
        writer.add_episode(*episode(0))
    assert require_whole(tmp_path / "demos.zarr") == 1
