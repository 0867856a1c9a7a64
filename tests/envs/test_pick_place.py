"""PickPlace keeps Gymnasium's contract, its grasps are physical, and its expert succeeds in both bins."""

from collections.abc import Iterator
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import flowchunk.envs
from flowchunk.datasets.errors import ConfigurationError, SimulationError
from flowchunk.datasets.rotations import rotation_6d_from_matrix
from flowchunk.datasets.specs import ActionSpec, ObservationSpec
from flowchunk.envs import rendering
from flowchunk.envs.tasks.pick_place import CUBE_AREA, CUBE_SIZE, PickPlace
from flowchunk.envs.tasks.pick_place_expert import PickPlaceExpert

ACTION_KINDS = ("joint_position", "end_effector_pose")
ID = "flowchunk/PickPlace-v1"


@pytest.fixture(params=ACTION_KINDS)
def env(request: pytest.FixtureRequest) -> Iterator[PickPlace]:
    env = PickPlace(action=request.param)
    env.reset(seed=0)
    yield env
    env.close()


@pytest.fixture(scope="module")
def rendered() -> Iterator[PickPlace]:
    env = PickPlace(render_mode="rgb_array", render_size=(120, 160))
    env.reset(seed=0)
    try:
        env.render()
    except SimulationError as error:
        pytest.skip(f"rendering is not possible here: {error}")
    yield env
    env.close()


def hold(env: PickPlace, opening: float = 0.07) -> np.ndarray:
    """The action that keeps the arm in place."""
    if env.action_kind == "joint_position":
        return np.append(env.joint_targets(), opening)
    pose = env.kinematics.forward(env.joint_targets())
    return np.concatenate([pose.position, rotation_6d_from_matrix(pose.rotation), [opening]])


def demonstrate(env: PickPlace, expert: PickPlaceExpert, seed: int) -> list[dict[str, Any]]:
    """The infos of one episode of the expert, from the first step to the last."""
    env.reset(seed=seed)
    expert.reset(env)
    infos = []
    for _ in range(200):
        *_, terminated, _, info = env.step(expert.act(env))
        infos.append(info)
        if terminated:
            break
    return infos


# Contract


@pytest.mark.filterwarnings("ignore:.*symmetric and normalized space")  # actions are in physical units, on purpose
@pytest.mark.parametrize("action", ACTION_KINDS)
def test_gymnasiums_checker_passes(action: str) -> None:
    check_env(gymnasium.make(ID, action=action).unwrapped, skip_render_check=True)


def test_registered_with_200_steps() -> None:
    assert flowchunk.envs.__name__ == "flowchunk.envs"
    env = gymnasium.make(ID, action="end_effector_pose")
    env.reset(seed=0)
    action = hold(env.unwrapped)  # type: ignore[arg-type]
    truncations = [env.step(action.astype(np.float32))[3] for _ in range(200)]
    assert truncations.index(True) == 199


def test_specs_describe_the_spaces(env: PickPlace) -> None:
    field = env.observation_spec.fields["state"]
    assert env.observation_space["state"].shape == field.shape == (19,)
    assert len(field.names) == len(field.units) == 19
    assert env.action_space.shape == (env.action_spec.size,)
    assert env.action_spec.control_hz == env.metadata["render_fps"] == 20
    assert ObservationSpec.from_json(env.observation_spec.to_json()) == env.observation_spec
    assert ActionSpec.from_json(env.action_spec.to_json()) == env.action_spec


def test_rotation_dimensions_are_marked() -> None:
    rotations = [dimension.rotation for dimension in PickPlace(action="end_effector_pose").action_spec.dimensions]
    assert rotations == [None] * 3 + ["rotation_6d"] * 6 + [None]


def test_observation_holds_the_named_quantities(env: PickPlace) -> None:
    observation, _ = env.reset(seed=3)
    named = dict(zip(env.observation_spec.fields["state"].names, observation["state"], strict=True))
    assert named["gripper_opening"] == pytest.approx(env.gripper_opening(), abs=1e-6)
    assert [named[f"cube_{axis}"] for axis in "xyz"] == pytest.approx(env.cube_position(), abs=1e-6)
    assert [named[f"end_effector_{axis}"] for axis in "xyz"] == pytest.approx(env.end_effector_position(), abs=1e-6)
    assert [named[f"cube_y_axis_{axis}"] for axis in "xyz"] == pytest.approx(env.cube_rotation()[:, 1], abs=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"observation": "images"},
        {"action": "torque"},
        {"render_mode": "ascii"},
        {"render_size": (0, 10)},
        {"render_size": (1, 2, 3)},
    ],
)
def test_unknown_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(wrong))}: expected .*, got "):
        PickPlace(**wrong)


