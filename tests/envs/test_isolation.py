"""Every environment: an episode after others is that of its seed alone, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import pytest

import flowchunk.envs  # noqa: F401 -- registers the ids
from flowchunk.datasets.errors import ConfigurationError, SimulationError
from flowchunk.envs.checks import check_isolation
from flowchunk.envs.gym_task import GymTask
from flowchunk.envs.simulation import environment_maker
from tests.envs.test_checks import Point, Remembering
from tests.envs.test_gym_task import Foreign

ADAPTED: dict[str, dict[str, Any]] = {
    "Pendulum-v1": {},
    "Reacher-v5": {},
    "Pusher-v5": {},
    "flowchunk/AdroitDoor-v1": {},
    "flowchunk/FetchPickAndPlace-v1": {},
    "flowchunk/MetaWorld-v1": {},  # all of its tasks in test_metaworld.py
    "flowchunk/PickPlace-v1": {},
    "flowchunk/PushT-v1": {},
    "flowchunk/PushTOriginal-v1": {},
    "flowchunk/Robomimic-v1": {},  # also in an environment of its own, by robomimic_checks.py
}
"""Environments of others as tasks, and our own, with their options."""


@pytest.mark.filterwarnings("ignore")  # of Gymnasium-Robotics
@pytest.mark.parametrize("env_id", ADAPTED)
def test_an_episode_after_others_is_that_of_its_seed(env_id: str) -> None:
    make_env = environment_maker(env_id, ADAPTED[env_id])
    try:
        make_env().close()
    except (ConfigurationError, SimulationError) as error:
        pytest.skip(str(error))  # an extra that is not installed; the others are, or the test of their task fails
    check_isolation(make_env, before=2, steps=100)


def test_all_our_environments_are_held_to_it() -> None:
    ours = {name for name, spec in gymnasium.registry.items() if spec.namespace == "flowchunk"}
    assert ours <= ADAPTED.keys()


def test_a_wrapped_environment_with_images_and_goals() -> None:
    check_isolation(lambda: GymTask(Foreign()), before=3)


class EndsSooner(Point):
    """Its second episode ends after 5 steps."""

    episodes = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.episodes, self.taken = self.episodes + 1, 0
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        self.taken += 1
        observation, reward, _, _, info = super().step(action)
        return observation, reward, self.episodes > 1 and self.taken == 5, False, info


class KeepsScore(Point):
    """Its score is the best of all episodes."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        best = getattr(self, "score", 0.0)
        found = super().reset(seed=seed, options=options)
        self.score = best
        return found


LEAKING: dict[str, tuple[Callable[[], gymnasium.Env[Any, Any]], str]] = {
    "state": (Remembering, r"another observation \['state', 'score'\] at step 1 "),
    "length": (EndsSooner, "an episode of 5 steps instead of 30"),
    "score": (KeepsScore, r"another observation \['score'"),
}


@pytest.mark.parametrize("name", LEAKING)
def test_what_an_episode_leaves_behind_is_found(name: str) -> None:
    make_env, message = LEAKING[name]
    with pytest.raises(SimulationError, match=message):
        check_isolation(make_env, steps=30)


def test_what_shows_after_many_steps_needs_as_many() -> None:
    check_isolation(Remembering, steps=10)
    with pytest.raises(SimulationError, match="at step"):
        check_isolation(Remembering, before=3, steps=10)
