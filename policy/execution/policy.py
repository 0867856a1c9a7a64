"""What executing chunks requires of a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from flowchunk.datasets.specs import ActionSpec, ObservationSpec
from flowchunk.policy.execution.executor import ChunkExecution


@runtime_checkable
class Policy(Protocol):
    """Anything that predicts chunks of actions, such as ``ChunkPolicy``; ``check_policy`` tests yours.

    observation_spec, action_spec: what it observes and what its actions are. execution: how its chunks are meant to be
    executed, with its observation steps, horizon, and the longest prefix that it can continue.
    """

    @property
    def observation_spec(self) -> ObservationSpec: ...

    @property
    def action_spec(self) -> ActionSpec: ...

    @property
    def execution(self) -> ChunkExecution: ...

    def predict_chunk(
        self,
        observation: Mapping[str, np.ndarray],
        *,
        nfe: int | None = None,
        seed: int | Sequence[int] | None = None,
        prefix: np.ndarray | None = None,
        tail: np.ndarray | None = None,
    ) -> np.ndarray:
        """Actions (B, H, D) for observations {key: (B, To, …)}, both in the units of the specs.

        seed: of the noise, one or one per row. prefix: (B, d, D), actions that are already committed, with which the chunk
        begins; d is at most ``execution.longest_prefix``. tail: (B, m, D), what the previous chunk planned after them.
        """
        ...
