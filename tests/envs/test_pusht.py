"""Push-T: its physics, its contract as an environment, and how closely it follows the recorded original."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from flowchunk.datasets.errors import ConfigurationError, SimulationError
from flowchunk.envs.tasks.pusht import KEYPOINTS, OUTLINE, PushT

REPOSITORY = Path(__file__).parents[2]
DEMONSTRATIONS = REPOSITORY.parent / "shared" / "data" / "pusht" / "pusht_cchi_v7_replay.zarr"
GOAL_POSE = (256.0, 256.0, math.pi / 4)
AGENT_ASIDE = (30.0, 30.0)


def block_vertices(state: np.ndarray) -> np.ndarray:
    x, y, angle = state[2:].astype(float)
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return np.asarray(OUTLINE @ rotation.T + (x, y))


def start(env: PushT, state: Any) -> tuple[np.ndarray, dict[str, Any]]:
    observation, info = env.reset(options={"state": state})
    return observation["state"], info


def drive(env: PushT, target: Any, steps: int) -> np.ndarray:
    for _ in range(steps):
        observation, *_ = env.step(np.asarray(target))
    return observation["state"]


@pytest.fixture
def recorded() -> Any:
    if not DEMONSTRATIONS.is_dir():
        pytest.skip("needs the recorded Push-T demonstrations in ../shared/data/pusht")
    return pytest.importorskip("zarr").open_group(str(DEMONSTRATIONS), mode="r")


# Physics.


def test_a_block_that_nothing_touches_stays() -> None:
    env = PushT()
    before, _ = start(env, [*AGENT_ASIDE, 300, 300, 1.0])
    after = drive(env, AGENT_ASIDE, steps=20)
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("physics_step", [0.01, 0.005])
def test_pushing_moves_the_block_and_releasing_stops_it(physics_step: float) -> None:
    env = PushT(physics_step=physics_step)
    start(env, [256, 60, 256, 200, 0.0])
    pushed = drive(env, (256, 260), steps=20)  # against the middle of the bar, along the stem
    assert pushed[2] == pytest.approx(256, abs=0.1)
    assert pushed[3] == pytest.approx(260 + 15, abs=1.0)  # the agent's radius ahead of its target
    released = drive(env, (256, 60), steps=20)
    np.testing.assert_allclose(released[2:], pushed[2:], atol=1.0)


def test_pushing_off_center_rotates_the_block() -> None:
    env = PushT()
    start(env, [300, 60, 256, 200, 0.0])
    state = drive(env, (300, 230), steps=20)
    assert 0.2 < state[4] < math.pi / 2


@pytest.mark.parametrize("target", [(100, 400), (0, 512), (450, 60)])
def test_the_agent_reaches_its_target(target: tuple[float, float]) -> None:
    env = PushT()
    start(env, [200, 50, 400, 400, 0.0])
    np.testing.assert_allclose(drive(env, target, steps=15)[:2], target, atol=0.5)


def test_the_block_does_not_slow_the_agent() -> None:
    env = PushT()
    start(env, [100, 256, 200, 256, math.pi / 2])
    touching = drive(env, (400, 256), steps=5)
    start(env, [100, 256, 200, 500, math.pi / 2])
    free = drive(env, (400, 256), steps=5)
    np.testing.assert_allclose(touching[:2], free[:2], atol=1e-3)


@pytest.mark.parametrize("towards", [(0, 256), (512, 256), (256, 0), (256, 512)])
def test_walls_hold_the_block(towards: tuple[float, float]) -> None:
    env = PushT()
    center, direction = np.array([256.0, 256.0]), (np.array(towards) - 256.0) / 256.0
    angle = math.atan2(direction[1], direction[0]) - math.pi / 2  # the stem points to the wall
    start(env, [*(center - 60 * direction), *center, angle])
    drive(env, center + 110 * direction, steps=30)
    drive(env, center + 130 * direction, steps=5)
    state = drive(env, center, steps=10)
    vertices = block_vertices(state)
    assert (vertices > 5 - 1).all()
    assert (vertices < 506 + 1).all()
    assert np.abs((vertices - center) @ direction).max() == pytest.approx(250.5, abs=2.0)


def test_a_block_squeezed_against_walls_stays_in_the_observation_space() -> None:
    env = PushT(observation="keypoints")
    generator = np.random.default_rng(0)
    for seed in range(10):
        env.reset(seed=seed)
        for step in range(60):
            block = np.array(env.block_pose()[:2])
            inwards, outwards = block + 0.6 * (256 - block), block + 3 * (block - 256)
            target = (inwards if step % 20 < 7 else outwards) + generator.normal(0, 30, 2)
            observation, *_ = env.step(target)
            assert env.observation_space.contains(observation)


def test_same_seed_and_actions_give_the_same_trajectory_bit_for_bit() -> None:
    def trajectory(env: PushT) -> np.ndarray:
        generator = np.random.default_rng(1)
        observation, _ = env.reset(seed=7)
        states = [observation["state"]]
        for _ in range(100):
            pose = np.array(env.block_pose()[:2])
            states.append(env.step(pose + generator.normal(0, 60, 2))[0]["state"])
        return np.array(states)

    env = PushT()
    first = trajectory(env)
    assert np.ptp(first[:, 2]) > 1  # the block was pushed around
    np.testing.assert_array_equal(trajectory(env), first)
    np.testing.assert_array_equal(trajectory(PushT()), first)


# Goal, reward and success.


def test_the_goal_pose_is_covered_and_a_success_that_may_be_continued() -> None:
    env = PushT()
    _, info = start(env, [*AGENT_ASIDE, *GOAL_POSE])
    assert info == {"coverage": pytest.approx(1.0), "is_success": True, "score": 1.0}
    _, reward, terminated, truncated, info = env.step(np.array(AGENT_ASIDE))
    assert (reward, terminated, truncated) == (1.0, True, False)

    drive(env, (420, 420), steps=10)
    drive(env, (120, 120), steps=10)
    _, reward, terminated, _, info = env.step(np.array(AGENT_ASIDE))
    assert reward < 0.9
    assert not terminated
    assert info["is_success"]
    assert info["score"] == 1.0
    assert start(env, [*AGENT_ASIDE, 400, 400, 0.0])[1]["is_success"] is False


def test_coverage_depends_on_the_block_and_the_goal_relative_to_each_other() -> None:
    offset, turn = np.array([20.0, -10.0]), 0.3
    expected = start(PushT(), [*AGENT_ASIDE, *(offset + 256), math.pi / 4 + turn])[1]["coverage"]
    assert 0.2 < expected < 0.9

    goal_angle = math.pi / 4 + math.pi / 2
    moved = PushT(goal_pose=[300, 200, goal_angle])
    block = (300 - offset[1], 200 + offset[0])  # the offset rotated with the goal, by a quarter turn
    assert start(moved, [*AGENT_ASIDE, *block, goal_angle + turn])[1]["coverage"] == pytest.approx(expected)

    swapped = PushT(goal_pose=(*(offset + 256), math.pi / 4 + turn))
    assert start(swapped, [*AGENT_ASIDE, *GOAL_POSE])[1]["coverage"] == pytest.approx(expected)


@pytest.mark.parametrize("distance", [120.0, 151.0, 153.0, 250.0])
def test_a_block_beside_the_goal_covers_nothing(distance: float) -> None:
    env = PushT(goal_pose=(100, 100, 0))
    assert start(env, [*AGENT_ASIDE, 100 + distance, 100, 0.0])[1]["coverage"] == 0.0


def test_reward_is_scaled_coverage_and_score_its_best() -> None:
    env = PushT()
    start(env, [256, 420, 256, 300, math.pi / 4])
    rewards = []
    for target_y in (380, 340, 300, 260, 220, 180):
        _, reward, terminated, _, info = env.step(np.array([256, target_y]))
        rewards.append(reward)
        assert reward == pytest.approx(min(info["coverage"] / 0.95, 1))
        assert terminated == (info["coverage"] > 0.95)
        assert info["score"] >= max(rewards)


# Starts and observations.


@pytest.mark.parametrize("angle", [0.0, 3.0, -1e-20, -0.5, 2 * math.pi, 6.2831853, 20.0, -20.0])
def test_a_start_returns_in_the_observation_with_its_angle_wrapped(angle: float) -> None:
    state, _ = start(PushT(), [100, 50.5, 300, 222.25, angle])
    np.testing.assert_allclose(state[:4], [100, 50.5, 300, 222.25], rtol=1e-6)
    assert 0 <= state[4] < 2 * math.pi
    assert math.cos(state[4] - angle) == pytest.approx(1)


def test_random_starts_are_those_of_the_original() -> None:
    env = PushT()
    states = np.array([env.reset(seed=seed)[0]["state"] for seed in range(200)])
    assert (np.abs(states[:, :4] - states[:, :4].round()) < 1e-4).all()
    assert (states[:, :2] >= 50).all()
    assert (states[:, :2] < 450).all()
    assert (states[:, 2:4] >= 100).all()
    assert (states[:, 2:4] < 400).all()
    assert np.ptp(states[:, 4]) > 5
    np.testing.assert_array_equal(env.reset(seed=3)[0]["state"], states[3])


def test_keypoints_move_with_the_block() -> None:
    env = PushT(observation="keypoints")
    observation, _ = env.reset(options={"state": [100, 50, 300, 200, math.pi / 2]})
    np.testing.assert_allclose(observation["agent_position"], [100, 50], rtol=1e-6)
    np.testing.assert_allclose(observation["keypoints"], np.array([300, 200]) + KEYPOINTS[:, ::-1] * (-1, 1), rtol=1e-5)


def test_specs_describe_the_spaces() -> None:
    for observation in ("state", "keypoints", "image"):
        env = PushT(observation=observation)
        assert isinstance(env.observation_space, gym.spaces.Dict)
        shapes = {key: field.shape for key, field in env.observation_spec.fields.items()}
        assert shapes == {key: space.shape for key, space in env.observation_space.items()}
    assert PushT().observation_spec.fields["state"].wraps == (4,)
    assert [(d.name, d.unit, d.coordinate_frame, d.reference, d.low, d.high) for d in env.action_spec.dimensions] == [
        ("target_x", "px", "world", "absolute", 0, 512),
        ("target_y", "px", "world", "absolute", 0, 512),
    ]
    assert env.action_spec.control_hz == 10


# The contract with Gymnasium.


@pytest.mark.filterwarnings(
    "ignore:.*symmetric and normalized space"
)  # actions are in px: policies normalize, not tasks
@pytest.mark.parametrize("observation", ["state", "keypoints", "image"])
def test_gymnasium_finds_nothing_wrong(observation: str) -> None:
    env = gym.make("flowchunk.envs:flowchunk/PushT-v1", observation=observation, render_mode="rgb_array")
    check_env(env.unwrapped)


def test_an_episode_is_cut_after_300_steps() -> None:
    env = gym.make("flowchunk.envs:flowchunk/PushT-v1")
    env.reset(options={"state": [*AGENT_ASIDE, 300, 300, 0.0]})
    truncations = [env.step(np.array(AGENT_ASIDE))[3] for _ in range(300)]
    assert truncations == [False] * 299 + [True]


@pytest.mark.parametrize(
    "action", [np.array([math.nan, 1]), np.array([1, math.inf]), np.zeros(3), np.zeros((1, 2)), None, "left", [[1], 2]]
)
def test_actions_that_cannot_be_executed_are_refused(action: Any) -> None:
    env = PushT()
    before = env.reset(seed=0)[0]["state"]
    with pytest.raises(SimulationError, match=r"action: expected 2 finite numbers .*, got "):
        env.step(action)
    np.testing.assert_array_equal(drive(env, before[:2], steps=1)[2:], before[2:])


def test_actions_outside_the_plane_are_moved_to_its_edge() -> None:
    ends = []
    for target in ((-1e6, 900.0), (0.0, 512.0)):
        env = PushT()
        env.reset(seed=0)
        ends.append(drive(env, target, steps=5))
    np.testing.assert_array_equal(ends[0], ends[1])


@pytest.mark.parametrize(
    "arguments",
    [
        {"observation": "pixels"},
        {"goal_pose": (256, 256)},
        {"goal_pose": (256, 256, math.nan)},
        {"goal_pose": "center"},
        {"render_mode": "ansi"},
        {"render_size": 0},
        {"physics_step": 0.02},
    ],
)
def test_arguments_that_cannot_be_used_are_refused(arguments: dict[str, Any]) -> None:
    (name,) = arguments
    with pytest.raises(ConfigurationError, match=f"{name}: expected .*, got "):
        PushT(**arguments)


@pytest.mark.parametrize(
    "options",
    [{"state": [1, 2, 3, 4]}, {"state": [1, 2, 3, 4, math.nan]}, {"state": [1, 2, 3000, 4, 0]}, {"pose": [1, 2]}],
)
def test_starts_that_cannot_be_used_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"options.*: expected .*, got "):
        PushT().reset(options=options)


# Images.


@pytest.mark.parametrize("render_size", [96, 512, 700])
def test_the_image_shows_the_agent_where_its_chunk_is_rendered(render_size: int) -> None:
    env = PushT(render_mode="rgb_array", render_size=render_size)
    env.reset(options={"state": [100, 400, 300, 150, 0.0]})
    image = env.render()
    assert image is not None
    assert image.shape == (render_size, render_size, 3)
    assert image.dtype == np.uint8
    agent, block, goal, nothing = env.chunk_to_pixels(
        np.array([[100, 400], [300, 165], [256, 256], [450, 450]])
    ).astype(int)
    assert tuple(image[agent[1], agent[0]]) == (78, 126, 255)
    assert tuple(image[block[1], block[0]]) == (143, 163, 184)
    assert tuple(image[goal[1] + 3, goal[0]]) == (144, 238, 144)
    assert tuple(image[nothing[1], nothing[0]]) == (255, 255, 255)


def test_the_observed_image_is_the_rendered_one_of_96_pixels() -> None:
    observing = PushT(observation="image", render_mode="rgb_array", render_size=200)
    rendering = PushT(render_mode="rgb_array", render_size=96)
    for target in ((100, 400), (300, 150)):
        for env in (observing, rendering):
            env.reset(seed=3)
        observation, *_ = observing.step(np.array(target))
        rendering.step(np.array(target))
        np.testing.assert_array_equal(observation["image"], rendering.render())


def test_a_window_that_cannot_be_opened_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plt, "get_backend", lambda: "agg")
    with pytest.raises(SimulationError, match='use render_mode="rgb_array"'):
        PushT(render_mode="human")


def test_human_mode_shows_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plt, "get_backend", lambda: "a backend with a display")
    env = PushT(render_mode="human")
    shown: list[np.ndarray] = []
    assert env._window is not None
    show = env._window.show

    def show_and_remember(image: np.ndarray) -> None:
        shown.append(image)
        show(image)

    monkeypatch.setattr(env._window, "show", show_and_remember)
    env.reset(seed=0)
    env.step(np.array([0, 0]))
    assert env.render() is None
    env.close()
    env.close()
    assert [image.shape for image in shown] == [(512, 512, 3)] * 3


# Against the recorded demonstrations.


def test_keypoints_are_the_recorded_ones_whenever_the_block_rests(recorded: Any) -> None:
    states, keypoints = recorded["data/state"][:], recorded["data/keypoint"][:]
    unmoved = (states[1:, 2:] == states[:-1, 2:]).all(1)
    rests = np.r_[False, unmoved] & np.r_[unmoved, False]  # elsewhere the recorded keypoints lag behind the block
    env = PushT(observation="keypoints")
    for index in np.flatnonzero(rests)[::100]:
        observation, _ = env.reset(options={"state": states[index]})
        np.testing.assert_allclose(observation["keypoints"], keypoints[index], atol=1e-3)


def test_the_observed_images_are_the_recorded_ones(recorded: Any) -> None:
    states = recorded["data/state"][:]
    env = PushT(observation="image", render_mode="rgb_array", render_size=128)
    errors = []
    for start in np.random.default_rng(0).integers(0, len(states) - 50, 20):
        images = recorded["data/img"][start : start + 50]
        for state, image in zip(states[start : start + 50], images, strict=True):
            observation, _ = env.reset(options={"state": state})
            errors.append(np.abs(observation["image"] - image).mean())
            np.testing.assert_allclose(observation["agent_position"], state[:2], rtol=1e-6)
    assert len(errors) == 1000
    assert np.mean(errors) < 0.3
    assert max(errors) < 1.0


def test_replayed_demonstrations_end_where_they_did(recorded: Any) -> None:
    benchmark = runpy.run_path(str(REPOSITORY / "benchmarks" / "pusht_replay.py"))
    env = PushT()
    recordings = list(benchmark["load_recordings"](DEMONSTRATIONS))[::10]
    replays = [benchmark["replay"](env, recording) for recording in recordings]
    errors = [replay.block_error_px for replay in replays]
    assert np.median(errors) <= 0.4
    assert np.quantile(errors, 0.9) <= 1.5
    assert np.mean([replay.best_coverage for replay in replays]) >= 0.87
