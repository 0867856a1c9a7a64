"""From plans to commands: interpolation to the robot's rate, limits, the approach to the first target, and holding."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.specs import ActionSpec
from flowchunk.envs.control.limiter import VELOCITY, MotionLimits, limit_plan
from flowchunk.envs.robots.holding import holding_action

STALE_AFTER = 1.5  # control periods after which a plan that was not renewed is stale
ALIGNED = 1e-6  # of a period: times that are meant to be equal
ARRIVED = 1e-9  # in the unit of the action


@dataclass
class CommandStream:
    """The commands of a robot, in the policy's order of action dimensions.

    action_spec: with the rate of the plans' targets. limits: of motion. rate: of commands, at least as high. ramp: the
    fraction of the velocity limits at which the first target is approached. interventions: what changed the plan since this
    was last emptied, as (kind, dimensions).

    At equal rates every target is commanded as it is due. At a higher rate commands go in a straight line from wherever they
    are to the next target, to be there when it is due, so that a new chunk never makes them jump.
    """

    action_spec: ActionSpec
    limits: MotionLimits
    rate: float
    ramp: float = 0.25
    last: np.ndarray | None = None
    interventions: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0 < self.control_hz <= self.rate:
            raise ConfigurationError(
                f"rate={self.rate:g}: a robot needs at least as many commands per second as the chunk has actions, "
                f"{self.control_hz:g}; chunks are never rescaled in time"
            )
        displaced = [one.name for one in self.action_spec.dimensions if one.quantity == "displacement"]
        if displaced and self.rate != self.control_hz:
            raise ConfigurationError(
                f"rate={self.rate:g}: {displaced} are displacements per control step, which cannot be interpolated; give "
                f"rate={self.control_hz:g}, or train with absolute actions"
            )
        if self.rate != self.control_hz:
            self.action_spec.require_blendable(f"rate={self.rate:g} of {self.control_hz:g} actions per second")
        self._targets: np.ndarray | None = None
        self._planned: np.ndarray | None = None  # as it was given; None if the commands have left it
        self._start, self._last_time = 0.0, -np.inf
        self._approached: np.ndarray | None = None
        self._velocity = np.zeros(len(self.limits.low))

    @property
    def control_hz(self) -> float:
        """The rate of the plans' targets."""
        return self.action_spec.control_hz

    @property
    def period(self) -> float:
        """Seconds between two targets of a plan."""
        return 1 / self.control_hz

    def hold_at(self, action: np.ndarray | None) -> None:
        """Forget the plan; the robot is held by this action (D,), or is where nobody knows."""
        self._targets = self._planned = self._approached = None
        self.last = None if action is None else np.asarray(action, np.float64)
        self._last_time, self._velocity = -np.inf, np.zeros(len(self.limits.low))

    def approach(self, target: np.ndarray) -> None:
        """Move to the first target slowly, what is no position held at 0; places that are unknown are commanded at once."""
        self._targets = self._planned = None
        within = np.clip(np.asarray(target, np.float64), self.limits.low, self.limits.high)
        self._approached = holding_action(self.action_spec, measured=None, last=within)

    def out_of_reach(self) -> list[int]:
        """Dimensions of the target that is approached which would have to move, and must not."""
        if self._approached is None or self.last is None:
            return []
        is_fixed = self.limits.is_position & (self.limits.velocity == 0)
        return np.flatnonzero(is_fixed & ~np.isclose(self.last, self._approached, rtol=0, atol=ARRIVED)).tolist()

    @property
    def has_arrived(self) -> bool:
        """Whether the target that is approached is reached."""
        return (
            self._approached is not None
            and self.last is not None
            and bool(np.allclose(self.last, self._approached, rtol=0, atol=ARRIVED))
        )

    def play(self, start: float, targets: np.ndarray) -> None:
        """Take a plan over: targets (n, D) from ``start`` on. What is still to come of it is limited as a whole.

        The rest of a plan that is followed already is not limited again: that takes milliseconds for each dimension.
        """
        targets = np.asarray(targets, np.float64)
        self._approached = None
        sent = (self._last_time - start) / self.period if np.isfinite(self._last_time) else -1.0
        first = int(np.clip(np.floor(sent + ALIGNED) + 1, 0, len(targets) - 1))  # the first that is not yet commanded
        last = targets[first] if self.last is None else self.last
        if (rest := self._rest_of_plan(start, targets)) is not None:
            upcoming = rest[first:]
        else:
            before = last - np.where(self.limits.is_position, self._velocity * self.period, 0.0)
            limited = limit_plan(targets[first:], np.stack([before, last]), self.limits, hz=self.control_hz)
            upcoming = limited.targets
            self.interventions += list(limited.interventions.items())
        self._targets = np.concatenate([np.repeat(last[None], first, axis=0), upcoming])
        self._planned, self._start = targets, start

    def _rest_of_plan(self, start: float, targets: np.ndarray) -> np.ndarray | None:
        """The limited targets from ``start`` on, if these are what is left of the plan that is followed."""
        if self._planned is None or self._targets is None:
            return None
        steps = (start - self._start) / self.period
        place = round(steps)
        if place < 0 or abs(steps - place) > ALIGNED or not np.array_equal(targets, self._planned[place:]):
            return None
        return self._targets[place:]

    @property
    def target(self) -> np.ndarray | None:
        """The target (D,) of the plan's first step, after all limits; None without a plan."""
        return None if self._targets is None else self._targets[0]

    def is_stale(self, time: float) -> bool:
        """Whether the plan was not renewed in time, or there is none."""
        if self._approached is not None:
            return False
        return self._targets is None or time - self._start > STALE_AFTER * self.period

    def command(self, time: float) -> np.ndarray | None:
        """The command (D,) at this time (the nominal one of a tick); None where there is nothing to command."""
        if self._approached is not None:
            command = self._approach(self._approached)
        elif self._targets is None:
            return None
        else:
            command = self._follow(self._targets, time)
        return self._sent(command, time)

    def hold_still(self, time: float) -> np.ndarray | None:
        """The command (D,) that stops where the commands are: the last position, and 0 for all that moves by itself."""
        if self.last is None:
            return None
        self._planned = None
        return self._sent(holding_action(self.action_spec, measured=None, last=self.last), time)

    def _follow(self, targets: np.ndarray, time: float) -> np.ndarray:
        index = int(np.clip(np.ceil((time - self._start) / self.period - ALIGNED), 0, len(targets) - 1))
        target, due = targets[index], self._start + index * self.period
        if self.last is None or self.rate == self.control_hz:
            return target
        since = self._last_time if np.isfinite(self._last_time) else time - 1 / self.rate
        fraction = min(1.0, (time - since) / (due - since)) if due > since else 1.0
        wanted = self.last + (target - self.last) * fraction
        step = np.where(self.limits.is_position, self.limits.velocity / self.rate, np.inf) * (1 + 1e-6)
        reached = np.clip(wanted, self.last - step, self.last + step)
        if not np.array_equal(reached, wanted):
            self._planned = None
            self.interventions.append((VELOCITY, tuple(np.flatnonzero(reached != wanted).tolist())))
        return np.asarray(reached)

    def _approach(self, target: np.ndarray) -> np.ndarray:
        if self.last is None:
            return target
        step = np.where(self.limits.is_position, self.ramp * self.limits.velocity / self.rate, np.inf)
        return np.clip(target, self.last - step, self.last + step)

    def _sent(self, command: np.ndarray, time: float) -> np.ndarray:
        gap = time - self._last_time
        moved = np.zeros_like(command) if self.last is None else command - self.last
        self._velocity = moved / gap if np.isfinite(gap) and gap > 0 else np.zeros_like(command)
        self.last, self._last_time = command, time
        return command
