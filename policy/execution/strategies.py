"""How chunks that were predicted at different times become one sequence of actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

AGE_DECAY = 0.01  # of temporal ensembling, per chunk; as in ACT (2304.13705)


@dataclass(frozen=True)
class PlacedChunk:
    """A chunk (n, D) whose first action belongs to control step ``start``."""

    start: int
    actions: np.ndarray

    @property
    def end(self) -> int:
        """The first step that it has no action for."""
        return self.start + len(self.actions)

    def covers(self, step: int) -> bool:
        """Whether it has an action for this step."""
        return self.start <= step < self.end

    def at(self, step: int) -> np.ndarray:
        """Its action (D,) for this step."""
        return np.asarray(self.actions[step - self.start])


def newest(chunks: Sequence[PlacedChunk], step: int) -> np.ndarray | None:
    """The newest chunk's action (D,) for this step; None if it has none."""
    return chunks[-1].at(step) if chunks and chunks[-1].covers(step) else None


def temporal_ensemble(chunks: Sequence[PlacedChunk], step: int) -> np.ndarray | None:
    """The mean of all chunks' actions (D,) for this step, older ones weighing slightly more (ACT, 2304.13705)."""
    actions = [chunk.at(step) for chunk in chunks if chunk.covers(step)]
    if not actions:
        return None
    weights = np.exp(-AGE_DECAY * np.arange(len(actions)))
    mean: np.ndarray = np.tensordot(weights / weights.sum(), np.stack(actions), axes=1)
    return mean


@dataclass(frozen=True)
class Strategy:
    """What is executed while a chunk is predicted, and afterwards.

    target: the action for a step, from the chunks so far, oldest first. waits: whether the robot holds still until the new
    chunk is there, so that no action of the old one is executed meanwhile. commits: whether the actions that will be executed
    meanwhile are given to the policy as a prefix, which the new chunk continues (real-time chunking, 2506.07339, 2512.05964).
    blends: whether actions are averaged.
    """

    target: Callable[[Sequence[PlacedChunk], int], np.ndarray | None]
    waits: bool = False
    commits: bool = False
    blends: bool = False


STRATEGIES: dict[str, Strategy] = {
    "synchronous": Strategy(newest, waits=True),
    "asynchronous": Strategy(newest),
    "temporal_ensemble": Strategy(temporal_ensemble, blends=True),
    "real_time": Strategy(newest, commits=True),
}
