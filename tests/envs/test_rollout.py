"""Rollouts: outcomes that depend only on the seed, one inference per round, and videos of them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import cloudpickle  # type: ignore[import-untyped]  # it comes with Gymnasium, without types
import gymnasium
import numpy as np
import pytest

from flowchunk.datasets.errors import ConfigurationError, SimulationError
from flowchunk.datasets.specs import ObservationSpec
from flowchunk.envs.rollout import Rollout, noise_seed, noise_seeds, record_episode, rollout
from flowchunk.envs.tasks.pusht import ACTION_SPEC, OBSERVATION_SPECS
from flowchunk.envs.video import CROP, FIRST
from flowchunk.envs.virtual_delay import VirtualDelay
from flowchunk.policy.execution.executor import ChunkExecution

EXECUTION = ChunkExecution(observation_steps=2, horizon=6, n_action_steps=4)
SEED = 50
PUSHT, PICK_PLACE = "flowchunk.envs:flowchunk/PushT-v1", "flowchunk.envs:flowchunk/PickPlace-v1"

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test


class Uneven(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Push-T in episodes of 6 to 26 steps, depending on the seed, which report the seed of their reset."""

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
    """Drives towards the block, with an offset that depends on the row's noise."""

    observation_spec, action_spec, execution = OBSERVATION_SPECS["state"], ACTION_SPEC, EXECUTION

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.seeds: list[int] = []

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
        assert state.shape == (len(seed), EXECUTION.observation_steps, 5)
        self.batches.append(len(state))
        self.seeds += seed
        noise = np.stack([np.random.default_rng(row_seed).normal(0, 20, (EXECUTION.horizon, 2)) for row_seed in seed])
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
        observed = {"state": np.stack(history[-2:])[None]}
        (chunk,) = Pusher().predict_chunk(observed, seed=[noise_seed(SEED + 3, rounds)])
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


def test_the_score_is_the_mean_of_the_episodes(expected: Rollout) -> None:
    assert len({info["coverage"] for info in expected.infos}) > 1, "the policy has to do something"
    assert expected.score_mean == pytest.approx(np.mean([episode.score for episode in expected.episodes]))
    assert expected.success_rate == expected.successes / 7


def outcome(result: Rollout) -> list[dict[str, Any]]:
    return [{key: info[key] for key in ("reset_seed", "score", "is_success", "coverage")} for info in result.infos]


@pytest.mark.parametrize("num_envs", [3, 7, 50])
def test_the_outcome_does_not_depend_on_how_many_run_in_parallel(expected: Rollout, num_envs: int) -> None:
    result = run(7, num_envs=num_envs)
    assert result.episodes == expected.episodes
    assert outcome(result) == outcome(expected)


def test_the_outcome_does_not_depend_on_worker_processes(expected: Rollout) -> None:
    result = run(7, num_envs=2, processes=2)
    assert result.episodes == expected.episodes
    assert outcome(result) == outcome(expected)


def test_more_episodes_leave_the_first_as_they_were(expected: Rollout) -> None:
    assert run(4, num_envs=2).episodes == expected.episodes[:4]


def test_a_round_is_one_inference_over_the_episodes_that_run() -> None:
    make_env = partial(gymnasium.make, PUSHT, max_episode_steps=8)  # two rounds per episode
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


def test_more_samples_leave_the_first_as_it_was() -> None:
    assert noise_seeds(7, 3, samples=8)[0] == noise_seeds(7, 3, samples=1)[0] == noise_seed(7, 3)
    assert len(set(noise_seeds(7, 3, samples=8))) == 8


# Vision policies


class VisionPolicy:
    """Moves from the robot's position by an offset that depends on the row's noise and the images' brightness."""

    observation_spec, action_spec, execution = OBSERVATION_SPECS["image"], ACTION_SPEC, EXECUTION

    def predict_chunk(
        self,
        observation: Mapping[str, np.ndarray],
        *,
        nfe: int | None = None,
        seed: int | Sequence[int] | None = None,
        prefix: np.ndarray | None = None,
        tail: np.ndarray | None = None,
    ) -> np.ndarray:
        assert isinstance(seed, Sequence)
        images = [value for value in observation.values() if value.dtype == np.uint8]
        assert images
        for image in images:
            assert image.shape == (len(seed), EXECUTION.observation_steps, 96, 96, 3)
        brightness = np.mean([image.mean(axis=(1, 2, 3, 4)) for image in images], axis=0)[:, None, None] / 255
        if "agent_position" in observation:
            here, scale = observation["agent_position"][:, -1, None], 30.0
        else:
            here, scale = observation["proprioception"][:, -1, None, :7], 0.1
        noise = np.stack([np.random.default_rng(row_seed).normal(0, 1, (EXECUTION.horizon, 1)) for row_seed in seed])
        return np.asarray(here + scale * (noise + brightness), dtype=np.float32)


def make_observing(env_id: str, **options: Any) -> gymnasium.Env[Any, Any]:
    return LastObservation(gymnasium.make(env_id, observation="image", max_episode_steps=12, **options))


