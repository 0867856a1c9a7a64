"""PickPlace's observations for vision policies: two cameras and proprioception, without privileged information."""

from collections.abc import Iterator

import mujoco
import numpy as np
import pytest

from flowchunk.datasets.errors import SimulationError
from flowchunk.datasets.specs import ObservationSpec
from flowchunk.envs import rendering
from flowchunk.envs.tasks.pick_place import CAMERAS, JOINTS, PickPlace
from flowchunk.envs.tasks.pick_place_expert import PickPlaceExpert


@pytest.fixture(scope="module")
def with_images() -> Iterator[PickPlace]:
    try:
        env = PickPlace(observation="image")
    except SimulationError as error:
        pytest.skip(f"rendering is not possible here: {error}")
    yield env
    env.close()


def hold(env: PickPlace, opening: float = 0.07) -> np.ndarray:
    """The action that keeps the arm in place."""
    return np.append(env.joint_targets(), opening)


def is_yellow(image: np.ndarray) -> np.ndarray:
    """The cube's pixels: (height, width), bool."""
    red, green, blue = np.moveaxis(image.astype(int), -1, 0)
    return np.asarray((red > 110) & (red > green + 15) & (green > blue + 50))


def test_observed_values_do_not_reveal_the_cubes_pose(with_images: PickPlace) -> None:
    spec = with_images.observation_spec
    assert {key: field.camera for key, field in spec.images.items()} == {
        "front_image": "front",
        "wrist_image": "wrist",
    }
    (proprioception,) = spec.values.values()
    assert not any("cube" in name for name in proprioception.names)
    assert ObservationSpec.from_json(spec.to_json()) == spec
    first, second = (
        with_images.reset(options={"cube_pose": [x, 0.0, 0.3]})[0]["proprioception"].copy() for x in (0.16, 0.24)
    )
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_proprioception_holds_the_named_quantities(with_images: PickPlace) -> None:
    with_images.reset(seed=3)
    observation, *_ = with_images.step(hold(with_images, opening=0.03) + 0.05)
    names = with_images.observation_spec.fields["proprioception"].names
    named = dict(zip(names, observation["proprioception"], strict=True))
    assert [named[name] for name in JOINTS] == pytest.approx(with_images.joint_positions(), abs=1e-6)
    assert named["gripper_opening"] == pytest.approx(with_images.gripper_opening(), abs=1e-6)
    position, rotation = with_images.end_effector_position(), with_images.end_effector_rotation()
    assert [named[f"end_effector_{axis}"] for axis in "xyz"] == pytest.approx(position, abs=1e-6)
    for number, axis in enumerate("xy"):
        column = [named[f"end_effector_{axis}_axis_{component}"] for component in "xyz"]
        assert column == pytest.approx(rotation[:, number], abs=1e-6)


def test_rendering_observations_does_not_change_the_simulation(with_images: PickPlace) -> None:
    without_images = PickPlace()
    for env in (with_images, without_images):
        env.reset(seed=4)
        expert = PickPlaceExpert(np.random.default_rng(4))
        expert.reset(env)
        while not env.step(expert.act(env))[2]:
            pass
    np.testing.assert_array_equal(with_images.data.qpos, without_images.data.qpos)


def test_both_cameras_show_the_cube_throughout_the_episode(with_images: PickPlace) -> None:
    for seed in range(3):
        observation, _ = with_images.reset(seed=seed)
        expert = PickPlaceExpert(np.random.default_rng(seed))
        expert.reset(with_images)
        grasped = is_over = False
        while not is_over:
            for camera in CAMERAS:
                yellow = is_yellow(observation[f"{camera}_image"])
                assert yellow.sum() >= 10
                (where,) = rendering.project_to_pixels(
                    with_images.model,
                    with_images.data,
                    with_images.cube_position()[None],
                    camera=camera,
                    height=96,
                    width=96,
                )
                middle = np.argwhere(yellow).mean(axis=0)[::-1] + 0.5
                assert np.abs(middle - where).max() < 0.2 * np.sqrt(yellow.sum()) + 5
            if with_images.is_grasped():
                grasped = True
                assert is_yellow(observation["wrist_image"]).sum() > 500
            observation, _, is_over, _, _ = with_images.step(expert.act(with_images))
        assert grasped


def test_the_front_camera_shows_both_bins(with_images: PickPlace) -> None:
    red, green, blue = np.moveaxis(with_images.reset(seed=0)[0]["front_image"].astype(int), -1, 0)
    teal, coral = (green - red > 30) & (blue - red > 30), (red - green > 60) & (red - blue > 60)
    assert teal[:, 48:].sum() > 200  # the camera faces the robot
    assert coral[:, :48].sum() > 200


def test_the_wrist_camera_follows_the_hand_without_delay(with_images: PickPlace) -> None:
    with_images.reset(seed=0)
    for action in (hold(with_images), hold(with_images) + 0.2):
        with_images.step(action)
        now = mujoco.MjData(with_images.model)
        now.qpos[:] = with_images.data.qpos
        mujoco.mj_forward(with_images.model, now)
        np.testing.assert_allclose(with_images.data.camera("wrist").xpos, now.camera("wrist").xpos, atol=1e-12)


def test_observed_images_do_not_depend_on_the_render_size() -> None:
    env = PickPlace(observation="image", render_mode="rgb_array", render_size=(120, 160))
    observation, _ = env.reset(seed=0)
    assert env.render().shape == (120, 160, 3)
    again, _ = env.reset(seed=0)
    for key, value in observation.items():
        np.testing.assert_array_equal(again[key], value)
    env.close()
