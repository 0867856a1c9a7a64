"""The contract of every registered environment, in each of its variants."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv

import flowchunk.envs  # noqa: F401 -- registers the ids
from flowchunk.datasets.errors import ConfigurationError, SimulationError
from flowchunk.datasets.specs import ActionSpec, ObservationSpec
from flowchunk.envs.contract import landmarks_of
from flowchunk.envs.tasks.pick_place_expert import PickPlaceExpert

PUSHT, PUSHT_ORIGINAL, PICK_PLACE = "flowchunk/PushT-v1", "flowchunk/PushTOriginal-v1", "flowchunk/PickPlace-v1"
Env = gymnasium.Env[dict[str, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Variant:
    env_id: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def make(self, **more: Any) -> Env:
        return gymnasium.make(f"flowchunk.envs:{self.env_id}", **self.arguments, **more)

    @property
    def steps(self) -> int:
        limit = gymnasium.spec(self.env_id).max_episode_steps
        assert limit is not None
        return limit

    def __str__(self) -> str:
        return "-".join([self.env_id.partition("/")[2], *self.arguments.values()])


VARIANTS = [
    Variant(PUSHT, {"observation": "state"}),
    Variant(PUSHT, {"observation": "keypoints"}),
    Variant(PUSHT, {"observation": "image"}),
    Variant(PUSHT_ORIGINAL, {"observation": "state"}),
    Variant(PUSHT_ORIGINAL, {"observation": "image"}),
    Variant(PICK_PLACE, {"action": "joint_position"}),
    Variant(PICK_PLACE, {"action": "end_effector_pose"}),
    Variant(PICK_PLACE, {"observation": "image"}),
]


@pytest.fixture(params=VARIANTS, ids=str)
def variant(request: pytest.FixtureRequest) -> Variant:
    variant = request.param
    assert isinstance(variant, Variant)
    if variant.env_id == PUSHT_ORIGINAL:
        pytest.importorskip("gym_pusht", reason="needs the extra pusht-original")
    try:
        variant.make().close()
    except SimulationError as error:
        pytest.skip(f"rendering is not possible here: {error}")
    return variant


@pytest.fixture
def env(variant: Variant) -> Iterator[Env]:
    env = variant.make()
    yield env
    env.close()


@dataclass(frozen=True)
class Specs:
    observation: ObservationSpec
    action: ActionSpec


def specs_of(env: Env) -> Specs:
    return Specs(env.get_wrapper_attr("observation_spec"), env.get_wrapper_attr("action_spec"))


def random_actions(env: Env, count: int) -> list[np.ndarray]:
    env.action_space.seed(0)
    return [env.action_space.sample() for _ in range(count)]


def observations(env: Env, seed: int, actions: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
    return [env.reset(seed=seed)[0], *(env.step(action)[0] for action in actions)]


def start_of_pusht(env: Env, state: list[float]) -> dict[str, Any] | None:
    """The reset options that start Push-T in this state; None for any other task."""
    assert env.spec is not None
    if env.spec.id == PUSHT:
        return {"state": state}
    if env.spec.id == PUSHT_ORIGINAL:  # it rotates the block about its center of mass after placing it
        *agent, x, y, angle = state
        return {"reset_to_state": [*agent, x - 45 * math.sin(angle), y + 45 * math.cos(angle) - 45, angle]}
    return None


def test_a_goal_among_the_landmarks_is_where_the_task_is_done(env: Env) -> None:
    landmarks = landmarks_of(env)
    start = start_of_pusht(env, [50.0, 50.0, *landmarks.get("goal", ())])
    if start is None:
        assert landmarks == {}
        return
    _, info = env.reset(seed=0, options=start)
    assert info["coverage"] > 0.99


def test_landmarks_follow_the_arguments() -> None:
    env = gymnasium.make(PUSHT, goal_pose=[1.0, 2.0, 3.0])
    assert landmarks_of(env) == {"goal": (1.0, 2.0, 3.0)}
    env.close()


def infos_of_progress(env: Env) -> Iterator[dict[str, Any]]:
    """The infos of an episode that approaches the goal and then moves away from it."""
    if start := start_of_pusht(env, [256, 420, 256, 300, math.pi / 4]):
        yield env.reset(seed=0, options=start)[1]
        for target_y in range(400, 100, -20):
            yield env.step(np.array([256, target_y]))[-1]
        return
    yield env.reset(seed=0)[1]
    expert = PickPlaceExpert(np.random.default_rng(0))
    task: Any = env.unwrapped
    expert.reset(task)
    lifted, info = False, {"score": 0.0}
    while not lifted:
        info = env.step(expert.act(task))[-1]
        lifted = info["score"] >= 0.75
        yield info
    for action in random_actions(env, 20):
        yield env.step(action)[-1]


def succeed(env: Env) -> None:
    if start := start_of_pusht(env, [30, 30, 256, 256, math.pi / 4]):
        env.reset(seed=0, options=start)
        return
    env.reset(seed=0)
    expert = PickPlaceExpert(np.random.default_rng(0))
    task: Any = env.unwrapped
    expert.reset(task)
    while not env.step(expert.act(task))[2]:
        pass


# Registration


def test_every_registered_environment_is_held_to_the_contract() -> None:
    registered = {name for name, spec in gymnasium.registry.items() if spec.namespace == "flowchunk"}
    adapted = {
        "flowchunk/AdroitDoor-v1",
        "flowchunk/FetchPickAndPlace-v1",
        "flowchunk/MetaWorld-v1",
        "flowchunk/Robomimic-v1",
    }  # others' physics, held to check_task_env in tests of their own
    assert registered == {variant.env_id for variant in VARIANTS} | adapted


def test_making_an_environment_does_not_import_torch() -> None:
    program = f"""if True:
        import sys
        import flowchunk.envs
        assert "mujoco" not in sys.modules, "registering imports the tasks"
        import gymnasium
        for env_id in {[PUSHT, PICK_PLACE]}:
            gymnasium.make(env_id).close()
        assert "torch" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("env_id", [PUSHT, PICK_PLACE])
