"""What robosuite's environments are made with, as robomimic's data sets store it, and with which version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flowchunk.datasets.errors import ConfigurationError, DatasetError
from flowchunk.datasets.formats.robomimic import open_hdf5

ENV_NAMES = {"lift": "Lift", "can": "PickPlaceCan", "square": "NutAssemblySquare"}
"""robosuite's names of the tasks that have short ones."""
ROBOSUITE_TYPE = 1  # robomimic's number of robosuite's environments
CONTROLLER = "OSC_POSE"
CONTROL_HZ = 20
DEFAULT_KWARGS: dict[str, Any] = {
    "robots": ["Panda"],
    "control_freq": CONTROL_HZ,
    "reward_shaping": False,
    "controller_configs": {
        "type": CONTROLLER,
        "input_max": 1,
        "input_min": -1,
        "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
        "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
        "kp": 150,
        "damping_ratio": 1,
        "impedance_mode": "fixed",
        "kp_limits": [0, 300],
        "damping_ratio_limits": [0, 10],
        "position_limits": None,
        "orientation_limits": None,
        "uncouple_pos_ori": True,
        "control_delta": True,
        "interpolation": None,
        "ramp_ratio": 0.2,
    },
}
"""The arguments of the environments in robomimic's own data sets."""


@dataclass(frozen=True)
class EnvArguments:
    """Arguments of an environment of robosuite. version: of the robosuite that recorded the data; None if it is not stored.

    origin: where they come from, for messages.
    """

    env_name: str
    kwargs: Mapping[str, Any]
    version: str | None
    origin: str

    @classmethod
    def default(cls, name: str) -> EnvArguments:
        """Those of robomimic's own data sets of the task lift, can or square."""
        return cls(ENV_NAMES[name], deepcopy(DEFAULT_KWARGS), None, "robomimic's default")

    @classmethod
    def read(cls, path: Path) -> EnvArguments:
        """Those that an HDF5 file of robomimic, or a demonstration of robosuite itself, was recorded with.

        Raises DatasetError if the file has none, or they are of another simulator.
        """
        with open_hdf5(path) as file:
            if "data" not in file:
                raise DatasetError(f"{path} has no group data, so it is no data set of robomimic; give another file")
            return cls.of_attributes(file["data"].attrs, path)

    @classmethod
    def of_attributes(cls, attributes: Mapping[str, Any], path: Path) -> EnvArguments:
        """Those in the attributes of the group ``data`` of the file at ``path``. Raises DatasetError; see ``read``."""
        if "env_args" in attributes:
            stored = _json(attributes["env_args"], "env_args", path)
            if stored.get("type") != ROBOSUITE_TYPE:
                raise DatasetError(
                    f"env_args in {path} are of type {stored.get('type')!r}, not of robosuite ({ROBOSUITE_TYPE}); use the "
                    "task that the data was recorded in"
                )
            kwargs, version = stored.get("env_kwargs"), stored.get("env_version")
        elif "env_info" in attributes:  # robosuite's own collection of demonstrations
            stored = _json(attributes["env_info"], "env_info", path)
            kwargs = {name: value for name, value in stored.items() if name != "env_name"}
            version = attributes.get("repository_version")
        else:
            raise DatasetError(
                f"the group data in {path} has no attribute env_args, so it does not say which environment it was recorded "
                "in; copy it from a file of the same task, or leave env.path out for robomimic's default"
            )
        if not isinstance(stored.get("env_name"), str) or not isinstance(kwargs, dict):
            raise DatasetError(
                f"env_args in {path} have no env_name and env_kwargs; copy them from a file of the same task"
            )
        return cls(stored["env_name"], kwargs, None if version is None else str(version), str(path))

    @property
    def control_hz(self) -> float:
        """Actions per second."""
        return float(self.kwargs.get("control_freq", CONTROL_HZ))

    @property
    def controller(self) -> Mapping[str, Any]:
        """The configuration of the controller. Raises ConfigurationError unless it is OSC_POSE of fixed impedance."""
        found = self.kwargs.get("controller_configs")
        is_known = isinstance(found, Mapping) and found.get("type") == CONTROLLER
        if not is_known or found.get("impedance_mode", "fixed") != "fixed":  # type: ignore[union-attr]
            raise ConfigurationError(
                f"controller_configs: expected {CONTROLLER} with fixed impedance, got {_short(found)} in {self.origin}; what "
                "its actions mean is not known, so use other data"
            )
        assert isinstance(found, Mapping)
        return found

    @property
    def is_absolute(self) -> bool:
        """Whether actions are poses, not displacements."""
        return not self.controller.get("control_delta", True)

    def with_absolute_actions(self, is_absolute: bool) -> EnvArguments:
        """The same with actions that are poses, or displacements."""
        controller = {**self.controller, "control_delta": not is_absolute}
        return replace(self, kwargs={**self.kwargs, "controller_configs": controller})

    def version_warning(self, installed: str) -> str | None:
        """What to tell users if the data were recorded with another robosuite, or with an unknown one; None otherwise."""
        if self.version == installed or not Path(self.origin).is_file():
            return None
        recorded = "an unknown version of robosuite" if self.version is None else f"robosuite {self.version}"
        return (
            f"{self.origin} was recorded with {recorded}, but {installed} is installed: the dynamics may differ; check by "
            f"flowchunk data replay {self.origin} how many of its demonstrations still succeed"
        )


def _json(text: Any, name: str, path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (TypeError, ValueError) as error:
        raise DatasetError(
            f"{name} in {path} is no JSON object ({error}); copy it from a file of the same task"
        ) from error


def _short(controller: Any) -> str:
    if not isinstance(controller, Mapping):
        return repr(controller)
    return f"{controller.get('type')!r} with {controller.get('impedance_mode', 'fixed')!r} impedance"
