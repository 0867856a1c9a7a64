"""LeRobot's robots, of any kind that ``lerobot.robots`` supports. Needs the extra: ``pip install 'flowchunk[lerobot]'``."""

from __future__ import annotations

import importlib
import pkgutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from typing import Any, Self

import numpy as np

from flowchunk.datasets.description import describe_arrays
from flowchunk.datasets.episode_source import ArrayInfo
from flowchunk.datasets.errors import ConfigurationError, RobotError
from flowchunk.datasets.formats.lerobot_keys import short_keys
from flowchunk.datasets.specs import ActionSpec, ObservationField, ObservationSpec
from flowchunk.envs.robots.holding import holding_action
from flowchunk.envs.robots.robot import Reading

STATE, IMAGES, ACTION = "observation.state", "observation.images.", "action"  # as LeRobot names them in data sets
BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")  # features of every such data set
HELD_BY_ZERO = {
    ".vel": "1/s",
    ".torque": "N·m",
    ".effort": "N·m",
}  # endings of LeRobot's names, and a unit of that kind


class LeRobotRobot:
    """An instance of ``lerobot.robots.Robot``, with the keys and names of data that LeRobot records with it.

    robot: LeRobot's object. command_hz: how often commands are sent. units: as ``dataset.units`` was when the policy was
    trained: by key, ``state`` or ``action``, one for all or a list; none and "unknown" by default, as in LeRobot's data.
    It holds by sending the present positions, and 0 for names that end in ``.vel``, ``.torque`` or ``.effort``.

    Configure the robot with ``disable_torque_on_disconnect=False``, where it has that option, or it goes limp when it is
    closed. Raises ConfigurationError for features that are neither numbers nor images, and for units that do not fit.
    """

    def __init__(
        self, robot: Any, *, command_hz: float = 30.0, units: Mapping[str, str | Sequence[str]] | None = None
    ) -> None:
        self._robot, self.command_hz = robot, float(command_hz)
        self.name = f"lerobot:{robot.name}:{robot.id}"
        self._measured = _numbers(robot.observation_features)
        self._commanded = _numbers(robot.action_features)
        self._cameras = [name for name, kind in robot.observation_features.items() if _is_image(kind)]
        self._keys = short_keys([*self._arrays(), *BOOKKEEPING])
        described = describe_arrays(
            self._arrays(),
            ACTION,
            origin="the robot's features",
            key_of=self._keys.__getitem__,
            names={STATE: self._measured, ACTION: self._commanded},
        )
        if described.actions is None:
            raise ConfigurationError(
                f"{self.name}: expected action_features that are float, got {robot.action_features}"
            )
        given = dict(units or {})
        observations = {key: _with_units(key, field, given) for key, field in described.observations.items()}
        action_units = _units(ACTION, given, len(described.actions)) or [one.unit for one in described.actions]
        actions = zip(described.actions, action_units, strict=True)
        if given:
            raise ConfigurationError(f"units: expected the keys 'state' and 'action', got {sorted(given)}")
        self.observation_spec = ObservationSpec(observations)
        self.action_spec = ActionSpec(tuple(replace(one, unit=unit) for one, unit in actions), self.command_hz)
        self._last: np.ndarray | None = None

    @classmethod
    def from_type(
        cls,
        robot_type: str,
        options: Mapping[str, Any] | None = None,
        *,
        command_hz: float = 30.0,
        units: Mapping[str, str | Sequence[str]] | None = None,
    ) -> Self:
        """The robot of a type that LeRobot knows, such as "so101_follower", and the options of its configuration.

        options: as in LeRobot's own command lines, such as ``{"port": "/dev/ttyACM0", "id": "left", "cameras": {"front":
        {"type": "opencv", "index_or_path": 0, "width": 640, "height": 480, "fps": 30}}}``. Raises ConfigurationError for an
        unknown type or option, or if lerobot is not installed.
        """
        return cls(_make(robot_type, dict(options or {})), command_hz=command_hz, units=units)

    def connect(self) -> None:
        """Connect, and hold. Raises RobotError if the robot does not answer or is not calibrated."""
        with self._as_robot_error("connect"):
            if not self._robot.is_connected:
                self._robot.connect(calibrate=False)  # which would wait for somebody at the keyboard
            is_calibrated = self._robot.is_calibrated
        if not is_calibrated:
            self.close()
            raise RobotError(f"{self.name} is not calibrated; run lerobot-calibrate, with the same type and id")
        self.hold()

    def observe(self) -> Reading:
        """Positions as they are now and each camera's newest image, with the time at which they were asked for.

        Raises RobotError if the robot does not answer or leaves out a feature.
        """
        asked = time.monotonic()
        with self._as_robot_error("be read"):
            got = self._robot.get_observation()
        if missing := [name for name in (*self._measured, *self._cameras) if name not in got]:
            raise RobotError(f"{self.name} has not measured {missing}; check its cables and cameras")
        values = {self._keys[IMAGES + name]: np.asarray(got[name]) for name in self._cameras}
        if self._measured:
            values[self._keys[STATE]] = np.array([got[name] for name in self._measured], dtype=np.float32)
        return Reading(values, dict.fromkeys(values, asked))

    def command(self, action: np.ndarray) -> None:
        """Send one action (D,), which LeRobot may limit. Raises RobotError if it is not D numbers, or cannot be sent."""
        numbers = np.asarray(action, dtype=np.float64)
        if numbers.shape != (len(self._commanded),) or not np.isfinite(numbers).all():
            raise RobotError(f"{self.name}: expected finite numbers for {self._commanded}, got {action}")
        with self._as_robot_error("be commanded"):
            self._robot.send_action(dict(zip(self._commanded, numbers.tolist(), strict=True)))
        self._last = numbers

    def hold(self) -> np.ndarray:
        """Command the present positions, and return them as an action (D,). Raises RobotError."""
        reading = self.observe()
        state = reading.values[self._keys[STATE]] if self._measured else np.empty(0)
        present = dict(zip(self._measured, state.tolist(), strict=True))
        measured = np.array([present.get(name, np.nan) for name in self._commanded])
        dimensions = tuple(replace(one, unit=_holding_unit(one.name)) for one in self.action_spec.dimensions)
        action = holding_action(replace(self.action_spec, dimensions=dimensions), measured=measured, last=self._last)
        self.command(action)
        return action

    def close(self) -> None:
        """Hold, and disconnect; may be called more than once."""
        if self._robot.is_connected:
            with suppress(RobotError):
                self.hold()
            with self._as_robot_error("be disconnected"):
                self._robot.disconnect()

    def _arrays(self) -> dict[str, ArrayInfo]:
        """The features of a data set that LeRobot records with this robot."""
        images = {
            IMAGES + name: ArrayInfo(tuple(self._robot.observation_features[name]), np.dtype(np.uint8), True)
            for name in self._cameras
        }
        numbers = {ACTION: self._commanded, STATE: self._measured}
        vectors = {key: ArrayInfo((len(names),), np.dtype(np.float32)) for key, names in numbers.items() if names}
        return {**vectors, **images}

    @contextmanager
    def _as_robot_error(self, verb: str) -> Iterator[None]:
        """Whatever LeRobot's drivers raise, as a RobotError."""
        try:
            yield
        except Exception as error:
            raise RobotError(f"{self.name} cannot {verb}: {type(error).__name__}: {error}") from error


