"""How good a policy is in simulation, as the trainer asks it to choose the best checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium

from flowchunk.envs.rollout import SELECTION_SEED, rollout
from flowchunk.policy.chunk_policy import ChunkPolicy

Scores = dict[str, float]


def evaluate_in(
    make_env: Callable[[], gymnasium.Env[Any, Any]],
    *,
    episodes: int = 50,
    seed: int = SELECTION_SEED,
    nfe: int | None = None,
) -> Callable[[ChunkPolicy], Scores]:
    """A function that measures a policy in so many episodes: ``fit(…, evaluate=evaluate_in(make_env))``.

    It gives ``score_mean``, ``success_rate`` and their mean ``score``, which chooses the best: either alone is noisy in so
    few episodes. seed: of the first episode; do not report on these seeds. nfe: by default the policy's own. Raises
    SimulationError as ``rollout`` does.
    """

    def evaluate(policy: ChunkPolicy) -> Scores:
        result = rollout(policy, make_env, policy.execution, episodes=episodes, seed=seed, nfe=nfe)
        score = (result.score_mean + result.success_rate) / 2
        return {"score": score, "score_mean": result.score_mean, "success_rate": result.success_rate}

    return evaluate
