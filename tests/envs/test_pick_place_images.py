"""What PickPlace shows to a policy that sees: two cameras and proprioception, and nothing that it could not know."""

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
def seeing() -> Iterator[PickPlace]:
    try:
        env = PickPlace(observation="image")
    except SimulationError as error:
        pytest.skip(f"nothing can be drawn here: {error}")
    yield env
    env.close()


def hold(env: PickPlace, opening: float = 0.07) -> np.ndarray:
    """The action that stays where the arm is."""
    return np.append(env.joint_targets(), opening)


def is_yellow(image: np.ndarray) -> np.ndarray:
    """Where the cube is: (height, width), bool."""
    red, green, blue = np.moveaxis(image.astype(int), -1, 0)
    return np.asarray((red > 110) & (red > green + 15) & (green > blue + 50))


def test_what_is_seen_does_not_tell_where_the_cube_is(seeing: PickPlace) -> None:
    spec = seeing.observation_spec
    assert {key: field.camera for key, field in spec.images.items()} == {
        "front_image": "front",
        "wrist_image": "wrist",
    }
    (proprioception,) = spec.values.values()
    assert not any("cube" in name for name in proprioception.names)
    assert ObservationSpec.from_json(spec.to_json()) == spec
    first, second = (
        seeing.reset(options={"cube_pose": [x, 0.0, 0.3]})[0]["proprioception"].copy() for x in (0.16, 0.24)
    )
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_proprioception_holds_the_named_quantities(seeing: PickPlace) -> None:
    seeing.reset(seed=3)
    observation, *_ = seeing.step(hold(seeing, opening=0.03) + 0.05)
    names = seeing.observation_spec.fields["proprioception"].names
    named = dict(zip(names, observation["proprioception"], strict=True))
    assert [named[name] for name in JOINTS] == pytest.approx(seeing.joint_positions(), abs=1e-6)
    assert named["gripper_opening"] == pytest.approx(seeing.gripper_opening(), abs=1e-6)
    position, rotation = seeing.end_effector_position(), seeing.end_effector_rotation()
    assert [named[f"end_effector_{axis}"] for axis in "xyz"] == pytest.approx(position, abs=1e-6)
    for number, axis in enumerate("xy"):
        column = [named[f"end_effector_{axis}_axis_{component}"] for component in "xyz"]
        assert column == pytest.approx(rotation[:, number], abs=1e-6)


def test_seeing_changes_nothing_about_what_happens(seeing: PickPlace) -> None:
    blind = PickPlace()
    for env in (seeing, blind):
        env.reset(seed=4)
        expert = PickPlaceExpert(np.random.default_rng(4))
        expert.reset(env)
        while not env.step(expert.act(env))[2]:
            pass
    np.testing.assert_array_equal(seeing.data.qpos, blind.data.qpos)


def test_both_cameras_see_the_cube_where_it_is_all_the_way(seeing: PickPlace) -> None:
    for seed in range(3):
        observation, _ = seeing.reset(seed=seed)
        expert = PickPlaceExpert(np.random.default_rng(seed))
        expert.reset(seeing)
        grasped = is_over = False
        while not is_over:
            for camera in CAMERAS:
                yellow = is_yellow(observation[f"{camera}_image"])
                assert yellow.sum() >= 10
                (where,) = rendering.project_to_pixels(
                    seeing.model, seeing.data, seeing.cube_position()[None], camera=camera, height=96, width=96
                )
                middle = np.argwhere(yellow).mean(axis=0)[::-1] + 0.5
                assert np.abs(middle - where).max() < 0.2 * np.sqrt(yellow.sum()) + 5
            if seeing.is_grasped():
                grasped = True
                assert is_yellow(observation["wrist_image"]).sum() > 500
            observation, _, is_over, _, _ = seeing.step(expert.act(seeing))
        assert grasped


def test_the_front_camera_sees_both_bins(seeing: PickPlace) -> None:
    red, green, blue = np.moveaxis(seeing.reset(seed=0)[0]["front_image"].astype(int), -1, 0)
    teal, coral = (green - red > 30) & (blue - red > 30), (red - green > 60) & (red - blue > 60)
    assert teal[:, 48:].sum() > 200  # the camera looks back at the robot
    assert coral[:, :48].sum() > 200


def test_the_wrist_camera_is_where_the_hand_is_now(seeing: PickPlace) -> None:
    seeing.reset(seed=0)
    for action in (hold(seeing), hold(seeing) + 0.2):
        seeing.step(action)
        now = mujoco.MjData(seeing.model)
        now.qpos[:] = seeing.data.qpos
        mujoco.mj_forward(seeing.model, now)
        np.testing.assert_allclose(seeing.data.camera("wrist").xpos, now.camera("wrist").xpos, atol=1e-12)


def test_what_is_seen_has_its_size_whatever_is_rendered() -> None:
    env = PickPlace(observation="image", render_mode="rgb_array", render_size=(120, 160))
    observation, _ = env.reset(seed=0)
    assert env.render().shape == (120, 160, 3)
    again, _ = env.reset(seed=0)
    for key, value in observation.items():
        np.testing.assert_array_equal(again[key], value)
    env.close()
