"""A policy that sees and acts in the frame of an object does the same wherever the object lies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from flowchunk.datasets.windows import Windows
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.evaluation.open_loop_baselines import mean_chunks
from flowchunk.policy.normalizer import Normalizer, Scaling
from flowchunk.policy.planar_frame import (
    FRAME,
    PlanarFrame,
    frame_features,
    rotated,
)
from flowchunk.policy.policy_config import PolicyConfig
from flowchunk.policy.relative_actions import encoded_chunks, find_coordinates

OBSERVATION = ObservationSpec(
    {
        "scene": ObservationField(
            (7,), ("hand_x", "hand_y", "width", "box_x", "box_y", "box_angle", "hand_angle"), wraps=(5, 6)
        ),
        "force": ObservationField((2,), ("left", "right")),
    }
)
ACTION = ActionSpec(tuple(ActionDimension(name, "m", "world") for name in ("grip", "x", "y")), 10.0)
OPTIONS: Mapping[str, Any] = {
    "origin": ["scene.box_x", "scene.box_y"],
    "angle": "scene.box_angle",
    "points": [["scene.hand_x", "scene.hand_y"]],
    "angles": ["scene.hand_angle"],
    "landmarks": {"goal": [0.5, -0.3, 0.7]},
    "actions": [["x", "y"]],
    "fine": [0.1, 0.5],
}
RELATIVE_TO = [None, "scene.hand_x", "scene.hand_y"]
STEPS, HORIZON = 3, 4
POSES = st.tuples(st.floats(-3, 3), st.floats(-3, 3), st.floats(-10, 10))


def make_frame(options: Mapping[str, Any] = OPTIONS, *, relative: bool = False, steps: int = STEPS) -> PlanarFrame:
    return PlanarFrame(options, OBSERVATION, ACTION, relative=[False, relative, relative], observation_steps=steps)


def make_scene(rows: int, *, steps: int = STEPS, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "scene": torch.randn(rows, steps, 7, generator=generator),
        "force": torch.randn(rows, steps, 2, generator=generator),
    }


def moved(points: torch.Tensor, pose: tuple[float, float, float]) -> torch.Tensor:
    """Points (…, 2) after the plane has been turned and shifted."""
    x, y, angle = pose
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return points @ turn + torch.tensor([x, y])


def moved_scene(observation: Mapping[str, torch.Tensor], pose: tuple[float, float, float]) -> dict[str, torch.Tensor]:
    scene = observation["scene"].clone()
    scene[..., 0:2], scene[..., 3:5] = moved(scene[..., 0:2], pose), moved(scene[..., 3:5], pose)
    scene[..., 5:7] += pose[2]
    return {**observation, "scene": scene}


def moved_landmarks(pose: tuple[float, float, float]) -> dict[str, list[float]]:
    x, y, angle = OPTIONS["landmarks"]["goal"]
    place = moved(torch.tensor([x, y]), pose)
    return {"goal": [*place.tolist(), angle + pose[2]]}


def make_windows(frames: int = 60) -> Windows:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.arange(frames)
    scene = {key: rows[:, 0] for key, rows in make_scene(frames, steps=1).items()}
    actions = torch.randn(frames, 3, generator=generator)
    return Windows(scene, actions, numbers, numbers * 0, numbers * 0 + frames - 1, STEPS, HORIZON)


def make_policy(windows: Windows, *, relative: bool = True, **options: Any) -> ChunkPolicy:
    config = PolicyConfig(
        network_options={"width": 16, "blocks": 1},
        observation_steps=STEPS,
        horizon=HORIZON,
        n_action_steps=2,
        prefix_max=2,
        relative_to=RELATIVE_TO if relative else None,
        frame={**OPTIONS, **options},
    )
    coordinates = find_coordinates(config, OBSERVATION, ACTION)
    assert coordinates.frame is not None
    wraps = {key: field.wraps for key, field in OBSERVATION.fields.items()}
    scalings = {
        key: Scaling.fit("min_max", [rows.numpy()], identity=wraps[key]) for key, rows in windows.observations.items()
    }
    scalings[FRAME] = Scaling.fit("gaussian", frame_features(windows, coordinates.frame))
    scalings["action"] = Scaling.fit("gaussian", encoded_chunks(windows, coordinates))
    policy = ChunkPolicy(config, OBSERVATION, ACTION, Normalizer(scalings))
    torch.manual_seed(1)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return policy.eval()


def as_arrays(observation: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in observation.items()}


def test_features_are_what_stands_where_in_the_frame() -> None:
    scene = torch.zeros(1, 2, 7)
    scene[0, 0] = torch.tensor([1.0, 2.0, 0.2, 4.0, 6.0, 0.4 + math.pi / 2, 3.0])
    scene[0, 1] = torch.tensor([2.0, 4.0, 0.3, 5.0, 6.0, 0.5 + math.pi / 2, 3.5])
    observation = {"scene": scene, "force": torch.ones(1, 2, 2)}
    options = {**OPTIONS, "landmarks": {"goal": [5.0, 7.0, 0.5]}}
    frame = PlanarFrame(options, OBSERVATION, ACTION, relative=[False] * 3, observation_steps=2)
    found = frame.features(observation)
    angle = 0.5 + math.pi / 2

    def turned(x: float, y: float) -> list[float]:
        return [math.cos(angle) * x + math.sin(angle) * y, -math.sin(angle) * x + math.cos(angle) * y]

    hand, goal = 3.5 - angle, -math.pi / 2
    expected = [*turned(-3, -2), *turned(0, 1)]  # hand and goal seen from the box
    expected += [math.sin(hand), math.sin(goal)]
    expected += [*turned(-1, 0), *turned(-1, -2), -0.1, -0.5]  # where box and hand came from, and their angles before
    expected += [math.cos(hand), math.cos(goal), 0.2, 0.3]  # and the width in both steps
    torch.testing.assert_close(found, torch.tensor([expected]), atol=1e-5, rtol=1e-5)
    assert found.shape == (1, frame.size)
    assert frame.keys == ["scene"]


def test_angles_that_are_not_in_the_plane_stay_as_cosine_and_sine() -> None:
    observation, frame = make_scene(1), make_frame({**OPTIONS, "angles": []})
    others = observation["scene"][0, :, 6]
    expected = torch.cat([observation["scene"][0, :, 2], others.cos(), others.sin()])
    torch.testing.assert_close(frame.features(observation)[0, -3 * STEPS :], expected)
    assert frame.features(observation).shape == (1, frame.size)


@settings(deadline=None, max_examples=30)
@given(pose=POSES)
def test_features_do_not_depend_on_where_the_scene_is(pose: tuple[float, float, float]) -> None:
    observation = make_scene(5)
    there = make_frame({**OPTIONS, "landmarks": moved_landmarks(pose)}).features(moved_scene(observation, pose))
    torch.testing.assert_close(there, make_frame().features(observation), atol=2e-4, rtol=1e-3)


def test_features_are_continuous_where_angles_wrap() -> None:
    observation = make_scene(1)
    observation["scene"][..., 5] = torch.tensor([math.pi - 0.01, math.pi - 0.001, -math.pi + 0.01])
    unwrapped = {**observation, "scene": observation["scene"].clone()}
    unwrapped["scene"][:, 2, 5] += 2 * math.pi
    torch.testing.assert_close(make_frame().features(observation), make_frame().features(unwrapped), atol=1e-4, rtol=0)


@settings(deadline=None, max_examples=30)
@given(pose=POSES, relative=st.booleans())
def test_actions_in_the_frame_do_not_depend_on_where_the_scene_is(
    pose: tuple[float, float, float], relative: bool
) -> None:
    observation, frame = make_scene(5), make_frame(relative=relative)
    actions = torch.randn(5, 6, 3, generator=torch.Generator().manual_seed(2))
    elsewhere = actions.clone()
    elsewhere[..., 1:] = moved(actions[..., 1:], (0.0, 0.0, pose[2]) if relative else pose)
    inside = frame.into(actions, observation)
    torch.testing.assert_close(frame.into(elsewhere, moved_scene(observation, pose)), inside, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(frame.out_of(inside, observation), actions, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(inside[..., 0], actions[..., 0])  # no place
    assert not torch.allclose(inside, actions)


@pytest.mark.parametrize("relative", [True, False])
def test_a_policy_does_the_same_wherever_the_scene_is(relative: bool) -> None:
    pose = (1.0, -2.0, 2.5)
    policy, observation = make_policy(make_windows(), relative=relative), make_scene(4, seed=3)
    here = torch.from_numpy(policy.predict_chunk(as_arrays(observation), nfe=3, seed=7))
    there = policy.with_landmarks(moved_landmarks(pose)).predict_chunk(
        as_arrays(moved_scene(observation, pose)), nfe=3, seed=7
    )
    expected = here.clone()
    expected[..., 1:] = moved(here[..., 1:], pose)
    torch.testing.assert_close(torch.from_numpy(there), expected, atol=1e-4, rtol=1e-4)
    unmoved = policy.predict_chunk(as_arrays(moved_scene(observation, pose)), nfe=3, seed=7)
    assert not np.allclose(unmoved, expected.numpy(), atol=1e-2), "the goal does not matter"


def test_other_values_still_count_and_a_prefix_is_kept() -> None:
    policy, observation = make_policy(make_windows()), as_arrays(make_scene(2))
    prefix = np.random.default_rng(0).normal(size=(2, 2, 3)).astype(np.float32)
    chunk = policy.predict_chunk(observation, seed=0, prefix=prefix)
    np.testing.assert_array_equal(chunk[:, :2], prefix)
    for key, index in (("force", 0), ("scene", 2)):
        changed = {name: value.copy() for name, value in observation.items()}
        changed[key][..., index] += 1
        assert not np.allclose(policy.predict_chunk(changed, seed=0, prefix=prefix), chunk, atol=1e-4)


def test_what_the_network_sees_is_normalized() -> None:
    windows = make_windows(400)
    policy = make_policy(windows)
    batch = windows.batch(torch.arange(len(windows)))
    observation = {key: batch[f"observation.{key}"] for key in OBSERVATION.fields}
    assert policy.frame is not None
    seen = policy.encode(observation)[:, -policy.frame.condition_size :][:, : policy.frame.size]
    torch.testing.assert_close(seen.mean(0), torch.zeros(policy.frame.size), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.std(0), torch.ones(policy.frame.size), atol=1e-2, rtol=0)
    inner = policy.model.normalize(policy.coordinates.encode(batch["action"], observation))
    torch.testing.assert_close(inner.std(0), torch.ones(HORIZON, 3), atol=1e-2, rtol=0)


def test_what_is_around_zero_is_magnified() -> None:
    windows = make_windows(400)
    policy = make_policy(windows)
    batch = windows.batch(torch.arange(5))
    observation = {key: batch[f"observation.{key}"] for key in OBSERVATION.fields}
    assert policy.frame is not None
    features = policy.frame.features(observation)
    seen = policy.frame.encode(observation, policy.normalizer)
    scale = torch.as_tensor(policy.normalizer.scalings[FRAME].scale, dtype=torch.float32)
    near = features[:, :18] * scale[:18]  # places, sines and motions, but no cosine and no width
    torch.testing.assert_close(
        seen[:, policy.frame.size :], torch.cat([(near / 0.1).tanh(), (near / 0.5).tanh()], dim=1)
    )
    assert seen.shape[1] == policy.frame.condition_size == policy.frame.size + 2 * 18


def test_places_are_not_rounded_under_autocast() -> None:
    observation = {key: 500 * value for key, value in make_scene(4).items()}
    exact = make_frame().features(observation)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(make_frame().features(observation), exact)


def test_the_mean_chunk_is_the_mean_in_the_frame() -> None:
    windows = make_windows()
    policy = make_policy(windows)
    chunks = mean_chunks(policy, windows, torch.arange(3), windows)
    batch = windows.batch(torch.arange(len(windows)))
    observation = {key: batch[f"observation.{key}"] for key in OBSERVATION.fields}
    mean = policy.coordinates.encode(batch["action"], observation).mean(0)
    few = {key: value[:3] for key, value in observation.items()}
    torch.testing.assert_close(policy.coordinates.encode(chunks, few), mean.expand(3, -1, -1), atol=1e-5, rtol=1e-4)


def test_a_saved_policy_acts_the_same(tmp_path: Path) -> None:
    policy = make_policy(make_windows()).with_landmarks({"goal": [1.0, 2.0, 3.0]})
    policy.save(tmp_path / "policy")
    loaded, observation = ChunkPolicy.load(tmp_path / "policy"), as_arrays(make_scene(2))
    np.testing.assert_array_equal(policy.predict_chunk(observation, seed=0), loaded.predict_chunk(observation, seed=0))


def test_landmarks_that_are_elsewhere_change_no_other_policy() -> None:
    policy, observation = make_policy(make_windows()), as_arrays(make_scene(2))
    before = policy.predict_chunk(observation, seed=0)
    other = policy.with_landmarks({"goal": [9.0, 9.0, 0.0]})
    assert not np.allclose(other.predict_chunk(observation, seed=0), before)
    np.testing.assert_array_equal(policy.predict_chunk(observation, seed=0), before)
    with pytest.raises(ConfigurationError, match="has no landmark gaol; it has goal"):
        policy.with_landmarks({"gaol": [0.0, 0.0, 0.0]})
    without = replace(policy.config, frame=None)
    with pytest.raises(ConfigurationError, match="has no landmark goal; it has none"):
        policy.with_options(frame=None).with_landmarks({"goal": [0.0, 0.0, 0.0]})
    assert without.frame is None


def test_vectors_turn_counter_clockwise() -> None:
    turned = rotated(torch.tensor([[[1.0, 0.0]]]), torch.tensor([math.pi / 2]))
    torch.testing.assert_close(turned, torch.tensor([[[0.0, 1.0]]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"orgin": ["scene.box_x", "scene.box_y"]}, "policy.frame has no orgin; it has origin, angle"),
        ({"origin": None}, "policy.frame needs origin, observed values of an object"),
        ({"angle": None}, "policy.frame needs angle"),
        (
            {"origin": "scene.box_x"},
            r"policy.frame.origin: expected observed values \[KEY.X, KEY.Y\], got 'scene.box_x'",
        ),
        ({"points": [["scene.hand_x"]]}, r"policy.frame.points: expected observed values .* got \['scene.hand_x'\]"),
        ({"angle": "scene.box_angel"}, "policy.frame: expected an observed value as KEY.NAME.*scene.box_angle"),
        ({"landmarks": {"goal": [1.0, 2.0]}}, r"landmarks.goal: expected \[x, y, angle\], three finite numbers, got"),
        ({"landmarks": {"goal": ["a", 0, 0]}}, "landmarks.goal: expected .x, y, angle., three finite numbers"),
        ({"landmarks": {"goal": [math.nan, 0, 0]}}, "landmarks.goal: expected .x, y, angle., three finite numbers"),
        ({"hindsight": ["gaol"]}, "the policy's frame has no landmark gaol; it has goal"),
        ({"actions": []}, r"policy.frame.actions: expected pairs of action dimensions, such as \[\[grip, x\]\]"),
        ({"actions": [["x", "z"]]}, "policy.frame.actions: there is no 'z' among grip, x, y"),
        ({"fine": [0.1, 0]}, r"policy.frame.fine: expected widths above 0, such as \[0.1, 0.4\], got \[0.1, 0\]"),
        ({"fine": 0.1}, "policy.frame.fine: expected widths above 0"),
        ({"fine": ["a"]}, "policy.frame.fine: expected widths above 0"),
        ({"actions": ["x", "y"]}, "policy.frame.actions: expected two names of action dimensions, got 'x'"),
        ({"actions": [["grip", "x"]]}, "only one is relative to an observed value"),
    ],
)
def test_options_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_frame({**OPTIONS, **change}, relative=True)
