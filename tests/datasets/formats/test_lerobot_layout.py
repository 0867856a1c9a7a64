"""LeRobot's format: the numbers of its files, and what it does not hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowchunk.datasets.errors import ConfigurationError, DatasetError
from flowchunk.datasets.formats.lerobot_layout import FilePlace
from flowchunk.datasets.formats.lerobot_writer import LeRobotWriter
from flowchunk.datasets.specs import ActionSpec, ObservationField, ObservationSpec
from tests.datasets.formats.episodes import ACTIONS, OBSERVATIONS


def test_places_of_files() -> None:
    assert FilePlace(0, 998).next == FilePlace(0, 999)
    assert FilePlace(0, 999).next == FilePlace(1, 0)
    assert FilePlace(3, 999).next.path("{name}/{chunk_index:03d}/{file_index}", name="a") == "a/004/0"


@pytest.mark.parametrize("rate", [12.5, 0.0, -10.0, float("nan"), float("inf")])
def test_rates_that_are_no_whole_number(tmp_path: Path, rate: float) -> None:
    with pytest.raises(DatasetError, match=r"needs a whole number of frames per second above 0, but the control rate"):
        write_spec(tmp_path / "set", OBSERVATIONS, replace(ACTIONS, control_hz=rate))
    assert list(tmp_path.iterdir()) == []


def write_spec(path: Path, observations: ObservationSpec, actions: ActionSpec = ACTIONS, **options: Any) -> None:
    with LeRobotWriter(path, observation_spec=observations, action_spec=actions, **options):
        raise AssertionError("the format does not hold this")


def test_names_that_would_be_confused(tmp_path: Path) -> None:
    image, value = OBSERVATIONS.fields["front"], ObservationField((2,))
    for fields, message in (
        ({"a/b": value}, r"'a/b' would be LeRobot's feature 'observation\.a/b'"),
        ({"front": image, "images.front": value}, "is used once"),
        ({"deep": ObservationField((1, 1, 1, 1, 1, 1))}, "frames of 6 dimensions, .* 5 at most"),
    ):
        with pytest.raises(DatasetError, match=message):
            write_spec(tmp_path / "set", ObservationSpec(fields))
    assert list(tmp_path.iterdir()) == []


def test_codecs(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"codec='gif' must be one of \['h264', 'av1', 'png'\]"):
        write_spec(tmp_path / "set", OBSERVATIONS, codec="gif")
    odd = ObservationSpec({"front": ObservationField((15, 24, 3), camera="front")})
    with pytest.raises(DatasetError, match="av1 needs images of even height and width, but they are 15 x 24"):
        write_spec(tmp_path / "set", odd, codec="av1")
    assert list(tmp_path.iterdir()) == []
