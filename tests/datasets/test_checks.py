"""check_dataset: data sets of every format pass, and each defect is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowchunk.datasets.checks import check_dataset
from flowchunk.datasets.derived_specs import SpecOptions, derive_specs
from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.formats import open_dataset
from flowchunk.datasets.formats.zarr_store import Store
from flowchunk.datasets.recorder import StoreWriter
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from tests.datasets.formats.foreign import FORMATS, HZ

OBSERVATION = ObservationSpec(
    {"state": ObservationField((2,), ("x", "y"), ("m", "m")), "image": ObservationField((8, 8, 3), camera="top")}
)
ACTION = ActionSpec((ActionDimension("x", "m", "world", low=-1.0, high=1.0),), 10.0)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_passes(name: str, tmp_path: Path) -> None:
    source = open_dataset(FORMATS[name](tmp_path))
    derived = derive_specs(source, SpecOptions(control_hz=None if source.description.control_hz else HZ))
    check_dataset(source, (derived.observation_spec, derived.action_spec))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    random = np.random.default_rng(0)
    with StoreWriter(tmp_path / "data", observation_spec=OBSERVATION, action_spec=ACTION, say=None) as writer:
        for length in (9, 12):
            images = random.integers(0, 256, (length, 8, 8, 3), np.uint8)
            writer.add_episode(
                {"state": random.normal(size=(length, 2)), "image": images}, random.uniform(-1, 1, (length, 1))
            )
    return Store.open(tmp_path / "data")


def test_a_recorded_store_passes(store: Store) -> None:
    check_dataset(store)


def broken(store: Store, **members: Any) -> Store:
    """The store, with other members of its class."""
    kind: Any = type("Broken", (type(store),), members)
    made: Store = kind.open(store.path)
    return made


def tampered(key: str, change: Any) -> Any:
    def read(self: Store, wanted: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        values = Store.read(self, wanted, start, stop)
        return change(values, start) if wanted == key else values

    return read


def with_nan(values: np.ndarray, start: int) -> np.ndarray:
    values = values.copy()
    if start <= 4 < start + len(values):
        values[4 - start, 0] = np.nan
    return values


def depends_on_the_slice(values: np.ndarray, start: int) -> np.ndarray:
    return values + len(values)


def beyond_bounds(values: np.ndarray, start: int) -> np.ndarray:
    rows = np.arange(start, start + len(values))
    return np.where(rows[:, None] == 10, 1.5, values)


def darkened(self: Store, name: str, start: int, stop: int) -> np.ndarray:
    values = Store.read_array(self, name, start, stop)
    return values / np.float32(255) if name == "image" else values


DEFECTS: dict[str, tuple[dict[str, Any], str]] = {
    "no episodes": ({"episode_lengths": property(lambda self: np.array([9, 0, 12]))}, "at least one time step"),
    "validation": (
        {"validation_episodes": property(lambda self: np.array([5]))},
        r"has 2 episodes, but sets \[.*5.*\] aside",
    ),
    "tasks": (
        {"tasks": property(lambda self: ("a",)), "task_indices": property(lambda self: np.full(21, 1))},
        "each of the 21 rows must have one of 1 tasks",
    ),
    "slices": ({"read": tampered("state", depends_on_the_slice)}, "differ from the same rows read one by one"),
    "dark images": ({"read_array": darkened}, "holds fractions .* multiply them by 255"),
    "bounds": (
        {"read": tampered("action", beyond_bounds)},
        r"action 'x' in .* is 1.5 in episode 1, frame 1, but its bounds are -1.0 to 1.0 m",
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_each_defect_is_named(store: Store, name: str) -> None:
    members, message = DEFECTS[name]
    with pytest.raises(DatasetError, match=message):
        check_dataset(broken(store, **members))


def test_values_that_are_not_finite_are_named_by_episode_and_frame(store: Store) -> None:
    source = broken(store, read=tampered("state", with_nan))
    with pytest.raises(DatasetError, match=r"differ from|episode 0, frame 4"):
        check_dataset(source)


def test_a_specification_that_names_what_is_not_there_is_refused(store: Store) -> None:
    more = ObservationSpec({**OBSERVATION.fields, "force": ObservationField((3,))})
    with pytest.raises(DatasetError, match="has no 'force', which the specification names"):
        check_dataset(store, (more, ACTION))
    other = replace(ACTION, dimensions=ACTION.dimensions * 2)
    with pytest.raises(DatasetError, match=r"frames of shape \(1,\), but the task expects \(2,\)"):
        check_dataset(store, (OBSERVATION, other))


def test_without_specifications_it_says_how_to_get_them(tmp_path: Path) -> None:
    source = open_dataset(FORMATS["zarr"](tmp_path))
    with pytest.raises(DatasetError, match="give specs=derive_specs"):
        check_dataset(source)