def test_spawned_workers_make_the_same_environment(env_id: str) -> None:
    make = partial(gymnasium.make, f"flowchunk.envs:{env_id}")
    local = make()
    actions = random_actions(local, 3)
    expected = observations(local, 11, actions)
    workers = AsyncVectorEnv([make] * 2, context="spawn")
    try:
        got = [workers.reset(seed=[10, 11])[0], *(workers.step(np.stack([action, action]))[0] for action in actions)]
    finally:
        workers.close()
    for local_observation, observed in zip(expected, got, strict=True):
        for key, value in local_observation.items():
            np.testing.assert_array_equal(observed[key][1], value)
            assert not np.array_equal(observed[key][0], value)


@pytest.mark.filterwarnings("ignore:.*symmetric and normalized space")  # actions are in physical units, on purpose
def test_gymnasium_finds_nothing_wrong(variant: Variant) -> None:
    needs_opengl = variant.env_id == PICK_PLACE
    env = variant.make(render_mode=None if needs_opengl else "rgb_array")
    check_env(env.unwrapped, skip_render_check=needs_opengl)
    env.close()


# Spaces and specs


def test_observations_match_space_and_spec(env: Env) -> None:
    assert isinstance(env.observation_space, gymnasium.spaces.Dict)
    fields = specs_of(env).observation.fields
    assert {key: space.shape for key, space in env.observation_space.items()} == {
        key: field.shape for key, field in fields.items()
    }
    for observation in observations(env, 0, random_actions(env, 30)):
        assert observation.keys() == fields.keys()
        assert env.observation_space.contains(observation)


def test_images_are_bytes_of_a_camera(env: Env) -> None:
    assert isinstance(env.observation_space, gymnasium.spaces.Dict)
    images, values = specs_of(env).observation.images, specs_of(env).observation.values
    assert env.spec is not None
    assert (env.spec.kwargs.get("observation") == "image") == bool(images)
    for key in images:
        assert env.observation_space[key] == gymnasium.spaces.Box(0, 255, (96, 96, 3), np.uint8)
    assert {env.observation_space[key].dtype for key in values} == {np.dtype(np.float32)}
    for observation in observations(env, 0, random_actions(env, 3)):
        for key in images:
            assert observation[key].dtype == np.uint8
            assert observation[key].std() > 5


@pytest.mark.parametrize("env_id", [PUSHT, PUSHT_ORIGINAL, PICK_PLACE])
@pytest.mark.parametrize("wrong", ["images", None, 3])
def test_unknown_observations_are_refused(env_id: str, wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"observation.*'state'.*'image'"):
        gymnasium.make(f"flowchunk.envs:{env_id}", observation=wrong)


def test_every_observed_and_commanded_number_has_a_name_and_a_unit(env: Env) -> None:
    specs = specs_of(env)
    for spec in specs.observation.values.values():
        assert len(spec.units) == spec.size
        assert len(set(spec.names)) == spec.size
    assert len({dimension.name for dimension in specs.action.dimensions}) == specs.action.size


