"""Which time steps of an episode are kept."""

from __future__ import annotations

import numpy as np
import pytest

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.idle_frames import active_frames, delta_dimensions
from flowchunk.datasets.specs import ActionDimension, ActionSpec, Reference

ABSOLUTE, DELTA = np.array([False]), np.array([True])


def kept(values: list[float], is_delta: np.ndarray = ABSOLUTE, tolerance: float = 0.5) -> list[int]:
    actions = np.array(values, np.float32)[:, None]
    return list(range(len(values)))[active_frames(actions, np.array([tolerance]), is_delta)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0, 0, 1, 2, 2, 2, 2], [2, 3, 4, 5]),  # one idle time step at each end
        ([0, 1, 1, 1, 2], [0, 1, 2, 3, 4]),  # a pause between motions stays
        ([0, 0.5, 1, 1.5], [0]),  # no change is above the tolerance
        ([0, 0, 0, 1], [2, 3]),
        ([0, -1, -1, -1], [0, 1, 2]),
        ([3], [0]),
        ([3, 3, 3], [0]),
    ],
)
def test_absolute_actions(values: list[float], expected: list[int]) -> None:
    assert kept(values) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0, 1, 1, 1, 0, 0], [1, 2, 3, 4, 5]),  # a constant delta is a motion
        ([-1, 0, 0, 0], [0, 1]),  # the first time step may be one, too
        ([1, 1, 1], [0, 1, 2]),
        ([0, 0.5, 0], [0]),
    ],
)
def test_delta_actions(values: list[float], expected: list[int]) -> None:
    assert kept(values, DELTA) == expected


def test_any_dimension_that_moves_counts() -> None:
    actions = np.zeros((6, 2))
    actions[2:, 0], actions[4:, 1] = 1, 5
    assert active_frames(actions, np.array([0.5, 9.0]), np.array([False, False])) == slice(1, 4)
    assert active_frames(actions, np.array([9.0, 0.5]), np.array([False, False])) == slice(3, 6)
    assert active_frames(actions, np.array([0.5, 0.5]), np.array([False, False])) == slice(1, 6)


def spec(reference: Reference, rotation: str | None) -> ActionSpec:
    return ActionSpec(
        (ActionDimension("x", "m", "world"), ActionDimension("r", "1", "world", reference, rotation)), 10.0
    )


def test_delta_dimensions() -> None:
    assert delta_dimensions(spec("delta", None)).tolist() == [False, True]
    assert delta_dimensions(spec("delta", "axis_angle")).tolist() == [False, True]
    assert delta_dimensions(spec("absolute", "rotation_6d")).tolist() == [False, False]
    with pytest.raises(
        ConfigurationError, match=r"r is part of a delta rotation as rotation_6d, .*rotation=axis_angle"
    ):
        delta_dimensions(spec("delta", "rotation_6d"))
