"""robomimic's files as they are written: its layout, exact values, tasks and masks."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.formats.robomimic_writer import RobomimicWriter, SimulatedEpisode
from flowchunk.datasets.specs import ActionSpec, ObservationField, ObservationSpec
from tests.datasets.formats.episodes import (
    ACTIONS,
    LENGTHS,
    OBSERVATIONS,
    TASK_TEXTS,
    episodes,
    interrupted,
    make_episode,
    write,
)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every array of the file by its name, and every attribute."""
    arrays, attributes = {}, {}

    def visit(name: str, item: Any) -> None:
        attributes.update({f"{name}:{key}": value for key, value in item.attrs.items()})
        if isinstance(item, h5py.Dataset):
            arrays[name] = item[()]

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return arrays, attributes


def test_the_layout_is_robomimics(tmp_path: Path) -> None:
    arrays, attributes = read(write(RobomimicWriter, tmp_path / "demos.hdf5", tasks=None, env_name="Lift"))
    keys = ("actions", "dones", *(f"obs/{key}" for key in OBSERVATIONS.fields))
    assert set(arrays) == {f"data/demo_{number}/{key}" for number in range(3) for key in keys}
    specs = json.loads(attributes.pop("data:flowchunk"))
    assert ObservationSpec.from_json(specs["observation_spec"]) == OBSERVATIONS
    assert ActionSpec.from_json(specs["action_spec"]) == ACTIONS
    assert specs["format_version"] == 1
    environment = json.loads(attributes.pop("data:env_args"))
    assert environment == {"env_name": "Lift", "type": 2, "env_kwargs": {"control_freq": 10.0}}
    samples = {f"data/demo_{number}:num_samples": length for number, length in enumerate(LENGTHS)}
    assert attributes == samples | {"data:total": sum(LENGTHS)}


def test_values_and_images_come_back(tmp_path: Path) -> None:
    arrays, _ = read(write(RobomimicWriter, tmp_path / "demos.hdf5"))
    for number, episode in enumerate(episodes()):
        for key, values in episode.observations.items():
            stored = arrays[f"data/demo_{number}/obs/{key}"]
            np.testing.assert_array_equal(stored, values)
            assert stored.dtype == (np.uint8 if key == "front" else np.float32)
        np.testing.assert_array_equal(arrays[f"data/demo_{number}/actions"], episode.actions)
        dones = arrays[f"data/demo_{number}/dones"]
        assert dones.tolist() == [0] * (LENGTHS[number] - 1) + [1]
        assert dones.dtype == np.int64


def test_an_image_is_read_without_its_neighbors(tmp_path: Path) -> None:
    write(RobomimicWriter, tmp_path / "demos.hdf5")
    with h5py.File(tmp_path / "demos.hdf5", "r") as file:
        images = file["data/demo_0/obs/front"]
        assert images.chunks == (1, 16, 24, 3)
        assert images.compression == "gzip"


def test_tasks(tmp_path: Path) -> None:
    arrays, attributes = read(write(RobomimicWriter, tmp_path / "demos.hdf5"))
    texts = attributes["data:tasks"].tolist()
    assert texts == ["push", "pull", ""]
    indices = np.concatenate([arrays[f"data/demo_{number}/task_index"] for number in range(3)])
    assert [texts[index] for index in indices] == TASK_TEXTS
    assert indices.dtype == np.int64


def test_tasks_that_come_later(tmp_path: Path) -> None:
    arrays, attributes = read(write(RobomimicWriter, tmp_path / "demos.hdf5", tasks=[None, "push", None]))
    assert attributes["data:tasks"].tolist() == ["", "push"]
    indices = [arrays[f"data/demo_{number}/task_index"].tolist() for number in range(3)]
    assert indices == [[0] * 5, [1], [0] * 9]


def test_many_tasks(tmp_path: Path) -> None:
    """HDF5's old format holds attributes up to 64 kB, which are 4,096 texts."""
    spec = ObservationSpec({"state": ObservationField((1,))})
    with RobomimicWriter(tmp_path / "demos.hdf5", observation_spec=spec, action_spec=ACTIONS) as writer:
        writer.add_episode({"state": np.zeros((5000, 1))}, np.zeros((5000, 2)), task=[str(k) for k in range(5000)])
    _, attributes = read(tmp_path / "demos.hdf5")
    assert attributes["data:tasks"][4999] == "4999"