def test_the_action_space_is_the_action_spec(env: Env) -> None:
    spec, space = specs_of(env).action, env.action_space
    assert isinstance(space, gymnasium.spaces.Box)
    assert space.shape == (spec.size,)
    np.testing.assert_array_equal(space.low, np.array([dimension.low for dimension in spec.dimensions], np.float32))
    np.testing.assert_array_equal(space.high, np.array([dimension.high for dimension in spec.dimensions], np.float32))
    assert spec.control_hz == env.metadata["render_fps"]


def test_specs_survive_json(env: Env) -> None:
    specs = specs_of(env)
    for spec in (specs.observation, specs.action):
        assert type(spec).from_json(json.loads(json.dumps(spec.to_json()))) == spec


# Episodes


def test_info_holds_score_and_success(env: Env) -> None:
    _, info = env.reset(seed=0)
    for reported in (info, *(env.step(action)[-1] for action in random_actions(env, 5))):
        assert isinstance(reported["score"], float)
        assert 0 <= reported["score"] <= 1
        assert isinstance(reported["is_success"], bool)


def test_the_score_never_falls_within_an_episode_and_starts_anew_with_the_next(env: Env) -> None:
    scores = [info["score"] for info in infos_of_progress(env)]
    assert scores[0] < scores[-1] <= 1
    assert scores == sorted(scores)
    assert env.reset(seed=0)[1]["score"] < scores[-1]


def test_steps_after_success_are_allowed_and_keep_score_and_success(env: Env) -> None:
    succeed(env)
    for action in random_actions(env, 10):
        observation, _, _, _, info = env.step(action)
        assert info["is_success"] is True
        assert info["score"] == 1.0
        assert env.observation_space.contains(observation)
    assert env.reset(seed=0)[1]["is_success"] is False


def test_same_seed_and_actions_give_the_same_bits_whatever_was_done_before(variant: Variant) -> None:
    fresh, used = variant.make(), variant.make()
    actions = random_actions(fresh, 25)
    expected = observations(fresh, 5, actions)
    other = observations(used, 6, actions[::-1])
    for first, again, differs in zip(expected, observations(used, 5, actions), other, strict=True):
        for key, value in first.items():
            np.testing.assert_array_equal(again[key], value)
        assert any(not np.array_equal(differs[key], value) for key, value in first.items())
    for key, value in expected[-1].items():
        assert not np.array_equal(other[-1][key], value)
    for env in (fresh, used):
        env.close()


def test_episodes_are_cut_at_the_registered_length(variant: Variant, env: Env) -> None:
    env.reset(seed=0)
    truncations = [env.step(action)[3] for action in random_actions(env, variant.steps)]
    assert truncations == [False] * (variant.steps - 1) + [True]


BAD_ACTIONS: dict[str, Callable[[int], Any]] = {
    "nan": lambda size: np.full(size, np.nan),
    "infinity": lambda size: np.full(size, np.inf),
    "too many": lambda size: np.zeros(size + 1),
    "a batch": lambda size: np.zeros((1, size)),
    "nothing": lambda size: None,
    "ragged": lambda size: [[0.0], *[0.0] * (size - 1)],
}


@pytest.mark.parametrize("kind", BAD_ACTIONS)
def test_actions_that_cannot_be_executed_are_refused_and_change_nothing(variant: Variant, kind: str) -> None:
    env, untouched = variant.make(), variant.make()
    for instance in (env, untouched):
        instance.reset(seed=0)
    with pytest.raises(SimulationError, match=r"action: expected \d+ finite numbers"):
        env.unwrapped.step(BAD_ACTIONS[kind](specs_of(env).action.size))
    (action,) = random_actions(env, 1)
    expected, got = untouched.step(action)[0], env.step(action)[0]
    for key, value in expected.items():
        np.testing.assert_array_equal(got[key], value)


# Images


def test_images_and_the_chunks_drawn_in_them(variant: Variant) -> None:
    size: Any = (96, 128) if variant.env_id == PICK_PLACE else 96
    env = variant.make(render_mode="rgb_array", render_size=size)
    env.reset(seed=0)
    chunk = np.stack(random_actions(env, 7))
    pixels = env.get_wrapper_attr("chunk_to_pixels")(chunk)
    assert pixels.shape == (7, 2)
    assert np.isfinite(pixels).all()
    try:
        image: Any = env.render()
    except SimulationError as error:
        pytest.skip(f"rendering is not possible here: {error}")
    finally:
        env.close()
    assert image.dtype == np.uint8
    assert image.shape == ((96, 128, 3) if variant.env_id == PICK_PLACE else (96, 96, 3))
    assert image.std() > 1