def test_an_unknown_action_kind_names_the_valid_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"'joint_position', 'end_effector_pose'"):
        PickPlace(action="torque")  # type: ignore[arg-type]


# Reset


def test_reset_places_the_cube_at_rest_in_its_area(env: PickPlace) -> None:
    for seed in range(20):
        _, info = env.reset(seed=seed)
        position = env.cube_position()
        for value, (low, high) in zip(position, CUBE_AREA, strict=False):
            assert low - 1e-3 <= value <= high + 1e-3
        assert position[2] == pytest.approx(CUBE_SIZE / 2, abs=1e-3)
        assert env.cube_is_at_rest()
        assert info == {"is_success": False, "score": 0.0, "bin": -1}


def test_reset_at_a_given_pose(env: PickPlace) -> None:
    env.reset(options={"cube_pose": [0.22, -0.04, 2.0]})
    np.testing.assert_allclose(env.cube_position()[:2], [0.22, -0.04], atol=1e-4)
    np.testing.assert_allclose(env.cube_rotation()[:2, 0], [np.cos(2.0), np.sin(2.0)], atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"cube_pose": [0.5, 0.0, 0.0]},
        {"cube_pose": [0.2, np.nan, 0.0]},
        {"cube_pose": [0.2, 0.0]},
        {"cube_pose": "middle"},
        {"cube_position": [0.2, 0.0, 0.0]},
    ],
)
def test_invalid_reset_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"options.*: expected .*, got "):
        PickPlace().reset(options=options)


def test_same_seed_and_actions_give_the_same_bits(env: PickPlace) -> None:
    def trajectory(env: PickPlace) -> np.ndarray:
        env.action_space.seed(0)
        first = env.reset(seed=5)[0]["state"]
        return np.array([first, *(env.step(env.action_space.sample())[0]["state"] for _ in range(20))])

    fresh = trajectory(PickPlace(action=env.action_kind))
    demonstrate(env, PickPlaceExpert(np.random.default_rng(0)), seed=1)  # used before
    np.testing.assert_array_equal(trajectory(env), fresh)


# Step


def test_wrong_actions_are_refused(env: PickPlace) -> None:
    size = env.action_spec.size
    for action in (np.zeros(size + 1), np.zeros((1, size)), np.full(size, np.nan), np.full(size, np.inf)):
        with pytest.raises(SimulationError, match=f"action: expected {size} finite numbers"):
            env.step(action)


def test_a_pose_without_a_rotation_is_refused() -> None:
    env = PickPlace(action="end_effector_pose")
    env.reset(seed=0)
    with pytest.raises(SimulationError, match=r"action: expected a rotation in action\[3:9\], got "):
        env.step(np.zeros(10))


def test_actions_out_of_bounds_are_clipped(env: PickPlace) -> None:
    action = hold(env)
    action[-1], action[0] = -5.0, 50.0
    clipped = np.clip(action, env.action_space.low, env.action_space.high)
    observation = env.step(action)[0]["state"]
    env.reset(seed=0)
    np.testing.assert_array_equal(env.step(clipped)[0]["state"], observation)


def test_points_that_are_not_in_front_of_the_camera_have_no_pixels(env: PickPlace) -> None:
    view = env.data.camera("front")
    forward = -view.xmat.reshape(3, 3)[:, 2]
    points = view.xpos + np.outer([0.0, -0.5, 0.001, 0.5], forward)
    pixels = rendering.project_to_pixels(env.model, env.data, points, camera="front", height=480, width=640)
    assert np.isnan(pixels[:3]).all()
    np.testing.assert_allclose(pixels[3], (320, 240))


def test_holding_still_holds_still(env: PickPlace) -> None:
    before = env.end_effector_position()
    action = hold(env)
    for _ in range(20):
        env.step(action)
    np.testing.assert_allclose(env.end_effector_position(), before, atol=1e-3)


def test_a_commanded_pose_is_reached() -> None:
    env = PickPlace(action="end_effector_pose")
    env.reset(seed=0)
    action = hold(env)
    action[:3] = (0.2, 0.05, 0.1)
    for _ in range(30):
        env.step(action)
    np.testing.assert_allclose(env.end_effector_position(), action[:3], atol=3e-3)


# The expert


