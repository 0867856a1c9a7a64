"""What a simulated robot is: its task, and how late and how reliably its sensors and commands arrive."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

from flowchunk.datasets.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class SimulatedOptions:
    """Options of the process that simulates a robot; its command line has one for each field.

    env_id, env: the task and the options of its constructor. seed: of the first episode; the seed of an episode is also that
    of its delays and losses. sensing_delay, command_delay: seconds on the way from and to the robot. jitter: seconds, up to
    which each way takes longer at random. drop: the probability that a reading or a command is lost. command_timeout: seconds
    after the newest command until the robot holds by itself; one and a half control periods of the task if None. log: a file
    for a line of JSON per control step and command. linger: seconds without a controller until the process ends; never if
    None. Raises ConfigurationError.
    """

    env_id: str
    env: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    sensing_delay: float = 0.0
    command_delay: float = 0.0
    jitter: float = 0.0
    drop: float = 0.0
    command_timeout: float | None = None
    log: str | None = None
    linger: float | None = None

    def __post_init__(self) -> None:
        if not (type(self.seed) is int and self.seed >= 0):
            raise ConfigurationError(f"seed: expected an integer from 0, got {self.seed!r}")
        for name in ("sensing_delay", "command_delay", "jitter", "drop", "command_timeout", "linger"):
            value = getattr(self, name)
            highest = 1.0 if name == "drop" else math.inf
            if value is not None and not (_is_number(value) and 0 <= value <= highest):
                unit = "a probability from 0 to 1" if name == "drop" else "a number of seconds from 0"
                raise ConfigurationError(f"{name}: expected {unit}, got {value!r}")
        try:
            json.dumps(dict(self.env))
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"env: expected options that JSON can hold, got {self.env!r} ({error}); use numbers, texts and lists"
            ) from error

    def to_arguments(self) -> list[str]:
        """The command line that ``parse_arguments`` reads."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "env_id"}
        options = [_option(name) + "=" + json.dumps(value) for name, value in given.items() if value is not None]
        return [*options, "--", self.env_id]

    @classmethod
    def parse_arguments(cls, arguments: Sequence[str]) -> tuple[Self, str]:
        """Options and the address of the socket. Exits with a usage message where they cannot be read."""
        parser = argparse.ArgumentParser("python -m flowchunk.envs.robots.simulated_server", description=cls.__doc__)
        parser.add_argument("env_id")
        parser.add_argument("--address", required=True, help="path of the local socket to listen at")
        for option in fields(cls):
            if option.name != "env_id":
                parser.add_argument(_option(option.name), type=_json_or_text, default=argparse.SUPPRESS)
        given = vars(parser.parse_args(arguments))
        return cls(**{name: value for name, value in given.items() if name != "address"}), given["address"]


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _json_or_text(text: str) -> Any:
    """Numbers and dictionaries as JSON; a path need not be in quotation marks."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
