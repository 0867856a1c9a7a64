"""Conversions of rotations: inverses of each other, known rotations, conventions, any leading shape, and invalid input."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.rotations import REPRESENTATIONS, convert_rotation

ALL = (*REPRESENTATIONS, "euler_ZYX", "euler_zxz", "euler_XYX")
axis_angles = arrays(np.float64, (5, 3), elements=st.floats(-4, 4))
each_pair = pytest.mark.parametrize(("source", "target"), list(product(ALL, ALL)))

QUARTER = np.pi / 2
ABOUT_Z = {  # a quarter turn about z
    "axis_angle": [0, 0, QUARTER],
    "quaternion_xyzw": [0, 0, np.sqrt(0.5), np.sqrt(0.5)],
    "quaternion_wxyz": [np.sqrt(0.5), 0, 0, np.sqrt(0.5)],
    "rotation_6d": [0, 1, 0, -1, 0, 0],
    "euler_xyz": [0, 0, QUARTER],
    "euler_ZYX": [QUARTER, 0, 0],
    "matrix": [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
}


def angles_between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of rotation matrices (N, 3, 3), in radians."""
    return (Rotation.from_matrix(first) * Rotation.from_matrix(second).inv()).magnitude()


@each_pair
@settings(max_examples=20)
@given(axis_angles)
def test_there_and_back(source: str, target: str, rotations: np.ndarray) -> None:
    expected = Rotation.from_rotvec(rotations).as_matrix()
    values = convert_rotation(expected, "matrix", source)
    back = convert_rotation(convert_rotation(values, source, target), target, "matrix")
    np.testing.assert_allclose(angles_between(back, expected), 0, atol=1e-6)


@pytest.mark.parametrize(("source", "target"), list(product(ABOUT_Z, ABOUT_Z)))
def test_a_known_rotation(source: str, target: str) -> None:
    converted = convert_rotation(np.array(ABOUT_Z[source]), source, target)
    assert converted.dtype == np.float64
    np.testing.assert_allclose(converted, ABOUT_Z[target], atol=1e-12)


def test_lower_case_axes_are_fixed_and_upper_case_axes_move() -> None:
    """Both angles are quarter turns: about x, then about the fixed y, or about the moved one, which is z."""
    about_x, about_y, about_z = (Rotation.from_rotvec(QUARTER * axis).as_matrix() for axis in np.eye(3))
    angles = np.array([QUARTER, QUARTER, 0])
    np.testing.assert_allclose(convert_rotation(angles, "euler_xyz", "matrix"), about_y @ about_x, atol=1e-12)
    np.testing.assert_allclose(convert_rotation(angles, "euler_XYZ", "matrix"), about_x @ about_y, atol=1e-12)
    np.testing.assert_allclose(about_x @ about_y, about_z @ about_x, atol=1e-12)


@given(axis_angles)
def test_the_scalar_of_a_quaternion_is_not_negative(rotations: np.ndarray) -> None:
    last = convert_rotation(rotations, "axis_angle", "quaternion_xyzw")
    assert (last[:, 3] >= 0).all()
    np.testing.assert_array_equal(convert_rotation(rotations, "axis_angle", "quaternion_wxyz"), last[:, [3, 0, 1, 2]])
    np.testing.assert_allclose(convert_rotation(-last, "quaternion_xyzw", "quaternion_xyzw"), last, atol=1e-12)


@given(axis_angles)
def test_the_angle_is_at_most_half_a_turn(rotations: np.ndarray) -> None:
    assert (np.linalg.norm(convert_rotation(rotations, "axis_angle", "axis_angle"), axis=1) <= np.pi + 1e-9).all()


def test_parallel_axes_give_a_third_angle_of_zero() -> None:
    angles = np.array([0.3, QUARTER, 0.4])
    converted = convert_rotation(angles, "euler_xyz", "euler_xyz")
    assert converted[2] == 0
    first, second = (convert_rotation(each, "euler_xyz", "matrix") for each in (angles, converted))
    np.testing.assert_allclose(second, first, atol=1e-6)


@each_pair
def test_any_leading_shape(source: str, target: str) -> None:
    rotations = Rotation.random(6, rng=np.random.default_rng(0)).as_matrix()
    single = convert_rotation(rotations[4], "matrix", source)
    values = convert_rotation(rotations.reshape(2, 3, 3, 3), "matrix", source)
    converted = convert_rotation(values, source, target)
    expected = convert_rotation(single, source, target)
    assert converted.shape == (2, 3, *expected.shape)
    np.testing.assert_allclose(converted[1, 1], expected, atol=1e-9)
    assert convert_rotation(values[:0], source, target).shape == (0, 3, *expected.shape)


def test_what_is_nearly_a_rotation_is_one() -> None:
    quaternion = np.array([0, 0, 0, 1.05])
    np.testing.assert_allclose(convert_rotation(quaternion, "quaternion_xyzw", "matrix"), np.eye(3))
    np.testing.assert_allclose(convert_rotation(np.eye(3) * 1.02, "matrix", "matrix"), np.eye(3), atol=1e-12)


@pytest.mark.parametrize("name", ["euler", "euler_xxy", "euler_xYz", "euler_xyzx", "quaternion", "Matrix"])
def test_unknown_representations(name: str) -> None:
    message = f"'{name}' is not a representation of rotations; use one of axis_angle, quaternion_xyzw"
    for source, target in ((name, "matrix"), ("matrix", name)):
        with pytest.raises(ConfigurationError, match=message):
            convert_rotation(np.eye(3), source, target)


@pytest.mark.parametrize(
    ("source", "shape", "message"),
    [
        ("axis_angle", (2, 4), r"axis_angle needs values of shape \(\.\.\., 3\), but got \(2, 4\)"),
        ("matrix", (2, 3), r"matrix needs values of shape \(\.\.\., 3, 3\), but got \(2, 3\)"),
        ("matrix", (3,), r"but got \(3,\)"),
        ("euler_xyz", (), r"but got \(\)"),
    ],
)
def test_other_shapes(source: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        convert_rotation(np.ones(shape), source, "matrix")


@pytest.mark.parametrize(
    ("source", "values", "message"),
    [
        ("quaternion_xyzw", [0, 0, 0, 0], "rotation 1 of 2 is none: the quaternion is not of length 1"),
        ("quaternion_wxyz", [0.5, 0, 0, 0.5], "the quaternion is not of length 1"),
        ("quaternion_wxyz", [1, 0, 0, 0.9], "the quaternion is not of length 1"),
        ("matrix", np.zeros((3, 3)), "the matrix is not orthogonal"),
        ("matrix", [[1, 0.2, 0], [0, 1, 0], [0, 0, 1]], "the matrix is not orthogonal"),
        ("matrix", np.diag([1, 1, -1]), "the matrix mirrors or scales"),
        ("rotation_6d", [1, 0, 0, 2, 0, 0], "needs two finite columns that are neither zero nor parallel"),
        ("axis_angle", [0, np.nan, 0], "a rotation as axis_angle is NaN or infinity"),
        ("euler_xyz", [0, 0, np.inf], "a rotation as euler_xyz is NaN or infinity"),
    ],
)
def test_what_is_no_rotation(source: str, values: list[float], message: str) -> None:
    good = convert_rotation(np.eye(3), "matrix", source)
    with pytest.raises(ConfigurationError, match=message):
        convert_rotation(np.stack([good, np.array(values)]), source, "axis_angle")
