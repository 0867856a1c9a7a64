"""Absolute, delta and relative actions: exact values, inverses, and what cannot be changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.reference_change import (
    ReferenceChange,
    from_delta,
    from_relative,
    to_delta,
    to_relative,
    wrap_angles,
)
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec, Reference

WRAPS = np.array([False, True])
ANGLES = st.floats(-3.14, 3.14)
EPISODES = st.integers(1, 30).flatmap(lambda length: arrays(np.float64, (length, 2), elements=ANGLES))
TOLERANCE = 1e-12

OBSERVED = ObservationSpec(
    {
        "joints": ObservationField((2,), names=("x", "turn"), units=("m", "rad"), wraps=(1,)),
        "hand": ObservationField((1, 2), names=("g", "h")),
        "image": ObservationField((4, 4, 3), camera="front"),
    }
)
ACTIONS = ActionSpec(
    (
        ActionDimension("x", "m", "world", low=-1.0, high=1.0),
        ActionDimension("turn", "rad", "joint"),
        ActionDimension("grip", "m", "gripper", low=0.0, high=0.1),
    ),
    10.0,
)
OBSERVATIONS = {
    "joints": np.array([[0.5, 3.0], [1.5, -3.0], [2.0, -3.0]], np.float32),
    "hand": np.array([[[0.0, 7.0]], [[0.0, 8.0]], [[0.0, 9.0]]], np.float32),
}
VALUES = np.array([[1.0, -3.0, 10.0], [1.5, 3.0, 10.0], [3.0, 2.5, 12.0]])
TURN = 2 * np.pi - 6


def reference(spec: ActionSpec) -> list[Reference]:
    return [dimension.reference for dimension in spec.dimensions]


def changed(after: list[Any], relative_to: list[str | None] | None = None) -> tuple[ActionSpec, np.ndarray]:
    change = ReferenceChange.find(OBSERVED, ACTIONS, after, relative_to)
    return change.change_spec(ACTIONS), change.change(VALUES, OBSERVATIONS)


# The functions.


@settings(max_examples=60, deadline=None)
@given(arrays(np.float64, (20,), elements=st.floats(-100, 100)))
def test_wrapped_angles_are_the_same_angles(angles: np.ndarray) -> None:
    wrapped = wrap_angles(angles)
    assert (np.abs(wrapped) <= np.pi).all()
    np.testing.assert_allclose(np.exp(1j * wrapped), np.exp(1j * angles), atol=TOLERANCE)
    np.testing.assert_array_equal(wrap_angles(wrapped), wrapped)


def test_ends_of_the_range() -> None:
    np.testing.assert_array_equal(wrap_angles(np.array([np.pi, -np.pi, 1e-30, 0.1])), [np.pi, np.pi, 1e-30, 0.1])


@settings(max_examples=60, deadline=None)
@given(EPISODES, arrays(np.float64, (2,), elements=ANGLES))
def test_deltas_have_an_inverse(actions: np.ndarray, anchor: np.ndarray) -> None:
    deltas = to_delta(actions, anchor, WRAPS)
    assert (np.abs(deltas[:, 1]) <= np.pi).all()
    np.testing.assert_allclose(from_delta(deltas, anchor, WRAPS), actions, atol=TOLERANCE)
    np.testing.assert_allclose(to_delta(from_delta(actions, anchor, WRAPS), anchor, WRAPS), actions, atol=TOLERANCE)


@settings(max_examples=60, deadline=None)
@given(EPISODES, ANGLES)
def test_relative_actions_have_an_inverse(actions: np.ndarray, observed: float) -> None:
    seen = np.cumsum(np.full_like(actions, observed), axis=0)
    relative = to_relative(actions, seen, WRAPS)
    assert (np.abs(relative[:, 1]) <= np.pi).all()
    np.testing.assert_allclose(from_relative(relative, seen, WRAPS), actions, atol=TOLERANCE)
    np.testing.assert_allclose(to_relative(from_relative(actions, seen, WRAPS), seen, WRAPS), actions, atol=TOLERANCE)


def test_deltas_are_differences_from_the_previous_action() -> None:
    actions, anchor = np.array([[1.0, 3.0], [3.0, -3.0], [6.0, -3.0]]), np.array([0.5, 3.0])
    expected = [[0.5, 0.0], [2.0, TURN], [3.0, 0.0]]
    np.testing.assert_allclose(to_delta(actions, anchor, WRAPS), expected, atol=TOLERANCE)


# The change of a data set.


def test_from_absolute_to_delta() -> None:
    """The anchor is what is observed at the first time step; the gripper is not observed, so its first delta is 0."""
    spec, values = changed(["delta"] * 3)
    assert reference(spec) == ["delta"] * 3
    assert all((one.low, one.high) == (None, None) for one in spec.dimensions)
    expected = [[0.5, TURN, 0.0], [0.5, -TURN, 0.0], [1.5, -0.5, 2.0]]
    np.testing.assert_allclose(values, expected, atol=TOLERANCE)


def test_from_absolute_to_relative() -> None:
    spec, values = changed(["relative", "relative", "absolute"])
    assert reference(spec) == ["relative", "relative", "absolute"]
    assert (spec.dimensions[0].low, spec.dimensions[2]) == (None, ACTIONS.dimensions[2])
    expected = [[0.5, TURN, 10.0], [0.0, -TURN, 10.0], [1.0, 5.5 - 2 * np.pi, 12.0]]
    np.testing.assert_allclose(values, expected, atol=TOLERANCE)


def test_relative_to_named_values() -> None:
    _, values = changed(["relative"] * 3, ["hand.g", "joints.1", "hand.h"])
    np.testing.assert_allclose(values[:, 0], VALUES[:, 0])
    np.testing.assert_allclose(values[:, 2], [3, 2, 3])
    np.testing.assert_allclose(values[0, 1], TURN)
    _, values = changed(["delta"] * 3, [None, "joints.turn", "hand.h"])
    np.testing.assert_allclose(values, [[0, TURN, 3], [0.5, -TURN, 0], [1.5, -0.5, 2]], atol=TOLERANCE)


@pytest.mark.parametrize("middle", ["delta", "relative"])
@pytest.mark.parametrize("far", ["delta", "relative"])
def test_any_change_is_undone_by_its_opposite(middle: Reference, far: Reference) -> None:
    """By way of a second reference, too: absolute, delta, relative, absolute."""
    names = ["joints.x", "joints.turn", "hand.h"]
    spec, values = ACTIONS, VALUES
    for after in (middle, far, "absolute"):
        change = ReferenceChange.find(OBSERVED, spec, [after] * 3, names)
        spec, values = change.change_spec(spec), change.change(values, OBSERVATIONS)
        assert reference(spec) == [after] * 3
    np.testing.assert_allclose(values, VALUES, atol=TOLERANCE)


def test_dimensions_that_stay_are_the_same() -> None:
    large = VALUES + np.array([0, 100, 0])  # an absolute angle far from (-π, π]
    spec, values = changed(["absolute"] * 3)
    assert spec == ACTIONS
    change = ReferenceChange.find(OBSERVED, ACTIONS, ["delta", "absolute", "absolute"])
    np.testing.assert_array_equal(change.change(large, OBSERVATIONS)[:, 1:], large[:, 1:])
    np.testing.assert_array_equal(values, VALUES)


# What cannot be changed.


def spec_of(name: str, reference: Reference = "absolute", unit: str = "m", rotation: str | None = None) -> ActionSpec:
    return ActionSpec((ActionDimension(name, unit, "world", reference, rotation),), 10.0)


@pytest.mark.parametrize(
    ("spec", "after", "relative_to", "message"),
    [
        (
            spec_of("grip"),
            "relative",
            None,
            "grip cannot be changed from absolute to relative without an observed value",
        ),
        (spec_of("grip", "delta"), "absolute", None, "from delta to absolute without an observed value"),
        (spec_of("grip", "delta"), "relative", None, "from delta to relative without an observed value"),
        (spec_of("grip", "relative"), "delta", None, "from relative to delta without an observed value"),
        (spec_of("x"), "relative", [None], "without an observed value"),
        (spec_of("x"), "relative", ["joints.y"], "relative_to: expected an observed value as KEY.NAME.*'joints.y'"),
        (spec_of("x"), "relative", ["image.0"], "relative_to: expected an observed value as KEY.NAME"),
        (spec_of("x"), "relative", ["joints.x", None], "relative_to has 2 entries for 1 action dimensions"),
        (spec_of("x", unit="mm"), "delta", None, "another unit: it is in mm, the observed one in m"),
        (spec_of("x"), "delta", ["joints.turn"], "another unit: it is in m, the observed one in rad"),
        (
            spec_of("r", rotation="axis_angle"),
            "delta",
            None,
            r"part of a rotation \(axis_angle\).* absolute for this one",
        ),
    ],
)
def test_what_cannot_be_changed(spec: ActionSpec, after: Any, relative_to: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ReferenceChange.find(OBSERVED, spec, [after], relative_to)


def test_units_that_are_not_known_are_no_contradiction() -> None:
    for spec, entry in ((spec_of("x", unit="unknown"), "joints.x"), (spec_of("x"), "hand.g")):
        assert ReferenceChange.find(OBSERVED, spec, ["delta"], [entry]).observed[0] is not None


def test_a_name_that_is_observed_twice() -> None:
    observed = ObservationSpec({key: ObservationField((1,), names=("x",)) for key in ("left", "right")})
    with pytest.raises(ConfigurationError, match=r"x is observed in left, right; say which it is by relative_to"):
        ReferenceChange.find(observed, spec_of("x"), ["delta"])
    change = ReferenceChange.find(observed, spec_of("x"), ["delta"], ["right.x"])
    seen = {"left": np.zeros((1, 1)), "right": np.ones((1, 1))}
    np.testing.assert_array_equal(change.change(np.array([[3.0]]), seen), [[2.0]])
    assert ReferenceChange.find(observed, spec_of("x"), ["absolute"]).observed == (None,)
