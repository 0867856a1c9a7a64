"""Rotations as six numbers: the first column of the rotation matrix, then the second.

This representation is continuous over all of SO(3), unlike any with three or four numbers, which makes it easier for a
network to learn (Zhou et al. 2019, arXiv:1812.07035, section 4).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowchunk.datasets.errors import ConfigurationError

REPRESENTATIONS = {"rotation_6d": 6, "axis_angle": 3, "quaternion_xyzw": 4, "quaternion_wxyz": 4, "euler_xyz": 3}
"""The representations of a rotation, and how many numbers each takes."""
_SHORTEST_COLUMN = 1e-6


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


def _unit(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.linalg.norm(columns, axis=-1, keepdims=True)
    if not (lengths > _SHORTEST_COLUMN).all() or not np.isfinite(lengths).all():
        raise ConfigurationError(
            "a rotation_6d needs two finite columns that are neither zero nor parallel, but one has a "
            f"column of length {float(lengths.min()):.3g}; use the first two columns of a rotation matrix"
        )
    return columns / lengths
