"""Execute chunks: when to predict the next one, and which action comes next. Counts control steps, and knows no clock.

executor = ChunkExecutor(execution)
while True:
    if (request := executor.request()) is not None: …  # predict a chunk, here or elsewhere
    if …: executor.receive(chunk)                      # whenever it is there
    action = executor.next_action()                    # one per control step
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flowchunk.datasets.errors import ConfigurationError, SpecMismatchError
from flowchunk.datasets.specs import ActionSpec
from flowchunk.policy.execution.strategies import STRATEGIES, PlacedChunk

DELAYS_REMEMBERED = 10


@dataclass(frozen=True)
class ChunkExecution:
    """How a policy's chunks are executed.

    observation_steps: To, observed. horizon: H, predicted. n_action_steps: executed before the next prediction starts.
    strategy: a name in ``STRATEGIES``. longest_prefix: of committed actions that the policy can continue. delay: the control
    steps that a prediction is expected to take, until the first ones are measured. reanchor_steps: when a new chunk takes
    over, what its first action differs by from the old plan is taken off it, and fades in over so many steps; 0: at once.
    Raises ConfigurationError for sizes and names that cannot be.
    """

    observation_steps: int
    horizon: int
    n_action_steps: int
    strategy: str = "synchronous"
    longest_prefix: int = 0
    delay: int = 0
    reanchor_steps: int = 0

    def __post_init__(self) -> None:
        if self.observation_steps < 1:
            raise ConfigurationError(f"observation_steps={self.observation_steps} must be at least 1")
        if not 1 <= self.n_action_steps <= self.horizon:
            raise ConfigurationError(
                f"n_action_steps={self.n_action_steps} must be from 1 to the horizon, {self.horizon}"
            )
        if self.strategy not in STRATEGIES:
            raise ConfigurationError(f"unknown strategy {self.strategy!r}; there are {', '.join(STRATEGIES)}")
        if self.reanchor_steps < 0:
            raise ConfigurationError(f"reanchor_steps={self.reanchor_steps} must be at least 0")
        self.check_delay(self.delay)

    def check_actions(self, spec: ActionSpec) -> None:
        """Raise ConfigurationError if such actions cannot be executed so, see ``ActionSpec.require_blendable``."""
        if STRATEGIES[self.strategy].blends:
            spec.require_blendable(f"strategy={self.strategy}")
        if self.reanchor_steps:
            spec.require_blendable(f"reanchor_steps={self.reanchor_steps}")

    def check_delay(self, delay: int) -> None:
        """Raise ConfigurationError unless predictions may take so many control steps."""
        if delay < 0:
            raise ConfigurationError(f"delay={delay} must be at least 0 control steps")
        strategy = STRATEGIES[self.strategy]
        if strategy.waits:
            return
        if not delay <= self.n_action_steps <= self.horizon - delay:
            admitted = f"n_action_steps from {max(delay, 1)} to {self.horizon - delay}"
            raise ConfigurationError(
                f"a delay of {delay} control steps with n_action_steps={self.n_action_steps} and horizon={self.horizon}: "
                f"strategy={self.strategy} needs delay <= n_action_steps <= horizon - delay, so "
                f"{admitted if 2 * delay <= self.horizon else 'a longer horizon'}; choose it so, use fewer network "
                "evaluations, or strategy=synchronous"
            )
        if strategy.commits and delay > self.longest_prefix:
            raise ConfigurationError(
                f"a delay of {delay} control steps, but the policy continues at most {self.longest_prefix} committed "
                f"actions: train it with policy.prefix_max={delay}, use prefix_method=guided, or strategy=asynchronous"
            )


@dataclass(frozen=True)
class ChunkRequest:
    """What is to be predicted now.

    step: of the observation, and of the first action of the chunk. prefix: (d, D) actions that will be executed while the
    chunk is predicted, for it to continue; d is 0 for strategies that commit to none. tail: (m, D), what the old chunk plans
    after them. is_padded: whether the old chunk had too few actions, so that its last one is repeated.
    """

    step: int
    prefix: np.ndarray
    tail: np.ndarray
    is_padded: bool = False


@dataclass(frozen=True)
class Placement:
    """How a chunk took over. delay: the actions that were executed since its request. is_first: of the episode; it is
    executed from its first action on. is_late: whether more were executed than it had been given as a prefix. jump: (D,) its
    first executed action minus what would have been executed otherwise, before any re-anchoring.
    """

    step: int
    delay: int
    is_first: bool
    is_late: bool
    jump: np.ndarray


class ChunkExecutor:
    """The state between chunks and actions: one control step per ``next_action`` that takes an action from a chunk.

    Steps in which nothing is planned and the robot is held do not count, because they consume nothing.

    hold: from the last action (D,) to the one that holds the robot there; by default the same, which is right for positions.
    """

    def __init__(
        self, execution: ChunkExecution, *, hold: Callable[[np.ndarray], np.ndarray] = lambda last: last
    ) -> None:
        self.execution, self._hold = execution, hold
        self._strategy = STRATEGIES[execution.strategy]
        self._delays: deque[int] = deque(maxlen=DELAYS_REMEMBERED)
        self.reset()

    def reset(self) -> None:
        """Begin an episode: nothing is planned. Measured delays are remembered."""
        self.step = 0
        self._chunks: list[PlacedChunk] = []
        self._pending: ChunkRequest | None = None
        self._requested_at: int | None = None
        self._last: np.ndarray | None = None
        self._offset: np.ndarray = np.zeros(1)
        self._offset_step = 0

    @property
    def delay(self) -> int:
        """The control steps that a prediction is expected to take: the most of the last ten."""
        return max(self._delays, default=self.execution.delay)

    @property
    def is_waiting(self) -> bool:
        """Whether a requested chunk has not arrived."""
        return self._pending is not None

    def request(self) -> ChunkRequest | None:
        """What is to be predicted now; None while a prediction is under way, or before ``n_action_steps`` are executed."""
        if self._pending is not None:
            return None
        if self._requested_at is not None and self.step - self._requested_at < self.execution.n_action_steps:
            return None
        self._pending, self._requested_at = self._make_request(), self.step
        return self._pending

    def receive(self, chunk: np.ndarray) -> Placement:
        """Take the requested chunk (H, D) over. Raises SpecMismatchError for another shape or values that are not finite."""
        if self._pending is None:
            raise AssertionError("a chunk was received that had not been requested")
        chunk = np.array(chunk)  # a copy: the caller may use its array again
        if chunk.ndim != 2 or len(chunk) != self.execution.horizon:
            raise SpecMismatchError(f"a chunk must be (H, D) = ({self.execution.horizon}, D), but is {chunk.shape}")
        if not np.isfinite(chunk).all():
            raise SpecMismatchError(
                "the predicted chunk has values that are not finite (NaN or infinite); hold, and check the policy"
            )
        request, self._pending = self._pending, None
        is_first, delay = not self._chunks, self.step - request.step
        planned = self._planned(self.step)
        otherwise = self._hold(self._last) if planned is None and self._last is not None else planned
        usable = self.execution.n_action_steps if self._strategy.waits else len(chunk)
        self._chunks = [old for old in self._chunks if old.end > self.step] + [
            PlacedChunk(request.step, chunk[:usable])
        ]
        target = self._strategy.target(self._chunks, self.step)
        jump = np.zeros(chunk.shape[1]) if otherwise is None or target is None else target - otherwise
        if self.execution.reanchor_steps:
            self._offset, self._offset_step = -jump, self.step
        if not is_first:
            self._delays.append(delay)
        is_late = self._strategy.commits and not is_first and delay > len(request.prefix)
        return Placement(self.step, delay, is_first, is_late, jump)

    def abandon(self) -> None:
        """Give up on the requested chunk, which was lost; ``request`` asks for another one at once."""
        self._pending, self._requested_at = None, None

    def next_action(self) -> np.ndarray | None:
        """The action (D,) to command now; the one that holds if nothing is planned, None before the first chunk."""
        action = self._planned(self.step)
        if action is None:
            return None if self._last is None else self._hold(self._last)
        self.step, self._last = self.step + 1, action
        return action

    def upcoming(self) -> np.ndarray:
        """(n, D), what is planned from the current step on; n may be 0."""
        end = max((chunk.end for chunk in self._chunks), default=self.step)
        planned = [self._planned(step) for step in range(self.step, end)]
        found = [action for action in planned if action is not None]
        return np.stack(found) if found else np.zeros((0, 0 if self._last is None else len(self._last)))

    def _planned(self, step: int) -> np.ndarray | None:
        action = self._strategy.target(self._chunks, step)
        if action is None or not self.execution.reanchor_steps:
            return action
        return action + self._offset * max(0.0, 1 - (step - self._offset_step) / self.execution.reanchor_steps)

    def _make_request(self) -> ChunkRequest:
        planned = self.upcoming()
        if not self._strategy.commits or self._last is None:
            nothing = planned[:0]
            return ChunkRequest(self.step, nothing, nothing)
        length = min(self.delay, self.execution.longest_prefix)
        prefix, tail = planned[:length], planned[length:]
        missing = length - len(prefix)
        if missing:
            held = self._hold(prefix[-1] if len(prefix) else self._last)
            prefix = np.concatenate([prefix.reshape(-1, len(held)), np.repeat(held[None], missing, axis=0)])
        return ChunkRequest(self.step, prefix, tail[: self.execution.horizon - length], is_padded=missing > 0)
