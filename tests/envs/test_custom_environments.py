"""Users' environments: clear errors if something is missing, and infos passed on unchanged."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Discrete

from flowchunk.datasets.errors import ConfigurationError, SimulationError
from flowchunk.envs.receding_horizon import RecedingHorizon
from flowchunk.envs.rollout import Rollout, record_episode, rollout
from tests.envs.custom_environments import Reach, Still

EXECUTION = Still.execution
STEP_BY_STEP = replace(EXECUTION, n_action_steps=1)
MIXED: list[dict[str, Any]] = [
    {"score": 0, "is_success": 0},
    {"score": 0.7, "is_success": np.True_},
    {"score": np.float32(0.5), "is_success": True},
    {"score": np.array(0.25), "is_success": False},
]


def run(make_env: Any, *, episodes: int = 4, num_envs: int = 4) -> Rollout:
    return rollout(Still(), make_env, EXECUTION, episodes=episodes, seed=0, num_envs=num_envs)


@pytest.mark.parametrize("num_envs", [1, 2, 4])
def test_a_score_keeps_its_fraction_whatever_number_another_slot_gave_first(num_envs: int) -> None:
    result = run(partial(Reach, MIXED), num_envs=num_envs)
    assert [episode.score for episode in result.episodes] == [0.0, 0.7, 0.5, 0.25]
    assert [episode.success for episode in result.episodes] == [False, True, True, False]


@pytest.mark.parametrize("missing", ["score", "is_success"])
def test_a_missing_outcome_is_named_after_the_first_episode(missing: str) -> None:
    outcome = {name: value for name, value in (("score", 1.0), ("is_success", True)) if name != missing}
    announced: list[int] = []
    with pytest.raises(SimulationError, match=f"without '{missing}'"):
        rollout(Still(), partial(Reach, [outcome]), EXECUTION, episodes=3, num_envs=1, advance=announced.append)
    assert announced == []


def test_an_outcome_that_only_some_report_is_missing_too() -> None:
    with pytest.raises(SimulationError, match="without 'score'"):
        run(partial(Reach, [MIXED[1], {"is_success": True}]))


def test_a_score_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(SimulationError, match=r"info\['score'\] to be a number.*'high'"):
        run(partial(Reach, [{"score": "high", "is_success": True}]))


def test_infos_within_infos_are_kept() -> None:
    result = run(partial(Reach, [{**MIXED[1], "forces": {"left": 1.5}}, {**MIXED[1], "forces": {"left": 2.5}}]))
    assert [info["forces"]["left"] for info in result.infos] == [1.5, 2.5, 1.5, 2.5]


class Counted(Reach):
    def __init__(self) -> None:
        super().__init__()
        setattr(self, "action_space", Discrete(2))  # noqa: B010 -- of another type than the task's


@pytest.mark.parametrize(
    ("make_env", "found"), [(partial(gymnasium.make, "CartPole-v1"), "Box"), (Counted, r"Discrete\(2\)")]
)
def test_spaces_that_chunks_cannot_use_are_refused(make_env: Any, found: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"Dict observations and Box actions, but .*{found}"):
        RecedingHorizon(make_env(), STEP_BY_STEP)


def record(make_env: Any) -> list[np.ndarray]:
    return list(record_episode(Still(), make_env, EXECUTION, seed=0))


class Unspecified(Reach):
    observation_spec = property()  # as if it were missing


def test_a_video_without_specs_names_what_is_missing() -> None:
    with pytest.raises(SimulationError, match="observation_spec, got none; give it an ObservationSpec"):
        record(Unspecified)


def test_a_video_without_chunk_to_pixels_shows_only_the_scene() -> None:
    images = record(Reach)
    assert [image.shape for image in images] == [(64, 64, 3)] * 2
    assert not np.any(images), "nothing is drawn into the black scene"
