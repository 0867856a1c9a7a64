"""Specifications of any data set: what it says, what the user says instead, and where each came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowchunk.datasets.derived_specs import DerivedSpecs, SpecOptions, derive_specs
from flowchunk.datasets.errors import ConfigurationError, DatasetError
from flowchunk.datasets.formats import open_dataset
from flowchunk.datasets.recorder import StoreWriter
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from tests.datasets.formats.foreign import write_lerobot_3, write_zarr


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of unknown rate, with the keys img and state."""
    return write_zarr(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def lerobot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lerobot_3(tmp_path_factory.mktemp("data"), codec="png")


def derive(path: Path, sources: dict[str, str] | None = None, **options: Any) -> DerivedSpecs:
    return derive_specs(open_dataset(path, sources=sources), SpecOptions(**{"control_hz": 10.0, **options}))


def test_stored_specifications_are_used_as_they_are(tmp_path: Path) -> None:
    observation = ObservationSpec({"joints": ObservationField((2,), ("a", "b"), ("rad", "rad"), (1,))})
    action = ActionSpec((ActionDimension("a", "rad", "joint", "delta", low=-1.0, high=1.0),), control_hz=20.0)
    with StoreWriter(tmp_path / "ours.zarr", observation_spec=observation, action_spec=action) as writer:
        writer.add_episode({"joints": np.zeros((5, 2))}, np.zeros((5, 1)))
    specs = derive_specs(open_dataset(tmp_path / "ours.zarr"))
    assert (specs.observation_spec, specs.action_spec) == (observation, action)
    assert specs.origins == {"joints": "stored", "action": "stored", "control_hz": "stored"}
    faster = derive_specs(open_dataset(tmp_path / "ours.zarr"), SpecOptions(control_hz=50, units={"joints": "deg"}))
    assert faster.action_spec.control_hz == 50
    assert faster.observation_spec.fields["joints"].units == ("deg", "deg")
    assert faster.origins == {"joints": "stored; units given", "action": "stored", "control_hz": "given"}


def test_an_unknown_rate_is_refused(foreign: Path) -> None:
    with pytest.raises(DatasetError, match=r"does not say at which rate .*dataset.control_hz=10"):
        derive_specs(open_dataset(foreign))
    with pytest.raises(ConfigurationError, match="control_hz=0 must be above 0"):
        derive(foreign, control_hz=0)


def test_what_the_format_says_and_what_is_assumed(lerobot: Path) -> None:
    specs = derive_specs(open_dataset(lerobot))
    state, (action,) = specs.observation_spec.fields["state"], specs.action_spec.dimensions
    assert (state.names, state.units, state.wraps) == (("x", "y"), (), ())
    assert (action.name, action.unit, action.reference) == ("a", "unknown", "absolute")
    assert specs.action_spec.control_hz == 10
    assert specs.origins["action"] == "meta/info.json; absolute is assumed"


def test_everything_can_be_said_instead(lerobot: Path) -> None:
    specs = derive(
        lerobot,
        observe=["state"],
        names={"state": ["reach", "angle"], "action": ["target"]},
        units={"state": ["m", "rad"], "action": "m"},
        wraps={"state": ["angle"]},
        reference="delta",
        control_hz=30,
    )
    state, (action,) = specs.observation_spec.fields["state"], specs.action_spec.dimensions
    assert {*specs.observation_spec.fields} == {"state"}
    assert (state.names, state.units, state.wraps) == (("reach", "angle"), ("m", "rad"), (1,))
    assert (action.name, action.unit, action.reference) == ("target", "m", "delta")
    assert specs.action_spec.control_hz == 30
    assert specs.origins == {
        "state": "meta/info.json; names, units, wraps given",
        "action": "meta/info.json; names, units, reference given",
        "control_hz": "given",
    }


def test_keys_are_chosen_or_left_out(foreign: Path) -> None:
    assert {*derive(foreign).observation_spec.fields} == {"img", "state"}
    assert {*derive(foreign, exclude=["img"]).observation_spec.fields} == {"state"}
    assert {*derive(foreign, observe=["img"]).observation_spec.fields} == {"img"}
    assert {*derive(foreign, {"x": "state[:1]"}, observe=["x"]).observation_spec.fields} == {"x"}
    specs = derive(foreign, {"x": "state[:1]"}, exclude=["img"])
    assert {key: field.shape for key, field in specs.observation_spec.fields.items()} == {"state": (2,), "x": (1,)}
    assert specs.origins["x"] == "given: state[:1]"


def test_actions_of_another_array(foreign: Path) -> None:
    specs = derive(foreign, {"action": "state"}, observe=["img"])
    assert specs.action_spec.names == ("action_0", "action_1")
    assert specs.origins["action"] == "given: state; absolute is assumed"


def test_rotations_and_references_per_dimension(foreign: Path) -> None:
    sources = {"action": "state + state + action"}
    specs = derive(
        foreign,
        sources,
        observe=["state"],
        rotations={"axis_angle": [0, "action_1", 2]},
        reference=["absolute", "absolute", "absolute", "relative", "delta"],
    )
    assert [one.rotation for one in specs.action_spec.dimensions] == ["axis_angle"] * 3 + [None, None]
    assert [one.reference for one in specs.action_spec.dimensions[2:]] == ["absolute", "relative", "delta"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observe": ["sate"]}, "observe names 'sate'; did you mean state"),
        ({"exclude": ["image"]}, "exclude names 'image'; did you mean img"),
        ({"units": {"state": ["m"]}}, "units.state has 1 entries, but state has 2 dimensions"),
        ({"names": {"action": ["a", "b"]}}, "names.action has 2 entries, but action has 1 dimensions"),
        ({"units": {"img": "m"}}, "units names 'img'"),
        ({"names": {"stat": ["a", "b"]}}, "names names 'stat'; did you mean state"),
        ({"wraps": {"state": [2]}}, r"wraps.state: 2 is no dimension; there are 0, 1"),
        ({"wraps": {"action": [0]}}, "wraps names 'action'"),
        ({"reference": "absolut"}, "reference=absolut must be absolute, delta, relative"),
        ({"reference": ["delta", "delta"]}, "one for each of 1 dimensions"),
        ({"rotations": {"axis_angles": [0]}}, "'axis_angles' is not a representation of rotations"),
        ({"rotations": {"axis_angle": [0]}}, "names 1 dimensions, but it takes 3 for each rotation"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str, foreign: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        derive(foreign, **options)


@pytest.mark.parametrize("dimensions", [[0, 2, 1], [0, 1, 3], [0, 1, 2, 3, 5, 4]])
def test_dimensions_of_a_rotation_follow_each_other(dimensions: list[int], foreign: Path) -> None:
    sources = {"action": "state + state + state"}
    assert derive(foreign, sources, rotations={"axis_angle": [3, 4, 5, 0, 1, 2]})
    with pytest.raises(
        ConfigurationError, match=r"rotations.axis_angle=\[0, .* must follow each other .* in this order"
    ):
        derive(foreign, sources, rotations={"axis_angle": dimensions})


def test_nothing_to_observe(foreign: Path) -> None:
    with pytest.raises(DatasetError, match=r"nothing to observe; choose by dataset.observe=\[KEY\]"):
        derive(foreign, exclude=["img", "state"])


def test_the_task_as_a_one_hot_vector(lerobot: Path) -> None:
    specs = derive(lerobot, condition_on_task=True, exclude=["front"])
    assert specs.observation_spec.fields["task"] == ObservationField((2,), names=("push", "pull"))
    assert specs.origins["task"] == "the data set's tasks, one-hot"
    assert {*derive(lerobot, observe=["task"]).observation_spec.fields} == {"task"}
