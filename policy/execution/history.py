"""The latest observations, as a policy takes them: real measurements, one control period apart."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np

from flowchunk.datasets.errors import ConfigurationError

TOLERANCE = 0.5  # of a period: how far a measurement may be from the time that it stands for


class ObservationHistory:
    """The To latest observations, from measurements that bring their own times.

    observation_steps: To. period: the time between two of them, in the unit of the times that ``append`` is given: seconds
    on a robot, 1 for the counted steps of a simulation. Sensors may be faster than that, each with its own rhythm: every
    key is looked up by time. Raises ConfigurationError unless both are positive.
    """

    def __init__(self, observation_steps: int, *, period: float = 1.0) -> None:
        if observation_steps < 1 or not 0 < period < float("inf"):
            raise ConfigurationError(
                f"observation_steps={observation_steps}, period={period}: expected at least 1 step and a positive period"
            )
        self.observation_steps, self.period = observation_steps, period
        self._frames: dict[str, deque[tuple[float, np.ndarray]]] = {}

    def start(self, observation: Mapping[str, np.ndarray], time: float | Mapping[str, float] = 0.0) -> None:
        """Begin an episode: its first observation also stands for the steps before it, as in training."""
        self._frames = {
            key: deque((newest - steps * self.period, value) for steps in reversed(range(self.observation_steps)))
            for key, newest, value in _timed(observation, time)
        }

    def append(self, observation: Mapping[str, np.ndarray], time: float | Mapping[str, float]) -> None:
        """Add measurements {key: value}, made at ``time`` (one time, or one for each key).

        A value whose time is not later than the last one of its key is the same measurement again, and is ignored.
        """
        for key, now, value in _timed(observation, time):
            frames = self._frames[key]
            if now <= frames[-1][0]:
                continue
            frames.append((now, value))
            while frames[1][0] < now - (self.observation_steps - 1 + TOLERANCE) * self.period:
                frames.popleft()

    def missing(self) -> list[str]:
        """The keys without a measurement for each of the To steps, which end at their newest one."""
        return [key for key in self._frames if self._window(key) is None]

    def window(self) -> dict[str, np.ndarray] | None:
        """{key: (To, …)}, the newest last, no measurement twice; None if one is missing, see ``missing``."""
        windows = {}
        for key in self._frames:
            if (frames := self._window(key)) is None:
                return None
            windows[key] = np.stack(frames)
        return windows

    def _window(self, key: str) -> list[np.ndarray] | None:
        frames = self._frames[key]
        if len(frames) == self.observation_steps and self._is_regular(frames):
            return [value for _, value in frames]
        newest, found = frames[-1][0], []
        for steps in reversed(range(self.observation_steps)):
            wanted = newest - steps * self.period
            time, value = min(frames, key=lambda frame: abs(frame[0] - wanted))
            if abs(time - wanted) >= TOLERANCE * self.period:
                return None
            found.append(value)
        return found

    def _is_regular(self, frames: deque[tuple[float, np.ndarray]]) -> bool:
        newest, last = frames[-1][0], self.observation_steps - 1
        return all(
            abs(time - newest + (last - place) * self.period) < TOLERANCE * self.period
            for place, (time, _) in enumerate(frames)
        )


def _timed(
    observation: Mapping[str, np.ndarray], time: float | Mapping[str, float]
) -> list[tuple[str, float, np.ndarray]]:
    times = time if isinstance(time, Mapping) else dict.fromkeys(observation, time)
    return [(key, float(times[key]), np.asarray(value)) for key, value in observation.items()]
