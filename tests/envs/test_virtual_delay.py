"""Delays in virtual time: what the environment gets while a chunk is predicted, the same for the same seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.specs import ActionDimension, ActionSpec
from flowchunk.envs.receding_horizon import RecedingHorizon
from flowchunk.envs.rollout import Rollout, rollout
from flowchunk.envs.tasks.pusht import ACTION_SPEC, OBSERVATION_SPECS
from flowchunk.envs.virtual_delay import VirtualDelay
from flowchunk.policy.execution.executor import ChunkExecution

H = 8
EXECUTION = ChunkExecution(observation_steps=1, horizon=H, n_action_steps=4, longest_prefix=4)
PUSHT = partial(gymnasium.make, "flowchunk.envs:flowchunk/PushT-v1", max_episode_steps=40)


class Remembers(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """Remembers its actions, and observes how many there were."""

    def __init__(self, *, reference: Any = "absolute") -> None:
        box: Any = Dict({"step": Box(-1e6, 1e6, (1,), np.float64)})
        self.observation_space, self.action_space = box, Box(-1e6, 1e6, (1,), np.float64)
        self.action_spec = ActionSpec((ActionDimension("x", "m", "world", reference=reference),), 10.0)
        self.actions: list[float] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self.actions = []
        return {"step": np.zeros(1)}, {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self.actions.append(float(action[0]))
        return {"step": np.array([float(len(self.actions))])}, 0.0, False, len(self.actions) >= 30, {}


def chunk(number: int, step: float) -> np.ndarray:
    """The chunk ``number`` from the observation of ``step``: 100·number + step."""
    return 100.0 * number + step + np.arange(H)[:, None]


def executed(
    strategy: str, delay: VirtualDelay, *, steps: int, seed: int = 0, env: Remembers | None = None
) -> list[float]:
    """The actions that the environment gets, from chunks that say which they are."""
    inner = env or Remembers()
    wrapped = RecedingHorizon(inner, replace(EXECUTION, strategy=strategy, delay=delay.steps), delay=delay)
    observation, _ = wrapped.reset(seed=seed)
    number = 0
    while len(inner.actions) < steps:
        number += 1
        observation, *_ = wrapped.step(chunk(number, float(observation["step"][-1, 0])))
    return inner.actions[:steps]


def test_without_delay_all_strategies_but_the_ensemble_are_the_same() -> None:
    expected = [100.0 * (1 + step // 4) + step for step in range(12)]
    for strategy in ("synchronous", "asynchronous", "real_time"):
        assert executed(strategy, VirtualDelay(), steps=12) == expected


def test_a_synchronous_robot_stands_still_meanwhile() -> None:
    assert executed("synchronous", VirtualDelay(2), steps=10) == [100, 101, 102, 103, 103, 103, 204, 205, 206, 207]


def test_displacements_stand_still_by_being_zero() -> None:
    env = Remembers(reference="delta")
    assert executed("synchronous", VirtualDelay(2), steps=7, env=env) == [100, 101, 102, 103, 0, 0, 204]


@pytest.mark.parametrize("strategy", ["asynchronous", "real_time"])
def test_meanwhile_the_old_chunk_goes_on(strategy: str) -> None:
    actions = executed(strategy, VirtualDelay(2), steps=12)
    assert actions == [100, 101, 102, 103, 104, 105, 206, 207, 208, 209, 310, 311]


def test_jitter_and_drops_repeat_with_the_seed_and_differ_without() -> None:
    delay = VirtualDelay(1, jitter=2, drop=0.3)
    first = executed("asynchronous", delay, steps=30)
    assert executed("asynchronous", delay, steps=30) == first
    assert executed("asynchronous", delay, steps=30, seed=1) != first
    assert executed("asynchronous", replace(delay, seed=1), steps=30) != first


def test_a_lost_chunk_is_never_executed_and_another_is_asked_for_at_once() -> None:
    delay = VirtualDelay(0, drop=0.999999)
    wrapped = RecedingHorizon(inner := Remembers(), EXECUTION, delay=delay)
    wrapped.reset(seed=0)
    for number in range(1, 6):
        wrapped.step(chunk(number, 0))
    assert inner.actions == [100, 101, 102, 103, *[103] * 4]


def test_real_time_says_what_the_next_chunk_is_to_continue() -> None:
    wrapped = RecedingHorizon(Remembers(), replace(EXECUTION, strategy="real_time", delay=3), delay=VirtualDelay(3))
    _, info = wrapped.reset(seed=0)
    assert (info["prefix_length"], info["tail_length"]) == (0, 0)
    *_, info = wrapped.step(chunk(1, 0))
    assert (info["prefix_length"], info["tail_length"]) == (3, 1)
    np.testing.assert_array_equal(info["prefix"][:, 0], [104, 105, 106, 107, 0, 0, 0, 0])
    assert wrapped.reset(seed=1)[1]["prefix_length"] == 0


def test_at_the_end_the_smoothness_is_reported() -> None:
    wrapped = RecedingHorizon(Remembers(), EXECUTION)
    observation, _ = wrapped.reset(seed=0)
    is_over, number = False, 0
    while not is_over:
        number += 1
        observation, _, _, is_over, info = wrapped.step(chunk(number, float(observation["step"][-1, 0])))
    assert info["velocity_jump_at_boundaries"] == pytest.approx(100 * 10)
    assert info["num_boundaries"] == 7
    assert info["velocity_jump_elsewhere"] == pytest.approx(100 * 10 * 7 / 21)  # one step later it is over


class Continues:
    """A policy that remembers what it was to continue; its chunks go from the prefix on."""

    observation_spec, action_spec, execution = OBSERVATION_SPECS["state"], ACTION_SPEC, EXECUTION

    def __init__(self) -> None:
        self.lengths: list[tuple[int, int, int]] = []

    def predict_chunk(
        self,
        observation: Mapping[str, np.ndarray],
        *,
        nfe: int | None = None,
        seed: int | Sequence[int] | None = None,
        prefix: np.ndarray | None = None,
        tail: np.ndarray | None = None,
    ) -> np.ndarray:
        state = observation["state"]
        assert isinstance(seed, Sequence)
        assert len(seed) == len(state)
        chunks = np.stack([np.random.default_rng(one).uniform(100, 400, (H, 2)) for one in seed])
        if prefix is not None and tail is not None:
            assert len(prefix) == len(tail) == len(state)
            self.lengths.append((len(state), prefix.shape[1], tail.shape[1]))
            chunks[:, : prefix.shape[1]] = prefix
        return np.asarray(chunks, np.float32)


def run(strategy: str, delay: VirtualDelay, policy: Continues | None = None, **options: Any) -> Rollout:
    execution = replace(EXECUTION, strategy=strategy, observation_steps=2, delay=delay.steps)
    return rollout(policy or Continues(), PUSHT, execution, episodes=4, seed=7, delay=delay, **options)


@pytest.mark.parametrize("strategy", ["synchronous", "asynchronous", "temporal_ensemble", "real_time"])
def test_episodes_do_not_depend_on_those_beside_them(strategy: str) -> None:
    delay = VirtualDelay(2, jitter=1, drop=0.1)
    alone, together = (run(strategy, delay, num_envs=number) for number in (1, 4))
    assert alone.episodes == together.episodes
    assert [info["velocity_jump_at_boundaries"] for info in alone.infos] == [
        info["velocity_jump_at_boundaries"] for info in together.infos
    ]


def test_a_rollout_hands_on_the_prefix_of_each_episode_and_predicts_those_of_one_length_together() -> None:
    policy = Continues()
    run("real_time", VirtualDelay(2), policy, num_envs=4)
    assert {lengths[1:] for lengths in policy.lengths} == {(2, 2)}
    assert max(rows for rows, *_ in policy.lengths) == 4
    jittered = Continues()
    run("real_time", VirtualDelay(1, jitter=2), jittered, num_envs=4)
    assert {prefix for _, prefix, _ in jittered.lengths} == {1, 2, 3}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": -1}, "delay.steps=-1"),
        ({"jitter": -1}, "delay.jitter=-1"),
        ({"drop": 1.0}, "delay.drop=1.0"),
        ({"drop": -0.1}, "delay.drop=-0.1"),
    ],
)
def test_delays_that_cannot_be_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        VirtualDelay(**values)


def test_a_delay_that_the_execution_does_not_admit_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="so a longer horizon; choose it so"):
        RecedingHorizon(Remembers(), replace(EXECUTION, strategy="asynchronous"), delay=VirtualDelay(5))
