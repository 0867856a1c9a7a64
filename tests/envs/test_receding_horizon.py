"""Receding horizon: which actions of a chunk are executed, and which history the policy observes."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

from flowchunk.datasets.errors import ConfigurationError, SimulationError
from flowchunk.datasets.specs import ActionDimension, ActionSpec
from flowchunk.envs.receding_horizon import RecedingHorizon
from flowchunk.policy.execution.executor import ChunkExecution

HORIZON, EXECUTED, OBSERVED = 6, 4, 3
COUNTING = np.arange(1.0, HORIZON + 1)[:, None]  # the chunk 1, 2, 3, …


class Integrator(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """A position that actions are added to; it starts at the seed."""

    def __init__(self, *, ends_at: float = np.inf, truncates_after: int = 1000) -> None:
        box: Any = Dict({"position": Box(-1e6, 1e6, (1,), np.float64)})
        self.observation_space, self.action_space = box, Box(-100.0, 100.0, (1,), np.float64)
        self.ends_at, self.truncates_after = ends_at, truncates_after
        self.actions: list[float] = []
        self.resets: list[int | None] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self.resets.append(seed)
        self.position, self.actions = float(seed or 0), []
        return self._observation(), {"started": True}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self.actions.append(float(action[0]))
        self.position += self.actions[-1]
        terminated, truncated = self.position >= self.ends_at, len(self.actions) >= self.truncates_after
        return self._observation(), self.position, terminated, truncated, {"at": self.position}

    def _observation(self) -> dict[str, np.ndarray]:
        return {"position": np.array([self.position])}


def receding(env: gymnasium.Env[Any, Any], **changes: Any) -> RecedingHorizon:
    arguments: Any = {"observation_steps": OBSERVED, "horizon": HORIZON, "n_action_steps": EXECUTED, **changes}
    return RecedingHorizon(env, ChunkExecution(**arguments))


def test_the_first_observation_is_repeated_until_there_is_a_history() -> None:
    env = receding(Integrator())
    observation, info = env.reset(seed=7)
    assert info == {"started": True, "steps": 0}
    np.testing.assert_array_equal(observation["position"], [[7], [7], [7]])
    env = receding(Integrator(), n_action_steps=1)
    env.reset(seed=7)
    np.testing.assert_array_equal(env.step(COUNTING)[0]["position"], [[7], [7], [8]])


def test_the_history_ends_with_the_newest_observation_and_restarts_with_an_episode() -> None:
    env = receding(Integrator())
    env.reset(seed=7)
    np.testing.assert_array_equal(env.step(COUNTING)[0]["position"], [[10], [13], [17]])
    np.testing.assert_array_equal(env.reset(seed=2)[0]["position"], [[2], [2], [2]])


def test_an_observation_that_was_returned_does_not_change_afterwards() -> None:
    env = receding(Integrator())
    first, _ = env.reset(seed=7)
    env.step(COUNTING)
    np.testing.assert_array_equal(first["position"], [[7], [7], [7]])


@pytest.mark.parametrize("executed", [1, EXECUTED, HORIZON])
def test_the_chunks_first_actions_are_executed_in_order(executed: int) -> None:
    inner = Integrator()
    env = receding(inner, n_action_steps=executed)
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step(COUNTING)
    assert inner.actions == COUNTING[:executed, 0].tolist()
    assert reward == sum(np.cumsum(inner.actions))
    assert (terminated, truncated) == (False, False)
    assert info == {"at": sum(inner.actions), "steps": executed}
    assert env.step(COUNTING)[-1]["steps"] == 2 * executed


def test_spaces_hold_histories_and_chunks() -> None:
    env = receding(Integrator())
    assert env.action_space.shape == (HORIZON, 1)
    assert env.observation_space.contains(env.reset(seed=0)[0])
    assert env.observation_space.contains(env.step(COUNTING)[0])


@pytest.mark.parametrize(
    ("limits", "flags"), [({"ends_at": 3.0}, (True, False)), ({"truncates_after": 2}, (False, True))]
)
def test_no_action_is_executed_after_an_episodes_end(limits: dict[str, Any], flags: tuple[bool, bool]) -> None:
    inner = Integrator(**limits)
    env = receding(inner)
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step(COUNTING)
    assert inner.actions == [1, 2]
    assert (terminated, truncated) == flags
    assert reward == 1 + 3
    assert info["steps"] == 2


@pytest.mark.parametrize("shape", [(EXECUTED, 1), (HORIZON,), (1, HORIZON, 1), (HORIZON, 2), ()])
def test_chunks_of_another_shape_are_refused_before_the_first_action(shape: tuple[int, ...]) -> None:
    inner = Integrator()
    env = receding(inner)
    env.reset(seed=0)
    with pytest.raises(SimulationError, match=r"must be \(H, D\) = \(6, 1\), but is"):
        env.step(np.zeros(shape))
    assert inner.actions == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_action_steps": 0}, "n_action_steps=0 must be from 1 to the horizon, 6"),
        ({"n_action_steps": HORIZON + 1}, "n_action_steps=7 must be from 1 to the horizon, 6"),
        ({"horizon": 0}, "n_action_steps=4 must be from 1 to the horizon, 0"),
        ({"observation_steps": 0}, "observation_steps=0 must be at least 1"),
    ],
)
def test_inconsistent_sizes_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        receding(Integrator(), **changes)


def test_actions_that_the_execution_would_average_wrongly_are_refused() -> None:
    env: Any = Integrator()
    env.action_spec = ActionSpec((ActionDimension("yaw", "rad", "world", rotation="axis_angle"),), control_hz=10)
    receding(env)
    with pytest.raises(ConfigurationError, match=r"strategy=temporal_ensemble: .*yaw.* rotation in axis_angle"):
        receding(env, strategy="temporal_ensemble")


def test_pusht_moves_as_if_its_actions_were_sent_one_by_one() -> None:
    one_by_one = gymnasium.make("flowchunk.envs:flowchunk/PushT-v1")
    in_chunks = receding(gymnasium.make("flowchunk.envs:flowchunk/PushT-v1"), observation_steps=2)
    one_by_one.reset(seed=4)
    in_chunks.reset(seed=4)
    generator = np.random.default_rng(0)
    for _ in range(5):
        chunk = generator.uniform(100, 400, (HORIZON, 2))
        steps = [one_by_one.step(action) for action in chunk[:EXECUTED]]
        observation, reward, *_, info = in_chunks.step(chunk)
        np.testing.assert_array_equal(observation["state"], [step[0]["state"] for step in steps[-2:]])
        assert reward == pytest.approx(sum(float(step[1]) for step in steps))
        assert info["coverage"] == steps[-1][-1]["coverage"]
