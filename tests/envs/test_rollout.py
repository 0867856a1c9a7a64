"""Rollouts: outcomes that depend on the seed alone, one inference a round, and films of them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import av
import cloudpickle  # type: ignore[import-untyped]  # it comes with Gymnasium, without types
import gymnasium
import numpy as np
import pytest

from flowchunk.datasets.errors import SimulationError
from flowchunk.envs.rollout import ChunkExecution, Rollout, noise_seed, record_episode, rollout
from flowchunk.envs.video import FIRST, write_video

EXECUTION = ChunkExecution(observation_steps=2, horizon=6, n_action_steps=4)
SEED = 50
PUSHT = "flowchunk.envs:flowchunk/PushT-v1"

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test


class Uneven(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Push-T in episodes of 6 to 26 steps, as the seed says, which report the seed they were reset with."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        assert seed is not None
        self.seed, self.steps, self.length = seed, 0, 6 + 5 * (seed % 5)
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, {**info, "reset_seed": seed}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.steps += 1
        over = truncated or self.steps == self.length
        return observation, reward, terminated, over, {**info, "reset_seed": self.seed}


def make_uneven(**options: Any) -> gymnasium.Env[Any, Any]:
    return Uneven(gymnasium.make(PUSHT, **options))


class Pusher:
    """Drives at the block, a little beside it as the row's noise says."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.seeds: list[int] = []

    def predict_chunk(
        self, observation: Mapping[str, np.ndarray], *, nfe: int | None = None, seed: int | Sequence[int] = 0
    ) -> np.ndarray:
        state = observation["state"]
        assert not isinstance(seed, int)
        assert state.shape == (len(seed), EXECUTION.observation_steps, 5)
        self.batches.append(len(state))
        self.seeds += seed
        noise = np.stack([np.random.default_rng(one).normal(0, 20, (EXECUTION.horizon, 2)) for one in seed])
        return np.asarray(state[:, -1, None, 2:4] + noise, dtype=np.float32)


def run(episodes: int, make_env: Any = make_uneven, **options: Any) -> Rollout:
    return rollout(Pusher(), make_env, EXECUTION, episodes=episodes, seed=SEED, **options)


@pytest.fixture(scope="module")
def expected() -> Rollout:
    return run(7, num_envs=1)


def test_episodes_come_in_the_order_of_their_seeds(expected: Rollout) -> None:
    seeds = list(range(SEED, SEED + 7))
    assert [episode.seed for episode in expected.episodes] == seeds
    assert [info["reset_seed"] for info in expected.infos] == seeds


def test_steps_are_counted(expected: Rollout) -> None:
    lengths = [6 + 5 * (seed % 5) for seed in range(SEED, SEED + 7)]
    assert [episode.steps for episode in expected.episodes] == lengths
    assert expected.env_steps_per_second == pytest.approx(sum(lengths) / expected.seconds)


def test_the_outcome_is_the_tasks(expected: Rollout) -> None:
    env = make_uneven()
    observation, _ = env.reset(seed=SEED + 3)
    history, over, rounds = [observation["state"]] * 2, False, 0
    while not over:
        seen = {"state": np.stack(history[-2:])[None]}
        (chunk,) = Pusher().predict_chunk(seen, seed=[noise_seed(SEED + 3, rounds)])
        rounds += 1
        for action in chunk[: EXECUTION.n_action_steps]:
            observation, _, terminated, truncated, info = env.step(action)
            history.append(observation["state"])
            over = terminated or truncated
            if over:
                break
    episode = expected.episodes[3]
    assert (episode.score, episode.success) == (info["score"], info["is_success"])
    assert expected.infos[3]["coverage"] == info["coverage"]


def test_the_score_means_what_it_says(expected: Rollout) -> None:
    assert len({info["coverage"] for info in expected.infos}) > 1, "the policy has to do something"
    assert expected.score_mean == pytest.approx(np.mean([episode.score for episode in expected.episodes]))
    assert expected.success_rate == expected.successes / 7


def outcome(result: Rollout) -> list[dict[str, Any]]:
    return [{key: info[key] for key in ("reset_seed", "score", "is_success", "coverage")} for info in result.infos]


@pytest.mark.parametrize("num_envs", [3, 7, 50])
def test_the_outcome_does_not_depend_on_how_many_run_side_by_side(expected: Rollout, num_envs: int) -> None:
    result = run(7, num_envs=num_envs)
    assert result.episodes == expected.episodes
    assert outcome(result) == outcome(expected)


def test_the_outcome_does_not_depend_on_worker_processes(expected: Rollout) -> None:
    result = run(7, num_envs=2, workers=True)
    assert result.episodes == expected.episodes
    assert outcome(result) == outcome(expected)


def test_more_episodes_leave_the_first_as_they_were(expected: Rollout) -> None:
    assert run(4, num_envs=2).episodes == expected.episodes[:4]


def test_a_round_is_one_inference_over_the_episodes_that_run() -> None:
    make_env = partial(gymnasium.make, PUSHT, max_episode_steps=8)  # two rounds an episode
    for num_envs, batches in ((5, [5, 5]), (2, [2, 2, 2, 2, 1, 1]), (1, [1] * 10)):
        policy = Pusher()
        rollout(policy, make_env, EXECUTION, episodes=5, seed=SEED, num_envs=num_envs)
        assert policy.batches == batches


def test_finished_episodes_are_announced() -> None:
    announced: list[int] = []
    run(5, num_envs=2, advance=announced.append)
    assert announced == sorted(set(announced))
    assert announced[-1] == 5


def test_noise_differs_between_episodes_and_rounds() -> None:
    assert len({noise_seed(episode, rounds) for episode in range(20) for rounds in range(20)}) == 400


# Films


def make_drawn(**options: Any) -> gymnasium.Env[Any, Any]:
    return make_uneven(render_mode="rgb_array", render_size=65, **options)


def test_a_film_has_a_picture_of_every_step_with_the_chunk_drawn_in(expected: Rollout) -> None:
    policy = Pusher()
    frames = record_episode(policy, make_drawn, EXECUTION, seed=SEED + 2)
    assert len(frames) == expected.episodes[2].steps
    assert policy.seeds == [noise_seed(SEED + 2, rounds) for rounds in range(len(policy.seeds))], "the same noise again"
    assert {(frame.shape, frame.dtype) for frame in frames} == {((65, 65, 3), np.dtype(np.uint8))}
    for frame in frames:
        assert (np.abs(frame - FIRST.astype(float)).max(axis=-1) < 60).any()
    again = record_episode(Pusher(), make_drawn, EXECUTION, seed=SEED + 2)
    np.testing.assert_array_equal(frames, again)


def test_what_cannot_be_drawn_is_an_error() -> None:
    with pytest.raises(SimulationError, match="render_mode='rgb_array'"):
        record_episode(Pusher(), make_uneven, EXECUTION, seed=SEED)


@pytest.mark.parametrize("fps", [10, 20.0])
def test_a_video_can_be_played(tmp_path: Path, fps: float) -> None:
    pictures = [np.full((65, 97, 3), shade, np.uint8) for shade in range(0, 240, 20)]
    path = tmp_path / "videos" / "film.mp4"
    write_video(path, pictures, fps=fps)
    with av.open(path) as container:
        stream = container.streams.video[0]
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert stream.average_rate == fps
        assert stream.codec_context.name == "h264"
    assert [picture.shape for picture in decoded] == [(64, 96, 3)] * len(pictures)
    for picture, original in zip(decoded, pictures, strict=True):
        assert abs(float(picture.mean()) - float(original.mean())) < 6