def _numbers(features: Mapping[str, Any]) -> list[str]:
    """The names of the features that are numbers. Raises ConfigurationError for what is neither numbers nor images."""
    strange = {name: kind for name, kind in features.items() if kind is not float and not _is_image(kind)}
    if strange:
        raise ConfigurationError(f"expected features that are float or (height, width, 3), got {strange}")
    return [name for name, kind in features.items() if kind is float]


def _is_image(kind: Any) -> bool:
    return isinstance(kind, tuple) and len(kind) == 3 and kind[2] == 3


def _units(key: str, given: dict[str, Any], size: int) -> list[str]:
    """The units of a key, which are taken out of what is given; empty if there are none."""
    if key not in given:
        return []
    value = given.pop(key)
    units = [value] * size if isinstance(value, str) else list(map(str, value))
    if len(units) != size:
        raise ConfigurationError(f"units: expected {size} for {key!r}, got {units}")
    return units


def _with_units(key: str, field: ObservationField, given: dict[str, Any]) -> ObservationField:
    return field if field.is_image else replace(field, units=tuple(_units(key, given, field.size)))


def _holding_unit(name: str) -> str:
    return next((unit for ending, unit in HELD_BY_ZERO.items() if name.endswith(ending)), "1")


def _make(robot_type: str, options: dict[str, Any]) -> Any:
    """LeRobot's object, made as its own command lines do."""
    try:
        import draccus
        from lerobot.robots import RobotConfig, make_robot_from_config
        from lerobot.utils.import_utils import register_third_party_plugins
    except ImportError as error:
        raise ConfigurationError(f"lerobot is not installed ({error}): pip install 'flowchunk[lerobot]'") from error
    for package in ("lerobot.robots", "lerobot.cameras"):  # each registers its types when it is imported
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
            with suppress(ImportError):  # types whose own libraries are not installed
                importlib.import_module(module.name)
    register_third_party_plugins()
    known: Mapping[str, Any] = RobotConfig.get_known_choices()
    if robot_type not in known:
        raise ConfigurationError(f"lerobot knows no robot of the type {robot_type!r}; it knows {sorted(known)}")
    if unknown := options.keys() - {field.name for field in fields(known[robot_type])}:
        names = [field.name for field in fields(known[robot_type])]
        raise ConfigurationError(f"{robot_type} takes no {sorted(unknown)}; it takes {names}")
    decode: Callable[..., Any] = draccus.decode
    try:
        return make_robot_from_config(decode(RobotConfig, {"type": robot_type, **options}))
    except Exception as error:
        raise ConfigurationError(
            f"{robot_type} cannot be made of {options}: {error}; check these, and install the part of "
            "lerobot that drives its motors, such as 'lerobot[feetech]'"
        ) from error
