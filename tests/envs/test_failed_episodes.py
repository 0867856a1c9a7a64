"""Environments that fail in mid-episode: counted, named with their seed, and the others go on."""

from __future__ import annotations

import re
import sys
from functools import partial
from typing import Any

import cloudpickle  # type: ignore[import-untyped]  # it comes with Gymnasium, without types
import gymnasium
import numpy as np
import pytest

from flowchunk.datasets.errors import SimulationError
from flowchunk.envs.failed_episodes import ErrorsAsFailures, described
from flowchunk.envs.rollout import Rollout, rollout
from tests.envs import custom_environments, misbehaving_environments
from tests.envs.custom_environments import Reach, Still
from tests.envs.misbehaving_environments import Misbehaving

for module in (custom_environments, misbehaving_environments, sys.modules[__name__]):
    cloudpickle.register_pickle_by_value(module)  # other processes cannot import a test

MESSAGES = {
    "step": r"ZeroDivisionError: the gripper vanished \(misbehaving_environments.py, line \d+\)",
    "reset": r"RuntimeError: cannot be placed \(misbehaving_environments.py, line \d+\)",
    "nan": "the observation 'state' has values that are not finite",
    "nan reset": "the observation 'state' has values that are not finite",
}


def run(make_env: Any, **options: Any) -> Rollout:
    return rollout(Still(), make_env, Still.execution, **{"episodes": 7, "seed": 0, "num_envs": 2, **options})


@pytest.mark.parametrize("fault", MESSAGES)
def test_the_failed_episodes_are_reported_and_the_others_go_on(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    Misbehaving.made = 0
    result = run(partial(Misbehaving, fault))
    (logged,) = caplog.messages
    assert re.match(f"the environment failed in 3 of 7 episodes; in that of seed 0: {MESSAGES[fault]}", logged)
    assert [episode.seed for episode in result.failures] == [0, 3, 6]
    for episode in result.episodes:
        failed = episode.seed % 3 == 0
        assert (episode.success, episode.score) == ((False, 0.0) if failed else (True, 1.0))
        assert (episode.error is not None) == failed
    assert re.match(MESSAGES[fault], str(result.failures[0].error))
    assert Misbehaving.made == 2 + 2, "made anew for the next episode, and only for that"


def test_they_are_the_same_in_other_processes() -> None:
    here, there = (run(Misbehaving, processes=processes) for processes in (1, 2))
    assert [(episode.steps, episode.success) for episode in here.episodes] == [
        (episode.steps, episode.success) for episode in there.episodes
    ]
    assert [episode.seed for episode in there.failures] == [0, 3, 6]
    assert "ZeroDivisionError: the gripper vanished" in str(there.failures[0].error)


def test_all_failing_is_an_error_that_names_the_first() -> None:
    with pytest.raises(SimulationError, match=r"failed in 7 of 7 episodes; in that of seed 0: ZeroDivisionError"):
        run(partial(Misbehaving, every=1))
    assert len(run(partial(Misbehaving, every=7), episodes=6).failures) == 1


def test_nothing_is_logged_if_nothing_fails(caplog: pytest.LogCaptureFixture) -> None:
    assert run(Reach).failures == ()
    assert caplog.messages == []


def test_only_what_the_policy_observes_has_to_be_finite() -> None:
    env = ErrorsAsFailures(partial(Misbehaving, "nan", every=1), keys={"other"})
    env.reset(seed=0)
    assert np.isnan(env.step(np.zeros(1))[0]["state"]).all()


def test_an_environment_that_cannot_be_made_anew_fails_again() -> None:
    made: list[Reach] = []

    def make_once() -> gymnasium.Env[Any, Any]:
        if made:
            raise OSError("no license")
        made.append(Misbehaving())
        return made[0]

    result = run(make_once, num_envs=1, episodes=3, seed=2)
    assert [episode.success for episode in result.episodes] == [True, False, False]
    assert "no license" in str(result.episodes[2].error)
    assert [episode.steps for episode in result.episodes] == [2, 2, 1]


def test_our_own_errors_are_described_as_they_are() -> None:
    assert described(SimulationError("the arm is unstable")) == "the arm is unstable"
    assert described(KeyError("x")) == "KeyError: 'x'"


def test_a_policy_that_fails_ends_the_evaluation() -> None:
    class Broken(Still):
        def predict_chunk(self, observation: Any, **options: Any) -> np.ndarray:
            return np.zeros((len(observation["state"]), 5, 1), np.float32)

    with pytest.raises(SimulationError, match="a chunk must be"):
        rollout(Broken(), Reach, Still.execution, episodes=2, seed=0)
