"""Make a robot from its name and options, in the process that will drive it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

from flowchunk.datasets.errors import ConfigurationError, FlowchunkError, RobotError
from flowchunk.envs.robots.robot import Robot

KINDS = {
    "simulated": ("flowchunk.envs.robots.simulated", "SimulatedRobot"),
    "gym": ("flowchunk.envs.robots.gym_robot", "GymRobot.from_id"),
    "lerobot": ("flowchunk.envs.robots.lerobot_robot", "LeRobotRobot.from_type"),
}
"""Module, and name in it, of what makes each kind of robot."""
REQUIRED = ("connect", "observe", "command", "hold", "close")


def make_robot(name: str, options: Mapping[str, Any] | None = None) -> Robot:
    """A robot that is not connected yet.

    name: "simulated" (``SimulatedRobot``), "gym" (``GymRobot.from_id``), "lerobot" (``LeRobotRobot.from_type``), or
    MODULE:CLASS for a driver of your own, whose module is installed or lies in a folder of PYTHONPATH. options: arguments of
    these, by name. Numbers, texts, lists and dictionaries can be sent to another process, which may then make the robot.

    Raises ConfigurationError for an unknown name, and for options that are unknown or missing; RobotError, with the name, for
    any exception of a driver.
    """
    given = dict(options or {})
    make = checked_maker(name, given)
    try:
        robot = make(**given)
    except FlowchunkError:
        raise
    except Exception as error:  # of a driver: it may raise anything
        raise RobotError(f"{name} could not be made: {type(error).__name__}: {error}") from error
    if missing := [member for member in REQUIRED if not callable(getattr(robot, member, None))]:
        raise ConfigurationError(
            f"{name} makes a {type(robot).__name__} without {missing}; give the driver every member of "
            "flowchunk.envs.robots.Robot"
        )
    return cast(Robot, robot)


def checked_maker(name: str, options: Mapping[str, Any]) -> Callable[..., Any]:
    """What makes robots of this name. Raises ConfigurationError if there is none, or if it does not take these options."""
    make = maker_of(name)
    _require_options(name, make, options)
    return make


def maker_of(name: str) -> Callable[..., Any]:
    """The function or class that makes robots of this name. Raises ConfigurationError if there is none."""
    module, _, attributes = name.partition(":")
    if not attributes and name not in KINDS:
        raise ConfigurationError(
            f"unknown robot {name!r}; expected one of {', '.join(KINDS)}, or MODULE:CLASS of a driver"
        )
    module, attributes = KINDS.get(name, (module, attributes))
    try:
        found: Any = importlib.import_module(module)
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"robot {name!r}: {error}; the module has to be installed, or its folder in the variable PYTHONPATH"
        ) from error
    if not callable(found):
        raise ConfigurationError(f"robot {name!r}: expected a class or function that makes a robot, got {found!r}")
    return cast(Callable[..., Any], found)


def _require_options(name: str, make: Callable[..., Any], given: Mapping[str, Any]) -> None:
    parameters = [one for one in inspect.signature(make).parameters.values() if one.kind is not one.VAR_POSITIONAL]
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters)
    named = {one.name: one for one in parameters if one.kind is not one.VAR_KEYWORD}
    if not takes_any and (unknown := sorted(given.keys() - named.keys())):
        raise ConfigurationError(f"robot {name!r} takes no option {unknown}; it takes {list(named) or 'none'}")
    if missing := [key for key, one in named.items() if one.default is one.empty and key not in given]:
        raise ConfigurationError(
            f"robot {name!r} needs the options {missing}, got {sorted(given)}; give driver.{missing[0]}=VALUE "
            "on a command line"
        )
