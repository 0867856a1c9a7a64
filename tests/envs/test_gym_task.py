"""Environments of others as tasks, and recordings of any environment."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from flowchunk.datasets import check_dataset, open_dataset
from flowchunk.datasets.errors import ConfigurationError, SimulationError
from flowchunk.datasets.recorder import StoreWriter
from flowchunk.envs.checks import check_task_env
from flowchunk.envs.contract import specs_of
from flowchunk.envs.gym_task import GymTask, as_task
from flowchunk.envs.recording import RecordEpisodes
from flowchunk.envs.simulation import environment_maker, inherited_options


class Foreign(gymnasium.Env[Any, np.ndarray]):
    """An environment as others write it: goals in a nested dictionary, doubles, an image, success in the info."""

    metadata = {"render_modes": [], "render_fps": 20}  # noqa: RUF012 - Gymnasium's declaration

    def __init__(self, *, success: str = "success", score: bool = False) -> None:
        self.observation_space = Dict(
            {
                "observation": Box(-10, 10, (2,), np.float64),
                "goal": Dict({"desired": Box(-10, 10, (1,), np.float64)}),
                "camera": Box(0, 255, (4, 4, 3), np.uint8),
            }
        )
        self.action_space: Any = Box(np.array([-1.0, -2.0]), np.array([1.0, np.inf]), dtype=np.float64)
        self.success, self.score = success, score
        self.actions: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.steps = self.np_random.uniform(-1, 1, 2), 0
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        self.steps += 1
        self.x = np.clip(self.x + 0.1 * np.clip(action, -1, 1), -10, 10)
        info: dict[str, Any] = {self.success: np.bool_(self.steps == 3)}
        return (
            self.observe(),
            1.0,
            False,
            self.steps == 5,
            {**info, **({"score": self.steps / 10} if self.score else {})},
        )

    def observe(self) -> Any:
        image = np.full((4, 4, 3), self.steps, np.uint8)
        return {"observation": self.x, "goal": {"desired": self.x[:1]}, "camera": image}


def test_dictionaries_are_flattened_and_described() -> None:
    task = GymTask(Foreign())
    assert {key: field.shape for key, field in task.observation_spec.fields.items()} == {
        "observation": (2,),
        "goal_desired": (1,),
        "camera": (4, 4, 3),
    }
    assert task.observation_spec.fields["observation"].names == ("observation_0", "observation_1")
    assert task.observation_spec.fields["camera"].camera == "camera"
    first, second = task.action_spec.dimensions
    assert (first.low, first.high, first.unit) == (-1, 1, "normalized")
    assert (second.low, second.high, second.unit) == (-2, None, "unknown")
    assert task.action_spec.control_hz == 20
    observation, _ = task.reset(seed=0)
    assert observation["observation"].dtype == observation["goal_desired"].dtype == np.float32
    assert observation["camera"].dtype == np.uint8
    assert task.observation_space.contains(observation)


def test_the_contract_holds_for_what_it_wraps() -> None:
    check_task_env(lambda: GymTask(Foreign()))
    check_task_env(partial(_pendulum, control_hz=20.0))


def _pendulum(**options: Any) -> gymnasium.Env[Any, Any]:
    return as_task(gymnasium.make("Pendulum-v1"), **options)


def test_a_box_becomes_the_state() -> None:
    task = _pendulum()
    assert list(specs_of(task)[0].fields) == ["state"]
    assert specs_of(task)[1].control_hz == pytest.approx(1 / 0.05), "its own dt, not the frames of its videos"


@pytest.mark.parametrize("key", ["success", "is_success"])
def test_success_lasts_and_ends_the_episode(key: str) -> None:
    task = GymTask(Foreign(success=key))
    _, info = task.reset(seed=0)
    assert info["is_success"] is False
    ended = []
    for _ in range(5):
        _, _, terminated, _, info = task.step(np.zeros(2))
        ended.append((terminated, info["is_success"], info["score"]))
    assert ended == [(False, False, 0), (False, False, 0), (True, True, 1), (False, True, 1), (False, True, 1)]
    assert task.reset(seed=0)[1]["is_success"] is False


def test_another_key_of_success_and_a_score_of_its_own() -> None:
    task = GymTask(Foreign(success="done_well", score=True), success_key="done_well")
    task.reset(seed=0)
    infos = [task.step(np.zeros(2))[-1] for _ in range(3)]
    assert [info["score"] for info in infos] == pytest.approx([0.1, 0.2, 0.3])
    assert [info["is_success"] for info in infos] == [False, False, True]


def test_actions_are_clipped_to_the_space_and_of_its_type() -> None:
    inner = Foreign()
    task = GymTask(inner)
    task.reset(seed=0)
    task.step(np.array([5.0, 7.0], np.float32))
    assert inner.actions[-1].tolist() == [1, 7]
    assert inner.actions[-1].dtype == np.float64


@pytest.mark.parametrize("action", [np.array([np.nan, 0]), np.zeros(3), np.zeros((1, 2))])
def test_actions_that_cannot_be_executed_are_refused(action: np.ndarray) -> None:
    task = GymTask(Foreign())
    task.reset(seed=0)
    with pytest.raises(SimulationError, match=r"expected 2 finite numbers \(action_0, action_1\)"):
        task.step(action)


def test_a_task_is_not_wrapped_again() -> None:
    env = gymnasium.make("flowchunk.envs:flowchunk/PushT-v1")
    assert as_task(env) is env


def test_environments_that_cannot_be_tasks_say_why() -> None:
    with pytest.raises(ConfigurationError, match=r"CartPole-v1 has the actions Discrete\(2\)"):
        GymTask(gymnasium.make("CartPole-v1"))
    counted = Foreign()
    counted.observation_space = Dict({"goal": Dict({"number": Discrete(3)})})
    with pytest.raises(ConfigurationError, match=r"observes goal.number in Discrete\(3\)"):
        GymTask(counted)
    silent = Foreign()
    silent.metadata = {"render_modes": []}
    with pytest.raises(
        ConfigurationError, match=r"does not say at which rate it is controlled; give env.control_hz=HZ"
    ):
        GymTask(silent)
    assert GymTask(silent, control_hz=7.0).action_spec.control_hz == 7


def record(path: Path, episodes: int, **options: Any) -> Any:
    task = GymTask(Foreign())
    with StoreWriter(path, observation_spec=task.observation_spec, action_spec=task.action_spec, say=None) as writer:
        env = RecordEpisodes(task, writer, **options)
        for seed in range(episodes):
            env.reset(seed=seed)
            for step in range(5 if seed % 2 == 0 else 2):
                env.step(np.full(2, step / 10))
        env.close()
    return open_dataset(path)


def test_every_episode_is_recorded_with_the_observation_before_each_action(tmp_path: Path) -> None:
    source = record(tmp_path / "data", 3)
    check_dataset(source)
    assert source.episode_lengths.tolist() == [3, 2, 3], "steps after the end do not belong to an episode"
    np.testing.assert_allclose(source.read("action")[:3, 0], np.arange(3) / 10, atol=1e-7)
    assert source.read("camera")[:, 0, 0, 0].tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    start, _ = GymTask(Foreign()).reset(seed=1)
    np.testing.assert_array_equal(source.read("observation", 3, 4)[0], start["observation"])


def test_only_what_is_to_be_kept_is_recorded_with_its_task(tmp_path: Path) -> None:
    source = record(tmp_path / "data", 4, keep=lambda info: info["is_success"], task="reach")
    assert source.episode_lengths.tolist() == [3, 3]
    assert source.tasks == ("reach",)


def test_an_episode_without_actions_leaves_no_trace(tmp_path: Path) -> None:
    task = GymTask(Foreign())
    with StoreWriter(
        tmp_path / "data", observation_spec=task.observation_spec, action_spec=task.action_spec, say=None
    ) as writer:
        env = RecordEpisodes(task, writer)
        env.reset(seed=0)
        env.reset(seed=1)
        env.step(np.zeros(2))
        env.close()
        env.close()
        assert writer.num_episodes == 1


def test_environments_of_others_are_made_as_tasks_by_their_id() -> None:
    make = environment_maker("Pendulum-v1", {"g": 9.0, "control_hz": 25.0})
    env: Any = make(max_episode_steps=3)
    assert specs_of(env)[1].control_hz == 25
    assert env.unwrapped.g == 9
    env.reset(seed=0)
    assert [env.step(np.zeros(1))[3] for _ in range(2)] == [False, False]
    said = r"Pendulum-v1 ended an episode without info\['is_success'\] or .*'score'\], so that it counts as failed .* nothing"
    with pytest.warns(UserWarning, match=said):
        assert env.step(np.zeros(1))[3]
    with pytest.raises(ConfigurationError, match=r"Pendulum-v1 takes no env.mass"):
        environment_maker("Pendulum-v1", {"mass": 1.0})


def test_options_of_the_wrapper_are_inherited_by_another_environment() -> None:
    """They are not the environment's own, so any takes them; but flowchunk's have a rate and a success of their own."""
    trained = {"control_hz": 10.0, "success_key": "solved", "max_episode_steps": 50, "color": "red"}
    assert inherited_options("Pendulum-v1", trained) == {"control_hz": 10.0, "success_key": "solved"}
    gymnasium.register("tests/Endless-v0", entry_point="gymnasium.envs.classic_control:PendulumEnv")
    assert inherited_options("tests/Endless-v0", trained).keys() == trained.keys() - {"color"}
    assert inherited_options("flowchunk/PushT-v1", trained) == {}, "it has a limit of its own"
