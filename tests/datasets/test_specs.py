"""Specifications: stored and read back, compared, and refused if they are inconsistent."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowchunk.datasets.errors import SpecMismatchError
from flowchunk.datasets.specs import (
    ActionDimension,
    ActionSpec,
    ObservationField,
    ObservationSpec,
    require_observations,
    require_same_actions,
)

STATE = ObservationField((3,), names=("x", "y", "theta"), units=("m", "m", "rad"), wraps=(2,))
OBSERVATIONS = ObservationSpec({"state": STATE, "image": ObservationField((96, 96, 3))})
ACTIONS = ActionSpec(
    (
        ActionDimension("x", "m", "base", low=-1.0, high=1.0),
        ActionDimension("roll", "rad", "gripper", reference="delta", rotation="euler_xyz"),
    ),
    control_hz=20.0,
)

texts = st.text(max_size=8)
bounds = st.none() | st.floats(allow_nan=False, allow_infinity=False)
dimensions = st.builds(
    ActionDimension,
    name=texts,
    unit=texts,
    coordinate_frame=texts,
    reference=st.sampled_from(["absolute", "delta", "relative"]),
    rotation=st.none() | texts,
    low=bounds,
    high=bounds,
)


@st.composite
def fields(draw: st.DrawFn) -> ObservationField:
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    size = ObservationField(shape).size
    labels = st.just(()) | st.lists(texts, min_size=size, max_size=size).map(tuple)
    wraps = draw(st.sets(st.integers(0, size - 1)))
    return ObservationField(shape, names=draw(labels), units=draw(labels), wraps=tuple(sorted(wraps)))


@given(st.dictionaries(texts, fields(), max_size=4))
def test_observation_specs_come_back_from_json(content: dict[str, ObservationField]) -> None:
    spec = ObservationSpec(content)
    again = ObservationSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert list(again.fields) == list(spec.fields)
    require_observations(spec, again, expected_by="the spec", got_from="its copy")


@given(st.lists(dimensions, max_size=4), st.floats(0.1, 1000))
def test_action_specs_come_back_from_json(content: list[ActionDimension], control_hz: float) -> None:
    spec = ActionSpec(tuple(content), control_hz)
    again = ActionSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert again.size == len(content)
    require_same_actions(spec, again, expected_by="the spec", got_from="its copy")


@given(st.lists(dimensions, min_size=1, max_size=4))
def test_a_spec_stored_with_frame_is_read_as_coordinate_frame(content: list[ActionDimension]) -> None:
    stored = ActionSpec(tuple(content), 10.0).to_json()
    for dimension in stored["dimensions"]:
        dimension["frame"] = dimension.pop("coordinate_frame")
    assert ActionSpec.from_json(json.loads(json.dumps(stored))) == ActionSpec(tuple(content), 10.0)


def test_a_dimension_with_both_names_of_its_coordinate_frame_is_refused() -> None:
    stored = ACTIONS.to_json()
    stored["dimensions"][0]["frame"] = "base"
    with pytest.raises(SpecMismatchError, match=r"not an action spec: .*'frame'"):
        ActionSpec.from_json(stored)


def test_sizes_count_values() -> None:
    assert STATE.size == 3
    assert OBSERVATIONS.fields["image"].size == 96 * 96 * 3
    assert ACTIONS.size == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ("x", "y")}, r"shape \(3,\) has 3 dimensions, but 2 names were given"),
        ({"units": ("m",) * 4}, "has 3 dimensions, but 4 units were given"),
        ({"wraps": (3,)}, r"wraps=\(3,\) points outside the 3 dimensions"),
        ({"wraps": (-1,)}, r"wraps=\(-1,\) points outside"),
    ],
)
def test_inconsistent_fields(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecMismatchError, match=message):
        ObservationField((3,), **options)


IMAGE = ObservationField((96, 96, 3), camera="front", crop=(84, 84))


def test_an_image_comes_back_from_json_with_its_camera_and_crop() -> None:
    spec = ObservationSpec({"image": IMAGE, "state": STATE})
    read = ObservationSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert read == spec
    assert (read.fields["image"].camera, read.fields["image"].crop) == ("front", (84, 84))
    assert (list(read.images), list(read.values)) == (["image"], ["state"])


def test_the_crop_is_ignored_when_fields_are_compared() -> None:
    assert replace(IMAGE, crop=None) == IMAGE
    assert replace(IMAGE, camera="wrist") != IMAGE


@pytest.mark.parametrize(
    ("shape", "camera", "crop"),
    [
        ((3, 96, 96), "front", None),
        ((96, 96), "front", None),
        ((96, 96, 3), None, (84, 84)),
        ((96, 96, 3), "front", (97, 84)),
        ((96, 96, 3), "front", (84,)),
        ((96, 96, 3), "front", (0, 84)),
    ],
)
def test_inconsistent_images(shape: tuple[int, ...], camera: str | None, crop: tuple[int, ...] | None) -> None:
    with pytest.raises(SpecMismatchError, match=r"an image has a camera|must be \(height, width\)"):
        ObservationField(shape, camera=camera, crop=crop)


@pytest.mark.parametrize(
    "value", [None, [], 3, {"state": None}, {"state": {"shape": 3}}, {"state": {"size": [3]}}, {"state": {}}]
)
def test_values_that_are_no_observation_spec(value: Any) -> None:
    with pytest.raises(SpecMismatchError, match="this is not an observation spec"):
        ObservationSpec.from_json(value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"dimensions": []},
        {"dimensions": [{}], "control_hz": 10},
        {"dimensions": 3, "control_hz": 10},
        {"dimensions": [], "control_hz": None},
        {"dimensions": [], "control_hz": "fast"},
        {"dimensions": ["frame"], "control_hz": 10},
    ],
)
def test_values_that_are_no_action_spec(value: Any) -> None:
    with pytest.raises(SpecMismatchError, match="this is not an action spec"):
        ActionSpec.from_json(value)


# Comparing.

SIDES = {"expected_by": "the policy", "got_from": "the store"}


@pytest.mark.parametrize(
    "change",
    [
        {"unit": "mm"},
        {"coordinate_frame": "world"},
        {"reference": "relative"},
        {"low": 0.0},
        {"high": None},
        {"rotation": "x"},
        {"name": "z"},
    ],
)
def test_actions_that_differ_are_named_with_both_sides(change: dict[str, Any]) -> None:
    other = replace(ACTIONS, dimensions=(replace(ACTIONS.dimensions[0], **change), ACTIONS.dimensions[1]))
    with pytest.raises(SpecMismatchError, match=r"'x' differs: the policy has .*, but the store has "):
        require_same_actions(ACTIONS, other, **SIDES)


def test_actions_of_another_size() -> None:
    other = replace(ACTIONS, dimensions=ACTIONS.dimensions[:1])
    with pytest.raises(
        SpecMismatchError, match=r"the policy has 2 action dimensions \['x', 'roll'\], but the store has 1 \['x'\]"
    ):
        require_same_actions(ACTIONS, other, **SIDES)


def test_actions_at_another_rate() -> None:
    with pytest.raises(SpecMismatchError, match=r"the policy has 20\.0 Hz, but the store has 10\.0 Hz"):
        require_same_actions(ACTIONS, replace(ACTIONS, control_hz=10.0), **SIDES)


def test_more_observations_are_accepted_but_not_fewer() -> None:
    fewer = ObservationSpec({"state": STATE})
    require_observations(fewer, OBSERVATIONS, **SIDES)
    with pytest.raises(SpecMismatchError, match=r"the policy needs the observation 'image', but the store only has"):
        require_observations(OBSERVATIONS, fewer, **SIDES)


@pytest.mark.parametrize("change", [{"units": ("m", "mm", "rad")}, {"wraps": ()}, {"names": ()}, {"shape": (3, 1)}])
def test_observations_that_differ_are_named_with_both_sides(change: dict[str, Any]) -> None:
    other = ObservationSpec({"state": replace(STATE, **change)})
    with pytest.raises(SpecMismatchError, match=r"'state' differs: the policy has .*, but the store has "):
        require_observations(ObservationSpec({"state": STATE}), other, **SIDES)


def test_a_mismatch_names_what_differs_and_nothing_else() -> None:
    names = tuple("abcdef")
    expected = ObservationField((6,), names=names, units=("rad",) * 6)
    other = replace(expected, units=("rad", "rad", "deg", "rad", "rad", "rad"))
    specs = (ObservationSpec({"joints": field}) for field in (expected, other, replace(expected, shape=(2, 3))))
    first, second, third = specs
    with pytest.raises(SpecMismatchError) as caught:
        require_observations(first, second, expected_by="the policy", got_from="the store")
    assert str(caught.value) == (
        "observation 'joints' differs: the policy has units[2]='rad', but the store has units[2]='deg'"
    )
    with pytest.raises(SpecMismatchError, match=r"has shape=\(6,\), but the store has shape=\(2, 3\)"):
        require_observations(first, third, expected_by="the policy", got_from="the store")
