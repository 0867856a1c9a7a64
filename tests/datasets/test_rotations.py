"""Rotations as six numbers: round trips, single and batched, and invalid input."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.rotations import matrix_from_rotation_6d, rotation_6d_from_matrix

columns = arrays(np.float64, (6,), elements=st.floats(-10, 10))


def span_a_plane(rotation_6d: np.ndarray) -> bool:
    x_axis, second = rotation_6d[:3], rotation_6d[3:]
    lengths = np.linalg.norm(x_axis) * np.linalg.norm(second)
    return bool(lengths > 1e-3 and np.linalg.norm(np.cross(x_axis, second)) > 1e-3 * lengths)


@given(columns)
def test_any_two_columns_give_a_rotation(rotation_6d: np.ndarray) -> None:
    assume(span_a_plane(rotation_6d))
    assume(min(np.linalg.norm(rotation_6d[:3]), np.linalg.norm(rotation_6d[3:])) > 1e-3)
    matrix = matrix_from_rotation_6d(rotation_6d)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(matrix) == pytest.approx(1.0)
    np.testing.assert_allclose(matrix[:, 0], rotation_6d[:3] / np.linalg.norm(rotation_6d[:3]), atol=1e-9)


@given(columns)
def test_round_trip_of_rotations(rotation_6d: np.ndarray) -> None:
    assume(span_a_plane(rotation_6d))
    assume(min(np.linalg.norm(rotation_6d[:3]), np.linalg.norm(rotation_6d[3:])) > 1e-3)
    matrix = matrix_from_rotation_6d(rotation_6d)
    np.testing.assert_allclose(matrix_from_rotation_6d(rotation_6d_from_matrix(matrix)), matrix, atol=1e-9)


def test_first_column_comes_first() -> None:
    matrix = np.arange(9.0).reshape(3, 3)
    np.testing.assert_array_equal(rotation_6d_from_matrix(matrix), [0, 3, 6, 1, 4, 7])


def test_a_batch_equals_single_rotations() -> None:
    batch = np.random.default_rng(0).standard_normal((2, 5, 6))
    matrices = matrix_from_rotation_6d(batch)
    assert matrices.shape == (2, 5, 3, 3)
    np.testing.assert_allclose(matrices[1, 3], matrix_from_rotation_6d(batch[1, 3]))
    assert rotation_6d_from_matrix(matrices).shape == (2, 5, 6)


@pytest.mark.parametrize(
    "rotation_6d",
    [[0, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0], [1, 0, 0, -2, 0, 0], [1, 0, 0, 0, np.nan, 0], [np.inf, 0, 0, 0, 1, 0]],
)
def test_columns_that_define_no_rotation_are_refused(rotation_6d: list[float]) -> None:
    with pytest.raises(
        ConfigurationError, match="rotation_6d needs two finite columns that are neither zero nor parallel"
    ):
        matrix_from_rotation_6d(np.array(rotation_6d))