def test_masks(tmp_path: Path) -> None:
    arrays, _ = read(write(RobomimicWriter, tmp_path / "demos.hdf5", masks={"train": [0, 2], "valid": [1]}))
    assert arrays["mask/train"].tolist() == [b"demo_0", b"demo_2"]
    assert arrays["mask/valid"].tolist() == [b"demo_1"]


@pytest.mark.parametrize("episode", [3, -1])
def test_masks_of_episodes_that_there_are_not(tmp_path: Path, episode: int) -> None:
    message = f"the mask 'valid' names episode {episode}, but there are 3"
    with pytest.raises(DatasetError, match=message):
        write(RobomimicWriter, tmp_path / "demos.hdf5", masks={"valid": [episode]})
    assert list(tmp_path.iterdir()) == []


def test_keys_with_a_slash(tmp_path: Path) -> None:
    spec = ObservationSpec({"a/b": ObservationField((1,))})
    with pytest.raises(DatasetError, match="robomimic's keys have no '/', but 'a/b' has"):
        RobomimicWriter(tmp_path / "demos.hdf5", observation_spec=spec, action_spec=ACTIONS)


def test_an_interrupted_episode_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = make_episode(0, 3), make_episode(3, 4)
    with RobomimicWriter(tmp_path / "set", observation_spec=OBSERVATIONS, action_spec=ACTIONS) as writer:
        writer.add_episode(first.observations, first.actions)
        with monkeypatch.context() as patch:
            patch.setattr(writer, "_write", interrupted(writer._write))
            with pytest.raises(KeyboardInterrupt):
                writer.add_episode(first.observations, first.actions, task="lost")
        writer.add_episode(second.observations, second.actions)
    arrays, attributes = read(tmp_path / "set")
    assert attributes["data:total"] == 7
    np.testing.assert_array_equal(arrays["data/demo_1/actions"], second.actions)
    assert not any(name.startswith("data/demo_2") for name in arrays)


def test_a_full_disk_is_noticed_with_the_episode(tmp_path: Path) -> None:
    """And afterwards, too: what HDF5 holds is incomplete."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    episode = make_episode(0, 3)

    def write_on() -> None:
        with RobomimicWriter(tmp_path / "set", observation_spec=OBSERVATIONS, action_spec=ACTIONS) as writer:
            writer.add_episode(episode.observations, episode.actions)
            resource.setrlimit(resource.RLIMIT_FSIZE, (writer.partial.stat().st_size, hard))
            with pytest.raises(OSError, match="File too large"):
                writer.add_episode(episode.observations, episode.actions)
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            with pytest.raises(OSError, match="File too large"):
                writer.add_episode(episode.observations, episode.actions)

    try:
        with pytest.raises(OSError, match="File too large"):
            write_on()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_simulated_episodes_hold_what_restores_them(tmp_path: Path) -> None:
    path, env_args = tmp_path / "simulated.hdf5", {"env_name": "Lift", "type": 1, "env_kwargs": {"robots": ["Panda"]}}
    first = episodes()[0]
    length = len(first.actions)
    states, rewards = np.arange(length * 5.0).reshape(length, 5), np.linspace(0, 1, length)
    following = {key: np.roll(values, -1, axis=0) for key, values in first.observations.items()}
    with RobomimicWriter(path, observation_spec=OBSERVATIONS, action_spec=ACTIONS, env_args=env_args) as writer:
        simulation = SimulatedEpisode(states, rewards, following, "<mujoco/>")
        writer.add_episode(first.observations, first.actions, simulation=simulation)
    arrays, attributes = read(path)
    np.testing.assert_array_equal(arrays["data/demo_0/states"], states)
    np.testing.assert_array_equal(arrays["data/demo_0/rewards"], rewards)
    for key, values in following.items():
        np.testing.assert_array_equal(arrays[f"data/demo_0/next_obs/{key}"], values)
    assert attributes["data/demo_0:model_file"] == "<mujoco/>"
    assert json.loads(attributes["data:env_args"]) == env_args
