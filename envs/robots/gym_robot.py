"""A Gymnasium environment as a robot, in lockstep: each command is one step, and nothing moves in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import gymnasium
import numpy as np

from flowchunk.datasets.errors import ConfigurationError, FlowchunkError, RobotError
from flowchunk.datasets.specs import ActionSpec, ObservationSpec
from flowchunk.envs.contract import OUTCOME, specs_of, with_outcome
from flowchunk.envs.robots.env_holding import env_hold_action
from flowchunk.envs.robots.robot import Reading
from flowchunk.envs.simulation import environment_maker


class GymRobot:
    """For robots that already have a Gymnasium environment, whose ``step`` commands the hardware and waits for a period.

    make_env: makes the environment, which has ``observation_spec`` and ``action_spec`` and should have no limit on its steps;
    those of an episode that has ended go on. An environment may have ``hold_action() -> (D,)``. name: of the hardware. seed:
    of the first episode. command_hz: the environment's control rate, the only one that is possible.

    The specifications are known once it is connected.
    """

    is_lockstep = True

    def __init__(
        self,
        make_env: Callable[[], gymnasium.Env[Any, Any]],
        *,
        name: str = "gym",
        seed: int = 0,
        command_hz: float | None = None,
    ) -> None:
        self.name = name
        self._make_env, self._seed, self._wanted_hz = make_env, seed, command_hz
        self._env: gymnasium.Env[Any, Any] | None = None
        self._last: np.ndarray | None = None

    @classmethod
    def from_id(
        cls, env_id: str, env: Mapping[str, Any] | None = None, *, seed: int = 0, command_hz: float | None = None
    ) -> Self:
        """The environment of an id, or of MODULE:ID, and its options. Raises ConfigurationError if there is none."""
        make_env = environment_maker(env_id, dict(env or {}))
        return cls(
            lambda: make_env(max_episode_steps=-1, disable_env_checker=True),
            name=f"gym:{env_id}",
            seed=seed,
            command_hz=command_hz,
        )

    @property
    def observation_spec(self) -> ObservationSpec:
        """What the environment observes. Raises RobotError before ``connect``."""
        return specs_of(self._connected())[0]

    @property
    def action_spec(self) -> ActionSpec:
        """What its actions are. Raises RobotError before ``connect``."""
        return specs_of(self._connected())[1]

    @property
    def command_hz(self) -> float:
        """The environment's control rate. Raises RobotError before ``connect``."""
        return self.action_spec.control_hz

    def connect(self) -> None:
        """Make the environment, and start an episode.

        Raises RobotError if that fails, ConfigurationError if ``command_hz`` is not the environment's control rate.
        """
        if self._env is not None:
            return
        with self._as_robot_error("be connected"):
            self._env = self._make_env()
        try:
            with self._as_robot_error("be connected"):
                control_hz = specs_of(self._env)[1].control_hz
            if self._wanted_hz not in (None, control_hz):
                raise ConfigurationError(
                    f"command_hz: expected {control_hz:g} Hz, at which {self.name} steps, got {self._wanted_hz}; leave it "
                    "out, or use a simulated robot, which takes commands at any rate"
                )
            self.reset(self._seed)
        except BaseException:
            self.close()
            raise

    def observe(self) -> Reading:
        """The observation of the last step, which is as good as new: nothing moves without a command."""
        self._connected()
        return Reading(self._observation, dict.fromkeys(self._observation, time.monotonic()))

    def command(self, action: np.ndarray) -> None:
        """One step. Raises RobotError if the action is not D finite numbers, or the environment fails."""
        env, spec = self._connected(), self.action_spec
        numbers = np.asarray(action, dtype=np.float64)
        if numbers.shape != (spec.size,) or not np.isfinite(numbers).all():
            raise RobotError(f"{self.name}: expected finite numbers for {list(spec.names)}, got {action}")
        with self._as_robot_error("step"):
            observation, _, _, _, info = env.step(numbers.astype(np.float32))
            self._take(observation, info)
        self._last = numbers

    def hold(self) -> np.ndarray:
        """The action (D,) that keeps it where it is; as nothing moves without a command, none is sent."""
        env = self._connected()
        with self._as_robot_error("hold"):
            return env_hold_action(env, self._observation, last=self._last)

    def reset(self, seed: int) -> None:
        """Start the episode of this seed. Raises RobotError if the environment fails."""
        env = self._connected()
        with self._as_robot_error("start an episode"):
            self._take(*env.reset(seed=seed))
        self._last = None

    def outcome(self) -> Mapping[str, float | bool]:
        """``score`` and ``is_success`` of the episode so far, if the environment reports them."""
        self._connected()
        return {key: self._info[key] for key in OUTCOME if key in self._info}

    def close(self) -> None:
        """Close the environment; may be called more than once."""
        env, self._env = self._env, None
        if env is not None:
            env.close()

    def _take(self, observation: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> None:
        """Keep an observation, as a copy, because environments may return the same arrays again."""
        self._observation = {key: np.array(values) for key, values in observation.items()}
        self._info = with_outcome(info)

    def _connected(self) -> gymnasium.Env[Any, Any]:
        if self._env is None:
            raise RobotError(f"{self.name} is not connected; call connect() first")
        return self._env

    @contextmanager
    def _as_robot_error(self, verb: str) -> Iterator[None]:
        """Whatever an environment raises, as a RobotError."""
        try:
            yield
        except Exception as error:
            kind = "" if isinstance(error, FlowchunkError) else f"{type(error).__name__}: "
            raise RobotError(f"{self.name} cannot {verb}: {kind}{error}") from error
