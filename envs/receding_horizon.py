"""Receding horizon: predict H actions, execute the first few, observe, and predict again.

A wrapper whose action is a whole chunk and whose observation is the recent history, so that policies do not depend on
execution, nor environments on chunks (Diffusion Policy, arXiv:2303.04137, section IV).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Self

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from flowchunk.datasets.errors import ConfigurationError, SimulationError
from flowchunk.envs.contract import with_outcome

if TYPE_CHECKING:
    from flowchunk.policy.chunk_policy import ChunkPolicy

Observation = dict[str, np.ndarray]
Step = tuple[Observation, float, bool, bool, dict[str, Any]]


class RecedingHorizon(gymnasium.Wrapper[Observation, np.ndarray, Observation, np.ndarray]):
    """Execute ``n_action_steps`` of each chunk (H, D); observe the last ``observation_steps`` observations {key: (To, …)}.

    At an episode's start, the first observation is repeated. The reward of a chunk is the sum of its steps' rewards;
    ``info`` is the last step's, with ``steps``, the number of environment steps since the reset. After
    ``reset(options={"idle": True})``, chunks have no effect until the next reset, so that in a vector environment a slot
    without an episode costs nothing.

    ``score`` and ``is_success`` in ``info`` are converted by ``contract.with_outcome``. Raises ConfigurationError for
    inconsistent sizes, and for spaces other than Dict and Box.
    """

    n_action_steps: int
    _steps: int
    _idle: bool

    def __init__(
        self,
        env: gymnasium.Env[Observation, np.ndarray],
        *,
        observation_steps: int,
        horizon: int,
        n_action_steps: int,
    ) -> None:
        super().__init__(env)
        if not 1 <= n_action_steps <= horizon or observation_steps < 1:
            raise ConfigurationError(
                f"n_action_steps={n_action_steps}, horizon={horizon}, observation_steps={observation_steps}: "
                "expected 1 <= n_action_steps <= horizon and 1 <= observation_steps"
            )
        space, observations = env.action_space, env.observation_space
        if not isinstance(space, Box) or not isinstance(observations, Dict):
            raise ConfigurationError(
                f"expected an environment with Dict observations and Box actions, but {env} has {observations} and "
                f"{space}; wrap it with gymnasium.ObservationWrapper or gymnasium.ActionWrapper"
            )
        self.action_space = Box(
            np.broadcast_to(space.low, (horizon, *space.shape)),
            np.broadcast_to(space.high, (horizon, *space.shape)),
            dtype=space.dtype.type,
        )
        self.observation_space = Dict({key: _stacked(box, observation_steps) for key, box in observations.items()})
        self.n_action_steps = n_action_steps
        self._history: deque[Observation] = deque(maxlen=observation_steps)
        self._steps = 0
        self._idle = False

    @classmethod
    def for_policy(cls, env: gymnasium.Env[Observation, np.ndarray], policy: ChunkPolicy) -> Self:
        """Execute chunks as the policy was made to: its observation steps, horizon and number of executed actions."""
        config = policy.config
        return cls(
            env,
            observation_steps=config.observation_steps,
            horizon=config.horizon,
            n_action_steps=config.n_action_steps,
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode, with the first observation repeated as its history; or idle, with ``options={"idle": True}``.

        All other options are passed to the environment. Raises SimulationError for idling before the first episode.
        """
        options = dict(options or {})
        self._idle = bool(options.pop("idle", False))
        if self._idle:
            if not self._history:
                raise SimulationError(
                    "an environment can only idle after its first episode; reset it without idle first"
                )
            return self._observation(), {"steps": self._steps}
        observation, info = self.env.reset(seed=seed, options=options or None)
        self._history.extend([observation] * (self._history.maxlen or 1))
        self._steps = 0
        return self._observation(), {**info, "steps": 0}

    def step(self, chunk: np.ndarray) -> Step:
        """Execute the first ``n_action_steps`` actions of the chunk (H, D), or fewer if the episode ends."""
        if self._idle:
            return self._observation(), 0.0, False, False, {}
        if np.shape(chunk) != self.action_space.shape:
            raise SimulationError(f"a chunk must be (H, D) = {self.action_space.shape}, but is {np.shape(chunk)}")
        total = 0.0
        for action in chunk[: self.n_action_steps]:
            observation, reward, terminated, truncated, info = self.env.step(action)
            self._history.append(observation)
            self._steps += 1
            total += float(reward)
            if terminated or truncated:
                break
        return self._observation(), total, terminated, truncated, {**with_outcome(info), "steps": self._steps}

    def _observation(self) -> Observation:
        return {key: np.stack([observation[key] for observation in self._history]) for key in self._history[-1]}


def _stacked(box: Any, steps: int) -> Box:
    low, high = (np.broadcast_to(bound, (steps, *box.shape)) for bound in (box.low, box.high))
    return Box(low, high, dtype=box.dtype.type)
