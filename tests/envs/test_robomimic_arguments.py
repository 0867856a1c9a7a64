"""robomimic's tasks, as far as they need no robosuite: the arguments that data sets store, and messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import pytest

from flowchunk.cli.main import main
from flowchunk.cli.options import read_options
from flowchunk.datasets.errors import ConfigurationError, DatasetError
from flowchunk.envs.tasks.robomimic_arguments import DEFAULT_KWARGS, ENV_NAMES, EnvArguments
from flowchunk.envs.tasks.robomimic_specs import action_spec

CONTROLLER = DEFAULT_KWARGS["controller_configs"]


def write(path: Path, **attributes: Any) -> Path:
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs.update({name: json.dumps(value) for name, value in attributes.items()})
    return path


def env_args(**changes: Any) -> dict[str, Any]:
    return {"env_name": "Lift", "env_version": "1.4.1", "type": 1, "env_kwargs": DEFAULT_KWARGS} | changes


def test_arguments_are_read_as_robomimic_stores_them(tmp_path: Path) -> None:
    found = EnvArguments.read(write(tmp_path / "lift.hdf5", env_args=env_args()))
    assert (found.env_name, found.version, found.control_hz, found.is_absolute) == ("Lift", "1.4.1", 20.0, False)
    assert found.kwargs == DEFAULT_KWARGS
    absolute = {**DEFAULT_KWARGS, "control_freq": 10, "controller_configs": {**CONTROLLER, "control_delta": False}}
    found = EnvArguments.read(write(tmp_path / "absolute.hdf5", env_args=env_args(env_kwargs=absolute)))
    assert (found.control_hz, found.is_absolute) == (10.0, True)


def test_arguments_are_read_as_robosuite_stores_them(tmp_path: Path) -> None:
    path = write(
        tmp_path / "demo.hdf5", env_info={"env_name": "Stack", "robots": "Panda", "controller_configs": CONTROLLER}
    )
    with h5py.File(path, "a") as file:
        file["data"].attrs["repository_version"] = "1.0.0"
    found = EnvArguments.read(path)
    assert (found.env_name, found.version, found.control_hz) == ("Stack", "1.0.0", 20.0)
    assert set(found.kwargs) == {"robots", "controller_configs"}


def test_actions_are_changed_without_changing_the_data(tmp_path: Path) -> None:
    found = EnvArguments.default("can")
    changed = found.with_absolute_actions(True)
    assert (found.is_absolute, changed.is_absolute) == (False, True)
    assert changed.env_name == "PickPlaceCan"
    assert DEFAULT_KWARGS["controller_configs"]["control_delta"] is True


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({}, "no attribute env_args"),
        ({"env_args": env_args(type=2)}, "of type 2, not of robosuite"),
        ({"env_args": "text"}, "no JSON object"),
        ({"env_args": {"type": 1, "env_kwargs": {}}}, "no env_name and env_kwargs"),
        ({"env_args": {"type": 1, "env_name": "Lift"}}, "no env_name and env_kwargs"),
    ],
)
def test_files_that_do_not_say_their_environment_are_refused(
    tmp_path: Path, attributes: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "bad.hdf5", **attributes)
    with pytest.raises(DatasetError, match=message) as raised:
        EnvArguments.read(path)
    assert str(path) in str(raised.value)


def test_a_file_without_data_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.hdf5", "w"):
        pass
    with pytest.raises(DatasetError, match="has no group data"):
        EnvArguments.read(tmp_path / "other.hdf5")


@pytest.mark.parametrize(
    ("controller", "got"),
    [
        ({**CONTROLLER, "type": "JOINT_VELOCITY"}, "'JOINT_VELOCITY'"),
        ({**CONTROLLER, "impedance_mode": "variable"}, "'variable' impedance"),
        (None, "None"),
    ],
)
def test_controllers_of_other_actions_are_refused(controller: Any, got: str) -> None:
    found = EnvArguments("Lift", {"controller_configs": controller}, None, "file.hdf5")
    with pytest.raises(ConfigurationError, match="expected OSC_POSE with fixed impedance") as raised:
        _ = found.is_absolute
    assert got in str(raised.value)
    assert "file.hdf5" in str(raised.value)


def test_other_versions_are_warned_about(tmp_path: Path) -> None:
    path = write(tmp_path / "lift.hdf5", env_args=env_args())
    same = EnvArguments.read(path)
    assert same.version_warning("1.4.1") is None
    warning = same.version_warning("1.5.0")
    assert warning is not None
    assert "recorded with robosuite 1.4.1, but 1.5.0 is installed" in warning
    stored = env_args()
    del stored["env_version"]
    unknown = EnvArguments.read(write(tmp_path / "unknown.hdf5", env_args=stored)).version_warning("1.4.1")
    assert unknown is not None
    assert "an unknown version of robosuite" in unknown
    assert EnvArguments.default("lift").version_warning("1.4.1") is None, "no data were recorded"


def test_actions_have_names_units_and_bounds() -> None:
    delta = action_spec(is_absolute=False, rotation="axis_angle", has_gripper=True, control_hz=20)
    assert delta.names == (*(f"end_effector_{axis}" for axis in ("x", "y", "z", "rx", "ry", "rz")), "gripper_closing")
    assert {(one.unit, one.reference, one.low, one.high) for one in delta.dimensions} == {
        ("normalized", "delta", -1, 1)
    }
    pose = action_spec(is_absolute=True, rotation="axis_angle", has_gripper=True, control_hz=20)
    assert [one.unit for one in pose.dimensions] == ["m"] * 3 + ["rad"] * 3 + ["normalized"]
    assert [one.rotation for one in pose.dimensions] == [None] * 3 + ["axis_angle"] * 3 + [None]
    six = action_spec(is_absolute=True, rotation="rotation_6d", has_gripper=False, control_hz=20)
    assert (six.size, {one.rotation for one in six.dimensions[3:]}) == (9, {"rotation_6d"})
    assert {one.reference for one in six.dimensions} == {"absolute"}


@pytest.mark.parametrize("name", ENV_NAMES)
def test_a_task_is_chosen_by_its_name(name: str) -> None:
    options = read_options("collect", [f"task=robomimic/{name}", "output_dir=x"])
    assert options["task"]["env_id"] == "flowchunk/Robomimic-v1"
    assert options["env"] == {"name": name}


def test_without_robosuite_the_message_names_the_environment_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "robosuite", None)
    assert main(["collect", "task=robomimic/lift", f"output_dir={tmp_path / 'x'}"]) == 1
    error = capsys.readouterr().err
    assert "needs the packages robomimic and robosuite" in error
    assert "an environment of its own, pip install 'flowchunk[robomimic]'" in error


def test_unknown_tasks_are_refused_with_those_that_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["collect", "task=robomimic/fly", f"output_dir={tmp_path / 'x'}"]) == 1
    error = capsys.readouterr().err
    assert "got 'fly'" in error
    assert "'square'" in error
