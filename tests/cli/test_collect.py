"""flowchunk collect: a store that depends only on the seed, without failed attempts."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import flowchunk.envs  # noqa: F401 -- registers the ids
from flowchunk.cli.main import main
from flowchunk.datasets.errors import DatasetError, SimulationError
from flowchunk.datasets.formats import open_dataset
from flowchunk.datasets.formats.zarr_store import Store
from flowchunk.envs.tasks.pick_place_expert import PickPlaceExpert


def collect(path: Path, *options: str) -> int:
    return main(["collect", "task=pickplace_state", f"output_dir={path}", *options])


def test_the_store_holds_the_demonstrations_and_their_specs(pickplace_store: Path) -> None:
    store = Store.open(pickplace_store)
    env = gymnasium.make("flowchunk/PickPlace-v1")
    assert len(store.episode_ends) == 6
    assert store.keys == ("action", "state")
    assert store.observation_spec == env.get_wrapper_attr("observation_spec")
    assert store.action_spec == env.get_wrapper_attr("action_spec")
    assert all(60 <= length <= 130 for length in store.episode_lengths)
    for key in store.keys:
        assert all(np.isfinite(block).all() for block in store.blocks(key))


def test_action_k_was_commanded_after_observation_k_and_leads_to_success(pickplace_store: Path) -> None:
    store = Store.open(pickplace_store)
    env = gymnasium.make("flowchunk/PickPlace-v1")
    states, actions = store.read("state"), store.read("action")
    for episode in (0, 3):
        observation, info = env.reset(seed=episode)
        for frame in range(store.episode_starts[episode], store.episode_ends[episode]):
            np.testing.assert_allclose(observation["state"], states[frame], atol=1e-3)  # stored as float32
            observation, *_, info = env.step(actions[frame])
        assert info["is_success"]


def test_the_same_seed_gives_the_same_demonstrations(pickplace_store: Path, tmp_path: Path) -> None:
    assert collect(tmp_path / "again.zarr", "episodes=2") == 0
    assert collect(tmp_path / "other.zarr", "episodes=1", "seed=50") == 0
    first, again, other = map(Store.open, (pickplace_store, tmp_path / "again.zarr", tmp_path / "other.zarr"))
    for key in ("state", "action"):
        np.testing.assert_array_equal(again.read(key), first.read(key, 0, again.num_frames))
    assert not np.array_equal(other.read("state", 0, 1), first.read("state", 0, 1))


def test_demonstrations_with_images_equal_those_with_states(pickplace_store: Path, tmp_path: Path) -> None:
    try:
        env = gymnasium.make("flowchunk/PickPlace-v1", observation="image")
    except SimulationError as error:
        pytest.skip(f"nothing can be rendered here: {error}")
    assert collect(tmp_path / "images.zarr", "episodes=2", "env.observation=image") == 0
    states, images = Store.open(pickplace_store), Store.open(tmp_path / "images.zarr")
    assert images.observation_spec == env.get_wrapper_attr("observation_spec")
    np.testing.assert_array_equal(images.read("action"), states.read("action", 0, images.num_frames))
    np.testing.assert_array_equal(
        images.read("proprioception")[:, :10], states.read("state", 0, images.num_frames)[:, :10]
    )
    observation, _ = env.reset(seed=0)
    env.close()
    for key in ("front_image", "wrist_image"):
        assert images.read(key, 0, 1).dtype == np.uint8
        np.testing.assert_array_equal(images.read(key, 0, 1)[0], observation[key])


def test_arguments_of_the_environment_are_used(tmp_path: Path) -> None:
    assert collect(tmp_path / "poses.zarr", "episodes=1", "env.action=end_effector_pose") == 0
    spec = Store.open(tmp_path / "poses.zarr").action_spec
    assert spec is not None
    assert spec.size == 10


@contextmanager
def collecting(path: Path) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, with three demonstrations recorded."""
    command = [sys.executable, "-m", "flowchunk.cli.main", "collect", "task=pickplace_state", f"output_dir={path}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: len(episode_ends(path)) >= 3 or process.poll() is not None)
            assert process.poll() is None, process.communicate()
            yield process
        finally:
            process.kill()


def episode_ends(path: Path) -> np.ndarray:
    """Of the recording for this path that goes on."""
    for kept in path.parent.glob(f"{path.name}.*.partial"):
        with suppress(DatasetError):  # before the first episode
            return Store.open(kept).episode_ends
    return np.empty(0)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def require_first_demonstrations(kept: Path, pickplace_store: Path) -> int:
    """The number of episodes of what was kept, whose first are those of an undisturbed collection."""
    store, expected = Store.open(kept), Store.open(pickplace_store)
    frames = min(store.num_frames, expected.num_frames)
    for key in ("state", "action"):
        np.testing.assert_array_equal(store.read(key, 0, frames), expected.read(key, 0, frames))
    return len(store.episode_ends)


def test_an_interruption_keeps_the_finished_demonstrations_and_says_where(
    tmp_path: Path, pickplace_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with collecting(tmp_path / "store.zarr") as process:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    (kept,) = tmp_path.iterdir()
    episodes = require_first_demonstrations(kept, pickplace_store)
    assert f"{episodes} finished episodes are kept in {kept}" in said
    assert f"interrupted after {episodes} of 200 demonstrations" in said
    assert "training.resume" not in said
    assert main(["data", "inspect", str(kept)]) == 0
    shown = capsys.readouterr().out
    assert f"{episodes} episodes" in shown
    assert "an unfinished or ongoing recording" in shown


def test_after_a_kill_the_next_command_says_what_is_kept(
    tmp_path: Path, pickplace_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "store.zarr"
    with collecting(path) as process:
        process.kill()
        process.communicate(timeout=60)
    (kept,) = tmp_path.iterdir()
    episodes = require_first_demonstrations(kept, pickplace_store)
    assert episodes >= 3
    assert main(["data", "inspect", str(path)]) == 1
    assert f"{kept} holds {episodes} finished episodes" in capsys.readouterr().err
    assert collect(path, "episodes=1") == 0
    assert f"{kept} holds {episodes} finished episodes" in capsys.readouterr().err
    assert len(Store.open(path).episode_ends) == 1
    assert require_first_demonstrations(kept, pickplace_store) == episodes


class Halfhearted(PickPlaceExpert):
    """Gives up in every other episode, from the first on."""

    episodes = 0

    def reset(self, env: Any) -> None:
        super().reset(env)
        Halfhearted.episodes += 1

    def act(self, env: Any) -> Any:
        action = super().act(env)
        return np.append(env.joint_targets(), 0.07) if Halfhearted.episodes % 2 else action


class Idle(PickPlaceExpert):
    """Never does anything."""

    def act(self, env: Any) -> Any:
        return np.append(env.joint_targets(), 0.07)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gymnasium.spec("flowchunk/PickPlace-v1"), "max_episode_steps", 120)


@pytest.mark.usefixtures("impatient")
def test_failed_attempts_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flowchunk.envs.tasks.pick_place_expert.PickPlaceExpert", Halfhearted)
    assert collect(tmp_path / "store.zarr", "episodes=2") == 0
    assert "2 demonstrations (4 attempts)" in capsys.readouterr().out
    store, env = Store.open(tmp_path / "store.zarr"), gymnasium.make("flowchunk/PickPlace-v1")
    for episode, seed in enumerate((1, 3)):
        start = store.read("state", store.episode_starts[episode], store.episode_starts[episode] + 1)[0]
        np.testing.assert_array_equal(start, env.reset(seed=seed)[0]["state"])


@pytest.mark.usefixtures("impatient")
def test_an_expert_that_keeps_failing_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flowchunk.envs.tasks.pick_place_expert.PickPlaceExpert", Idle)
    assert collect(tmp_path / "store.zarr", "episodes=2") == 1
    assert "the expert failed in 10 of 10 attempts" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_robomimic_has_the_same_demonstrations(pickplace_store: Path, tmp_path: Path) -> None:
    """The last tenth is for validation: of ten episodes, one."""
    assert collect(tmp_path / "arm.hdf5", "episodes=10") == 0
    source, store = open_dataset(tmp_path / "arm.hdf5"), Store.open(pickplace_store)
    assert source.format == "robomimic HDF5"
    assert source.validation_episodes is not None
    assert source.validation_episodes.tolist() == [9]
    for key in ("state", "action"):
        np.testing.assert_array_equal(source.read(key, 0, store.num_frames), store.read(key))