@pytest.mark.parametrize("action", ACTION_KINDS)
def test_the_expert_places_the_cube_in_both_bins(action: str) -> None:
    env = PickPlace(action=action)  # type: ignore[arg-type]
    expert = PickPlaceExpert(np.random.default_rng(0))
    bins = []
    for seed in range(12):
        infos = demonstrate(env, expert, seed)
        scores = [info["score"] for info in infos]
        assert infos[-1] == {"is_success": True, "score": 1.0, "bin": expert.bin}
        assert scores == sorted(scores)
        assert set(scores) >= {0.25, 0.5, 0.75, 1.0}
        assert 60 <= len(infos) <= 130
        bins.append(expert.bin)
    assert set(bins) == {0, 1}


def test_stepping_after_success_keeps_it() -> None:
    env = PickPlace()
    demonstrate(env, PickPlaceExpert(np.random.default_rng(0)), seed=0)
    for _ in range(5):
        _, reward, terminated, truncated, info = env.step(hold(env))
        assert (reward, terminated, truncated, info["is_success"]) == (1.0, True, False, True)


def test_the_cube_is_held_by_friction() -> None:
    env = PickPlace()
    assert (env.model.eq_type == mujoco.mjtEq.mjEQ_JOINT).all()  # the fingers' coupling, but no weld
    env.reset(seed=2)
    expert = PickPlaceExpert(np.random.default_rng(0))
    expert.reset(env)
    while env.cube_position()[2] < 0.06:
        env.step(expert.act(env))

    offset = env.cube_position() - env.end_effector_position()
    for _ in range(60):
        env.step(hold(env, opening=0.015))
    np.testing.assert_allclose(env.cube_position() - env.end_effector_position(), offset, atol=2e-3)
    assert env.is_grasped()

    for _ in range(20):
        env.step(hold(env, opening=0.07))
    assert env.cube_position()[2] == pytest.approx(CUBE_SIZE / 2, abs=1e-3)


def test_a_cube_held_inside_a_bin_is_not_placed() -> None:
    env = PickPlace(action="end_effector_pose")
    env.reset(seed=2)
    expert = PickPlaceExpert(np.random.default_rng(0))
    expert.reset(env)
    action = expert.act(env)
    while env.cube_position()[2] < 0.03 or action[-1] < 0.05:  # until the expert would open over the bin
        env.step(action)
        action = expert.act(env)

    action = hold(env, opening=0.015)
    action[2] = 0.025
    for _ in range(40):
        info = env.step(action)[-1]
    assert env.cube_in_bin() == expert.bin
    assert env.cube_is_at_rest()
    assert env.is_grasped()
    assert info == {"is_success": False, "score": 0.75, "bin": -1}


# Images


def test_render_shows_the_scene(rendered: PickPlace) -> None:
    image = rendered.render()
    assert image.shape == (120, 160, 3)
    assert image.dtype == np.uint8
    rendered.reset(options={"cube_pose": [0.25, 0.0, 0.0]})
    column, row = rendering.project_to_pixels(
        rendered.model, rendered.data, rendered.cube_position()[None], camera="front", height=120, width=160
    )[0]
    red, green, blue = rendered.render()[round(row), round(column)].astype(int)
    assert red > green > blue + 40  # the cube's yellow at its projected position


def test_chunks_are_projected_to_the_end_effector(env: PickPlace) -> None:
    expected = rendering.project_to_pixels(
        env.model, env.data, env.end_effector_position()[None], camera="front", height=480, width=640
    )
    pixels = env.chunk_to_pixels(np.stack([hold(env)] * 3))
    assert pixels.shape == (3, 2)
    np.testing.assert_allclose(pixels, np.repeat(expected, 3, axis=0), atol=0.5)
    with pytest.raises(SimulationError, match="chunk of shape"):
        env.chunk_to_pixels(np.zeros((3, 4)))


def test_pixels_grow_to_the_right_and_down() -> None:
    env = PickPlace()
    env.reset(seed=0)
    points = np.array([[0.2, 0.0, 0.1], [0.2, 0.1, 0.1], [0.2, 0.0, 0.0]])  # the camera faces the robot
    middle, right, below = rendering.project_to_pixels(
        env.model, env.data, points, camera="front", height=480, width=640
    )
    assert right[0] > middle[0]
    assert below[1] > middle[1]


def test_rendering_needs_a_render_mode(env: PickPlace) -> None:
    with pytest.raises(SimulationError, match="expected render_mode='rgb_array', got None"):
        env.render()
