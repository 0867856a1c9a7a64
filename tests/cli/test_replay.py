"""flowchunk data replay: demonstrations in simulation, from where they started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest

from flowchunk.cli.main import main
from flowchunk.cli.replay import replay_episodes, summary
from flowchunk.datasets.errors import DatasetError, SimulationError
from flowchunk.datasets.formats import open_dataset
from flowchunk.datasets.recorder import StoreWriter
from flowchunk.envs.contract import specs_of
from tests.envs.custom_environments import Reach


def replay(path: Path, *options: str) -> int:
    return main(["data", "replay", str(path), *options])


def test_an_experts_demonstrations_succeed_again(
    pickplace_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["task=pickplace_state", "episodes=3", f"output_dir={tmp_path / 'out'}"]
    assert replay(pickplace_store, *options) == 0
    report = json.loads((tmp_path / "out" / "replay.json").read_text())
    assert report["success_rate"] == 1
    assert report["success_ci95"] == pytest.approx([0.4385, 1.0], abs=0.001)
    assert report["env_id"] == "flowchunk/PickPlace-v1"
    assert [one["episode"] for one in report["episodes"]] == [0, 1, 2]
    assert all(one["steps"] == one["recorded_steps"] > 50 for one in report["episodes"])
    shown = capsys.readouterr().out
    assert "3 demonstrations replayed open loop in flowchunk/PickPlace-v1" in shown
    assert "0.439 to 1.000" in shown


def test_the_start_decides(pickplace_store: Path, tmp_path: Path) -> None:
    """With the cube where it was in another episode, the same actions miss it."""
    source, env = open_dataset(pickplace_store), gymnasium.make("flowchunk/PickPlace-v1")
    with StoreWriter(
        tmp_path / "mixed.zarr", observation_spec=specs_of(env)[0], action_spec=specs_of(env)[1]
    ) as writer:
        for episode, (first, last) in enumerate(zip(source.episode_starts, source.episode_ends, strict=True)):
            states = source.read("state", first, last)
            other = source.episode_starts[(episode + 1) % len(source.episode_ends)]
            states[0] = source.read("state", other, other + 1)[0]
            writer.add_episode({"state": states}, source.read("action", first, last))
    replays = list(replay_episodes(env, open_dataset(tmp_path / "mixed.zarr"), 6))
    assert sum(one.success for one in replays) <= 2


def test_pusht_starts_at_the_recorded_state(pusht_store: Path, tmp_path: Path) -> None:
    source, env = open_dataset(pusht_store), gymnasium.make("flowchunk/PushT-v1")
    start = env.get_wrapper_attr("start_options")
    for episode in (0, 3):
        observation, _ = env.reset(seed=0, options=start(source, episode))
        expected = source.read("state", int(source.episode_starts[episode]))[0]
        np.testing.assert_allclose(observation["state"][:4], expected[:4], rtol=1e-5)
    assert replay(pusht_store, "task=pusht_state", "episodes=2", f"output_dir={tmp_path / 'out'}") == 0
    assert len(json.loads((tmp_path / "out" / "replay.json").read_text())["episodes"]) == 2


def test_adroits_door_starts_at_the_recorded_state(tmp_path: Path) -> None:
    pytest.importorskip("gymnasium_robotics", reason="needs the extra gymnasium-robotics")
    generator = np.random.default_rng(0)
    start = {
        "qpos": generator.uniform(-0.1, 0.1, 30),
        "qvel": np.zeros(30),
        "door_body_pos": np.array([-0.25, 0.3, 0.3]),
    }
    with h5py.File(tmp_path / "door.hdf5", "w") as file:
        for number in range(3):
            demo = file.create_group(f"demo_{number}")
            demo["actions"], demo["observations"] = np.zeros((3, 28)), np.zeros((3, 39))
            for name, value in start.items():
                demo[f"init_state_dict/{name}"] = value + 0.01 * number
        del file["demo_2/init_state_dict/qvel"]
    mapping = tmp_path / "door.yaml"
    entries = ["data: door.hdf5", "episodes: demo_*", "control_hz: 100", "action: {array: actions}"]
    mapping.write_text("\n".join([*entries, "observations:", "  observations: {array: observations}"]))
    env: Any = gymnasium.make("flowchunk.envs:flowchunk/AdroitDoor-v1")
    source = open_dataset(mapping)
    options = env.get_wrapper_attr("start_options")(source, 1)
    env.reset(seed=0, options=options)
    state = env.unwrapped.get_env_state()
    for name, value in start.items():
        np.testing.assert_allclose(state[name], value + 0.01, atol=1e-12)
    env.close()
    with pytest.raises(DatasetError, match="has no array demo_2/init_state_dict/qvel"):
        env.get_wrapper_attr("start_options")(source, 2)


def test_data_without_states_are_refused(pickplace_store: Path, tmp_path: Path) -> None:
    source = open_dataset(pickplace_store, sources={})
    env: Any = gymnasium.make("flowchunk/PickPlace-v1")
    with h5py.File(tmp_path / "none.hdf5", "w") as file:
        file["data/demo_0/actions"] = np.zeros((3, 7))
        file["data/demo_0/obs/other"] = np.zeros((3, 2))
    for task in ("PickPlace", "PushT"):
        made: Any = gymnasium.make(f"flowchunk/{task}-v1")
        with pytest.raises(DatasetError, match="stores no state"):
            made.get_wrapper_attr("start_options")(open_dataset(tmp_path / "none.hdf5"), 0)
    away = source.read("state", 0, 1)
    away[0, 1] += 0.2
    with StoreWriter(tmp_path / "away.zarr", observation_spec=specs_of(env)[0], action_spec=specs_of(env)[1]) as writer:
        writer.add_episode({"state": away}, np.zeros((1, 7)))
    with pytest.raises(DatasetError, match=r"starts 0\.20 rad from the arm's home"):
        env.get_wrapper_attr("start_options")(open_dataset(tmp_path / "away.zarr"), 0)


class Fragile(Reach):
    """Starts anywhere, and breaks in the third step of odd episodes."""

    def start_options(self, source: Any, episode: int) -> dict[str, Any]:
        return {"episode": episode}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        assert self.options is not None
        if self.steps == 2 and self.options["episode"] % 2:
            raise SimulationError("it broke")
        observation, reward, _, _, info = super().step(action)
        is_success = self.steps == 4
        return observation, reward, is_success, True, {**info, "score": self.steps / 10, "is_success": is_success}


@pytest.fixture
def reach_store(tmp_path: Path) -> Path:
    writer = StoreWriter(
        tmp_path / "reach.zarr", observation_spec=Reach.observation_spec, action_spec=Reach.action_spec
    )
    with writer:
        for length in (6, 6, 3):
            writer.add_episode({"state": np.zeros((length, 1))}, np.zeros((length, 1)))
    return tmp_path / "reach.zarr"


def test_an_environment_that_breaks_ends_only_its_episode(reach_store: Path) -> None:
    """A time limit ends none, success ends the first, an error the second, and the actions of the third are too few."""
    replays = list(replay_episodes(Fragile(), open_dataset(reach_store), 3))
    assert [(one.success, one.steps, one.recorded_steps) for one in replays] == [
        (True, 4, 6),
        (False, 2, 6),
        (False, 3, 3),
    ]
    assert [one.error for one in replays] == [None, "it broke", None]
    assert [one.score for one in replays] == [0.4, 0.2, 0.3]
    report = summary(replays)
    assert report["errors"] == 1
    assert report["success_rate"] == pytest.approx(1 / 3)
    assert report["score_mean"] == pytest.approx(0.3)


def test_an_environment_that_cannot_start_there_is_refused(reach_store: Path) -> None:
    with pytest.raises(
        SimulationError, match="to have start_options, got none, so it cannot start where a demonstration did"
    ):
        next(replay_episodes(Reach(), open_dataset(reach_store), 1))


def test_data_of_other_actions_are_refused(reach_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay(reach_store, "task=pickplace_state") == 1
    assert "7 action dimensions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: flowchunk data replay PATH"),
        (["a.zarr", "b.zarr"], "usage: flowchunk data replay PATH"),
        (["--quick"], "usage: flowchunk data replay PATH"),
        (["a.zarr"], "the simulation must be chosen: task=TASK, or env_id=ID"),
        (["a.zarr", "task=pusht_state", "episodes=0"], "episodes=0 must be at least 1"),
        (["a.zarr", "task=pusht_state"], "a.zarr"),
        (["a.zarr", "env_id=Nothing-v0"], "a.zarr"),
        (["a.zarr", "task=pusht_state", "seed=1"], "seed"),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "replay", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
