"""Rotations of actions in another representation: values, names, inverses, and what cannot be converted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.rotation_change import RotationChange
from flowchunk.datasets.rotations import convert_rotation, representation_size
from flowchunk.datasets.specs import ActionDimension, ActionSpec, Reference

REPRESENTATIONS = ("axis_angle", "quaternion_xyzw", "quaternion_wxyz", "rotation_6d", "euler_xyz", "matrix")
SEEDS = st.integers(0, 10_000)


def spec_of(*names: str, rotation: str, unit: str = "rad", reference: Reference = "absolute") -> ActionSpec:
    """A position, a rotation of these names, and a gripper."""
    return ActionSpec(
        (
            ActionDimension("x", "m", "world", low=0.0, high=1.0),
            *(ActionDimension(name, unit, "hand", reference, rotation, -4.0, 4.0) for name in names),
            ActionDimension("grip", "m", "gripper"),
        ),
        20.0,
    )


def actions_of(rotation: str, seed: int, count: int = 1) -> np.ndarray:
    """(5, D) a position, rotations and a gripper."""
    random = np.random.default_rng(seed)
    parts: list[np.ndarray] = []
    for _ in range(count):
        axis_angle = Rotation.random(5, random_state=seed + len(parts)).as_rotvec()
        parts.append(convert_rotation(axis_angle, "axis_angle", rotation).reshape(5, -1))
    return np.concatenate([random.normal(size=(5, 1)), *parts, random.normal(size=(5, 1))], axis=1)


def test_three_numbers_become_six() -> None:
    spec = spec_of("rx", "ry", "rz", rotation="axis_angle")
    change = RotationChange.find(spec, "rotation_6d")
    changed = change.change_spec(spec)
    names = [f"rotation_6d_{index}" for index in range(6)]
    assert changed.names == ("x", *names, "grip")
    assert (changed.dimensions[0], changed.dimensions[-1]) == (spec.dimensions[0], spec.dimensions[-1])
    expected = [ActionDimension(name, "1", "hand", "absolute", "rotation_6d") for name in names]
    assert list(changed.dimensions[1:-1]) == expected
    assert changed.control_hz == 20
    quarter = np.array([[0.5, 0, 0, np.pi / 2, 0.1]], np.float32)  # about z: x becomes y, and y becomes -x
    np.testing.assert_allclose(change.change(quarter), [[0.5, 0, 1, 0, -1, 0, 0, 0.1]], atol=1e-7)


@pytest.mark.parametrize("source", REPRESENTATIONS)
@pytest.mark.parametrize("target", REPRESENTATIONS)
@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_every_change_has_an_inverse(source: str, target: str, seed: int) -> None:
    names = [f"left_{source}_{index}" for index in range(representation_size(source))]
    spec, actions = spec_of(*names, rotation=source), actions_of(source, seed)
    there = RotationChange.find(spec, target)
    changed = there.change_spec(spec)
    assert changed.size == representation_size(target) + 2
    values = there.change(actions)
    assert values.shape == (5, changed.size)
    np.testing.assert_allclose(values[:, 1:-1], actions_of(target, seed)[:, 1:-1], atol=1e-6)
    back = RotationChange.find(changed, source)
    assert back.change_spec(changed).names == spec.names
    np.testing.assert_allclose(back.change(values), actions, atol=1e-6)


def test_units_and_references_follow() -> None:
    spec = spec_of("a", "b", "c", "d", rotation="quaternion_wxyz", unit="1", reference="delta")
    changed = RotationChange.find(spec, "euler_xyz").change_spec(spec)
    described = [(one.name, one.unit, one.reference, one.rotation) for one in changed.dimensions[1:-1]]
    assert described == [(f"euler_xyz_{index}", "rad", "delta", "euler_xyz") for index in range(3)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("left_rx", "left_ry", "left_rz", "right_rx", "right_ry", "right_rz"), ("left_", "right_")),
        (("left.rx", "left.ry", "left.rz", "rx", "ry", "rz"), ("left.", "")),
        (("rx", "ry", "rz", "sx", "sy", "sz"), ("1_", "2_")),
        (("action_1", "action_2", "action_3", "action_4", "action_5", "action_6"), ("action_1_", "action_2_")),
        (("l_x", "m_y", "n_z", "right_rx", "right_ry", "right_rz"), ("", "right_")),
    ],
)
def test_names_of_two_rotations_differ(names: tuple[str, ...], expected: tuple[str, str]) -> None:
    spec = spec_of(*names, rotation="axis_angle")
    change = RotationChange.find(spec, "quaternion_xyzw")
    assert change.change_spec(spec).names[1:-1] == tuple(
        f"{prefix}quaternion_xyzw_{index}" for prefix in expected for index in range(4)
    )
    actions = actions_of("axis_angle", 3, count=2)
    np.testing.assert_allclose(change.change(actions), actions_of("quaternion_xyzw", 3, count=2), atol=1e-7)


def test_rotations_that_are_in_the_target_stay() -> None:
    spec = spec_of(*(f"r{index}" for index in range(6)), rotation="rotation_6d")
    change, actions = RotationChange.find(spec, "rotation_6d"), actions_of("rotation_6d", 0)
    assert change.change_spec(spec) == spec
    np.testing.assert_array_equal(change.change(actions), actions)
    mixed = ActionSpec((*spec.dimensions[:-1], *spec_of("a", "b", "c", rotation="axis_angle").dimensions[1:]), 20.0)
    changed = RotationChange.find(mixed, "rotation_6d").change_spec(mixed)
    assert changed.names == (*spec.names[:-1], *(f"rotation_6d_{index}" for index in range(6)), "grip")


def test_a_name_that_is_taken_is_not_given_again() -> None:
    spec = spec_of(*(f"rotation_6d_{index}" for index in range(6)), rotation="rotation_6d")
    both = ActionSpec((*spec.dimensions[:-1], *spec_of("a", "b", "c", rotation="axis_angle").dimensions[1:]), 20.0)
    changed = RotationChange.find(both, "rotation_6d").change_spec(both)
    assert len(set(changed.names)) == changed.size == 14


@pytest.mark.parametrize(
    ("spec", "target", "message"),
    [
        (spec_of("rx", "ry", "rz", rotation="axis_angle"), "rotation_9d", "'rotation_9d' is not a representation"),
        (spec_of("rx", "ry", "rz", rotation="twist"), "rotation_6d", "'twist' is not a representation"),
        (
            spec_of("rx", "ry", rotation="axis_angle"),
            "rotation_6d",
            "rx, ry are 2 dimensions in a row.* takes 3 for each",
        ),
        (
            spec_of("a", "b", "c", rotation="euler_xyz", unit="deg"),
            "rotation_6d",
            "must be in radians, but is in degrees",
        ),
        (
            spec_of(rotation=""),
            "rotation_6d",
            r"no action dimension is part of a rotation.*dataset.rotations.axis_angle",
        ),
    ],
)
def test_what_cannot_be_converted(spec: ActionSpec, target: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        RotationChange.find(spec, target)


def test_dimensions_that_are_described_differently() -> None:
    spec = spec_of("a", "b", "c", rotation="axis_angle")
    other = spec_of("a", "b", "c", rotation="axis_angle", reference="delta")
    mixed = ActionSpec((*spec.dimensions[:2], *other.dimensions[2:]), 20.0)
    with pytest.raises(
        ConfigurationError, match="a, b, c: the dimensions of a rotation differ in their reference or frame"
    ):
        RotationChange.find(mixed, "rotation_6d")
