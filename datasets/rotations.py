"""Representations of rotations, and the one that networks learn best: six numbers, the matrix's first two columns.

Six numbers are continuous over all of SO(3), unlike any representation with three or four numbers, which makes them easier
for a network to learn (Zhou et al. 2019, arXiv:1812.07035, section 4).
"""

from __future__ import annotations

import re
import warnings
from math import prod

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from flowchunk.datasets.errors import ConfigurationError

REPRESENTATIONS = ("axis_angle", "quaternion_xyzw", "quaternion_wxyz", "rotation_6d", "euler_xyz", "matrix")

_SHORTEST_COLUMN = 1e-6
_UNIT_TOLERANCE = 0.1  # numbers that are no rotation at all are farther off, float16 and interpolation less
_SHAPES = {"axis_angle": (3,), "quaternion_xyzw": (4,), "quaternion_wxyz": (4,), "rotation_6d": (6,), "matrix": (3, 3)}
_EULER = re.compile(r"euler_([xyz]{3}|[XYZ]{3})")


def convert_rotation(values: NDArray[np.floating], source: str, target: str) -> NDArray[np.float64]:
    """The same rotations in another representation.

    source, target: ``"axis_angle"`` (..., 3), the axis times the angle in radians, which is at most π; ``"quaternion_xyzw"``
    and ``"quaternion_wxyz"`` (..., 4), the scalar w last or first, and never negative in the result; ``"rotation_6d"``
    (..., 6); ``"matrix"`` (..., 3, 3); ``"euler_xyz"`` (..., 3) in radians, or three other axes of which no two that follow
    one another are the same. As in scipy, lower-case axes are fixed (extrinsic), and upper-case axes, ``"euler_ZYX"``, move
    with the body (intrinsic). If the second angle makes the first and the third axis parallel, the third angle is 0.
    values: (..., n) of any leading shape. Returns float64.
    Raises ConfigurationError for an unknown representation, another shape, and for values that are no rotation: not finite, a
    quaternion or a matrix that is not of unit length or orthogonal, up to 0.1, or two columns that span no plane.
    """
    shape = _shape_of(source)
    _shape_of(target)
    given = np.asarray(values, dtype=np.float64)
    if given.shape[given.ndim - len(shape) :] != shape or given.ndim < len(shape):
        raise ConfigurationError(
            f"{source} needs values of shape (..., {str(shape)[1:-1].rstrip(',')}), but got {given.shape}"
        )
    if not np.isfinite(given).all():
        raise ConfigurationError(f"a rotation as {source} is NaN or infinity; repair or drop it")
    leading = given.shape[: given.ndim - len(shape)]
    rotations = _read(given.reshape(prod(leading), *shape), source)
    return _write(rotations, target).reshape(*leading, *_shape_of(target))


def representation_size(representation: str) -> int:
    """How many numbers a representation takes. Raises ConfigurationError for an unknown one."""
    return prod(_shape_of(representation))


def rotation_6d_from_matrix(matrix: NDArray[np.floating]) -> NDArray[np.float64]:
    """The first two columns of rotation matrices.

    matrix: (..., 3, 3). Returns (..., 6): the body's x axis, then its y axis, both in the reference frame.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    return np.concatenate([matrix[..., :, 0], matrix[..., :, 1]], axis=-1)


def matrix_from_rotation_6d(rotation_6d: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rotation matrices from six numbers each, by Gram-Schmidt (Zhou et al. 2019, equation 15).

    rotation_6d: (..., 6), two columns as a network predicts them, neither necessarily of unit length nor orthogonal.
    Returns (..., 3, 3). Raises ConfigurationError if two columns span no plane (zero or parallel), or are not finite.
    """
    columns = np.asarray(rotation_6d, dtype=np.float64)
    x_axis, second = _unit(columns[..., :3]), _unit(columns[..., 3:])
    y_axis = _unit(second - np.sum(x_axis * second, axis=-1, keepdims=True) * x_axis)
    return np.stack([x_axis, y_axis, np.cross(x_axis, y_axis)], axis=-1)


def _shape_of(representation: str) -> tuple[int, ...]:
    match = _EULER.fullmatch(representation)
    if match and all(axis != following for axis, following in zip(match[1], match[1][1:], strict=False)):
        return (3,)
    if representation not in _SHAPES:
        raise ConfigurationError(
            f"{representation!r} is not a representation of rotations; use one of {', '.join(REPRESENTATIONS)}, or euler "
            "with other axes"
        )
    return _SHAPES[representation]


def _read(values: NDArray[np.float64], source: str) -> Rotation:
    """The rotations that values (N, …) represent."""
    if source == "axis_angle":
        return Rotation.from_rotvec(values)
    if source == "rotation_6d":
        return Rotation.from_matrix(matrix_from_rotation_6d(values))
    if source == "matrix":
        _require_near_one(np.einsum("nij,nik->njk", values, values) - np.eye(3) + 1, "the matrix is not orthogonal")
        _require_near_one(np.linalg.det(values), "the matrix mirrors or scales")
        return Rotation.from_matrix(values)
    if match := _EULER.fullmatch(source):
        return Rotation.from_euler(match[1], values)
    _require_near_one(np.linalg.norm(values, axis=-1), "the quaternion is not of length 1")
    return Rotation.from_quat(values if source == "quaternion_xyzw" else np.roll(values, -1, axis=-1))


def _write(rotations: Rotation, target: str) -> NDArray[np.float64]:
    if target == "axis_angle":
        return rotations.as_rotvec()
    if target == "rotation_6d":
        return rotation_6d_from_matrix(rotations.as_matrix())
    if target == "matrix":
        return rotations.as_matrix()
    if match := _EULER.fullmatch(target):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Gimbal lock")  # the angles are still those of the rotation
            return rotations.as_euler(match[1])
    quaternions = rotations.as_quat(canonical=True)
    return quaternions if target == "quaternion_xyzw" else np.roll(quaternions, 1, axis=-1)


def _require_near_one(numbers: NDArray[np.float64], problem: str) -> None:
    if (is_off := np.abs(numbers - 1) > _UNIT_TOLERANCE).any():
        row = int(np.argmax(is_off.reshape(len(numbers), -1).any(axis=1)))
        raise ConfigurationError(
            f"rotation {row} of {len(numbers)} is none: {problem}; check the columns and their order"
        )


def _unit(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.linalg.norm(columns, axis=-1, keepdims=True)
    if not (lengths > _SHORTEST_COLUMN).all() or not np.isfinite(lengths).all():
        raise ConfigurationError(
            "a rotation_6d needs two finite columns that are neither zero nor parallel, but one has a "
            f"column of length {float(lengths.min()):.3g}; use the first two columns of a rotation matrix"
        )
    return columns / lengths
