"""A task that moves as a robot does: by its newest command, or holding still for a reason."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any, TextIO

import gymnasium
import numpy as np

from flowchunk.datasets.errors import RobotError, SimulationError
from flowchunk.envs.contract import specs_of
from flowchunk.envs.robots.env_holding import env_hold_action
from flowchunk.envs.robots.lossy_channel import LossyChannel

TIMEOUT_PERIODS = 1.5  # of control, so that commands that come once per period are not late for being a little late


class EventLog:
    """A file with a line of JSON for each event, which is complete as soon as it is written; nothing if the path is None."""

    def __init__(self, path: Path | None) -> None:
        self._file: TextIO | None = None if path is None else path.open("w", buffering=1)
        self._lock = threading.Lock()

    def write(self, event: str, **values: Any) -> None:
        """One event. Its time is that of ``time.monotonic()``, in seconds, unless it is given."""
        with self._lock:
            if self._file is not None:
                self._file.write(json.dumps({"time": time.monotonic(), "event": event, **values}) + "\n")

    def close(self) -> None:
        """Close the file; later events are not written. May be called more than once."""
        with self._lock:
            if self._file is not None:
                self._file.close()
            self._file = None


class SimulatedTask:
    """A Gymnasium task without an end, and the target that it follows; its methods may be called from several threads.

    command_timeout: seconds after the newest command until it holds by itself. channel: how commands arrive. The log holds
    a line per ``step`` and per ``command``. Raises SimulationError if the environment has no specifications.
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], *, command_timeout: float | None, channel: LossyChannel, log: EventLog
    ) -> None:
        self.observation_spec, self.action_spec = specs_of(env)
        self.period = 1 / self.action_spec.control_hz
        self.command_timeout = TIMEOUT_PERIODS * self.period if command_timeout is None else command_timeout
        self._env, self._channel, self._log = env, channel, log
        self._lock = threading.RLock()
        self._waiting: list[tuple[float, np.ndarray]] = []
        self._num_commands = self._num_steps = 0
        self._arrived = -np.inf
        self._holding: str | None = None

    def reset(self, seed: int, channel: LossyChannel) -> None:
        """Start the episode of this seed, with a new channel for commands, and hold."""
        with self._lock:
            self._observation, info = self._env.reset(seed=seed)
            self._outcome = _outcome(info)
            self._target: np.ndarray | None = None
            self._channel, self._holding, self._num_commands = channel, None, 0
            self._log.write("reset", seed=seed)
            self.hold("reset")

    def command(self, action: np.ndarray | None, now: float) -> None:
        """Take a command (D,), which may still be on its way. Raises RobotError, and holds, if it cannot be followed."""
        with self._lock:
            problem = _problem(action, self.action_spec.size)
            if problem is not None or action is None:
                self._log.write("command", index=self._num_commands, refused=problem)
                self.hold("a command was refused")
                raise RobotError(f"a command was refused, and the robot holds: {problem}")
            travel_time = self._channel.travel_time()
            self._log.write(
                "command", time=now, index=self._num_commands, travel_time=travel_time, action=action.tolist()
            )
            self._num_commands += 1
            if travel_time is not None:
                self._waiting.append((now + travel_time, action))

    def hold(self, reason: str) -> np.ndarray:
        """Hold from now on, whatever commands are still on their way; returns the action (D,) that does it."""
        with self._lock:
            self._waiting.clear()
            if self._holding is None or self._target is None:
                self._target = env_hold_action(self._env, self._observation, last=self._target)
            if self._holding is None:
                self._log.write("hold", reason=reason)
            self._holding = reason
            return self._target.copy()

    def step(self, late: float) -> dict[str, np.ndarray]:
        """One control step by the newest command that has arrived; returns the observation. late: seconds, for the log.

        Raises SimulationError if the environment cannot be stepped.
        """
        with self._lock:
            now = time.monotonic()
            self._take_arrived(now)
            if self._holding is None and now - self._arrived > self.command_timeout:
                self.hold("no command in time")
            assert self._target is not None
            self._log.write(
                "step", time=now, step=self._num_steps, late=late, target=self._target.tolist(), holding=self._holding
            )
            self._num_steps += 1
            self._observation, _, _, _, info = self._env.step(self._target.astype(np.float32))
            self._outcome = _outcome(info)
            return self._observation

    def outcome(self) -> dict[str, Any]:
        """Score and success of the episode so far."""
        with self._lock:
            return dict(self._outcome)

    def _take_arrived(self, now: float) -> None:
        """Follow the newest command that has arrived; one that was sent before it and arrives later is ignored."""
        for place, (arrival, action) in reversed(list(enumerate(self._waiting))):
            if arrival <= now:
                self._arrived, self._target, self._holding = arrival, action, None
                del self._waiting[: place + 1]
                return


def _problem(action: np.ndarray | None, size: int) -> str | None:
    """What is wrong with a command, None if nothing is."""
    if action is None or action.shape != (size,):
        got = "none" if action is None else f"shape {action.shape}"
        return f"expected {size} numbers, got {got}; correct what sends commands"
    if not np.isfinite(action).all():
        return f"expected finite numbers, got {action.tolist()}; correct what sends commands"
    return None


def _outcome(info: dict[str, Any]) -> dict[str, Any]:
    """What the info says of the episode; nothing for environments without an outcome."""
    try:
        return {"score": float(info["score"]), "is_success": bool(info["is_success"])}
    except KeyError:
        return {}
    except (TypeError, ValueError) as error:
        raise SimulationError(f"the info of a step has no usable score and is_success: {info} ({error})") from error