class LastObservation(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Reports a checksum of the last observation."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, *outcome, info = self.env.step(action)
        sums = {f"sum_{key}": float(value.sum(dtype=np.float64)) for key, value in observation.items()}
        return (observation, *outcome, {**info, **sums})


@pytest.mark.parametrize("env_id", [PUSHT, PICK_PLACE])
def test_workers_render_the_same_as_one_process(env_id: str) -> None:
    make_env = partial(make_observing, env_id)
    try:
        make_env().close()
    except SimulationError as error:
        pytest.skip(f"rendering is not possible here: {error}")
    single, parallel = (
        rollout(VisionPolicy(), make_env, EXECUTION, episodes=3, seed=SEED, num_envs=2, processes=processes)
        for processes in (1, 2)
    )
    assert single.episodes == parallel.episodes
    sums = [key for key in single.infos[0] if key.startswith("sum_")]
    assert len(sums) == (2 if env_id == PUSHT else 3)
    for expected, got in zip(single.infos, parallel.infos, strict=True):
        assert {key: expected[key] for key in sums} == {key: got[key] for key in sums}
    assert len({info[sums[0]] for info in single.infos}) == 3, "episodes with different images"


# Videos


def make_rendered(**options: Any) -> gymnasium.Env[Any, Any]:
    return make_uneven(render_mode="rgb_array", render_size=65, **options)


def test_a_video_has_an_image_of_every_step_with_the_chunk_drawn_in(expected: Rollout) -> None:
    policy = Pusher()
    frames = list(record_episode(policy, make_rendered, EXECUTION, seed=SEED + 2, samples=3))
    assert len(frames) == expected.episodes[2].steps
    assert set(policy.batches) == {3}
    rounds = range(len(policy.batches))
    assert policy.seeds[::3] == [noise_seed(SEED + 2, number) for number in rounds], "the same noise again"
    assert len(set(policy.seeds)) == len(policy.seeds), "and different noise for the other samples"
    assert {(frame.shape, frame.dtype) for frame in frames} == {((65, 65, 3), np.dtype(np.uint8))}
    for frame in frames:
        assert (np.abs(frame - FIRST.astype(float)).max(axis=-1) < 60).any()
    again = list(record_episode(Pusher(), make_rendered, EXECUTION, seed=SEED + 2, samples=3))
    np.testing.assert_array_equal(frames, again)


@pytest.mark.parametrize("strategy", ["asynchronous", "real_time"])
def test_a_video_shows_the_episode_that_was_evaluated_with_its_delay(strategy: str) -> None:
    execution = replace(EXECUTION, horizon=12, strategy=strategy, longest_prefix=4)
    delay, commanded, prefixes = VirtualDelay(steps=3, jitter=1), [], []

    class Commanded(gymnasium.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            commanded.append(np.array(action))
            return self.env.step(action)

    class Continuing(Pusher):
        def predict_chunk(
            self, observation: Any, *, seed: Any = None, prefix: Any = None, **options: Any
        ) -> np.ndarray:
            rows = [np.random.default_rng(one).uniform(100, 400, (12, 2)) for one in seed]
            chunks = np.asarray(rows, np.float32)
            if prefix is not None:
                chunks[:, : prefix.shape[1]] = prefix
                prefixes.append(prefix.shape[1])
            return chunks

    rollout(Continuing(), lambda: Commanded(make_uneven()), execution, episodes=1, seed=SEED + 4, delay=delay)
    evaluated, commanded[:] = list(commanded), []
    assert len(evaluated) == 26
    assert (max(prefixes, default=0) > 0) == (strategy == "real_time")
    frames = record_episode(
        Continuing(), lambda: Commanded(make_rendered()), execution, seed=SEED + 4, samples=3, delay=delay
    )
    assert len(list(frames)) == 26
    np.testing.assert_array_equal(commanded, evaluated)


def test_the_recorded_episode_does_not_depend_on_how_many_samples_are_shown() -> None:
    ends = []
    for samples in (1, 2, 8):
        made: list[gymnasium.Env[Any, Any]] = []

        def make_env(made: list[gymnasium.Env[Any, Any]] = made) -> gymnasium.Env[Any, Any]:
            made.append(make_rendered())
            return made[0]

        list(record_episode(Pusher(), make_env, EXECUTION, seed=SEED, samples=samples))
        task: Any = made[0].unwrapped
        ends.append([*task.agent_position(), *task.block_pose()])
    np.testing.assert_array_equal(ends, [ends[0]] * 3)


def test_a_video_shows_the_policys_images_with_their_crops() -> None:
    make_env = partial(make_observing, PUSHT, render_mode="rgb_array")
    spec: ObservationSpec = make_env().get_wrapper_attr("observation_spec")
    image = replace(spec.fields["image"], crop=(84, 84))
    for policys_spec, is_cropped in ((None, False), (ObservationSpec({**spec.fields, "image": image}), True)):
        frames = list(record_episode(VisionPolicy(), make_env, EXECUTION, seed=SEED, observation_spec=policys_spec))
        assert {frame.shape for frame in frames} == {(512, 512 + 2 * 96 + 12, 3)}
        assert (frames[0] == CROP).all(axis=-1).any() == is_cropped


def test_images_are_yielded_while_the_episode_runs() -> None:
    policy = Pusher()
    frames = record_episode(policy, make_rendered, EXECUTION, seed=SEED + 2, samples=3)
    next(frames)
    assert len(policy.batches) == 1, "the second chunk is not predicted before its images are requested"
    frames.close()  # type: ignore[attr-defined]  # it is a generator


def test_a_video_without_samples_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="samples=0"):
        record_episode(Pusher(), make_rendered, EXECUTION, seed=SEED, samples=0)


def test_an_environment_that_does_not_render_is_an_error() -> None:
    with pytest.raises(SimulationError, match="render_mode='rgb_array'"):
        list(record_episode(Pusher(), make_uneven, EXECUTION, seed=SEED))
