"""Receding horizon: predict H actions, execute the first few, observe, and predict again.

A wrapper whose action is a whole chunk and whose observation is the recent history, so that policies do not depend on
execution, nor environments on chunks (Diffusion Policy, arXiv:2303.04137, section IV). What is executed when is decided in
``flowchunk.policy.execution``, as on a robot; with a ``VirtualDelay``, predictions take control steps, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Self

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from flowchunk.datasets.errors import ConfigurationError, SimulationError
from flowchunk.envs.contract import with_outcome
from flowchunk.envs.robots.holding import holding_action
from flowchunk.envs.virtual_delay import VirtualDelay
from flowchunk.policy.execution.executor import ChunkExecution, ChunkExecutor, ChunkRequest
from flowchunk.policy.execution.history import ObservationHistory
from flowchunk.policy.execution.policy import Policy
from flowchunk.policy.execution.smoothness import smoothness
from flowchunk.policy.execution.strategies import STRATEGIES

Observation = dict[str, np.ndarray]
Step = tuple[Observation, float, bool, bool, dict[str, Any]]


class RecedingHorizon(gymnasium.Wrapper[Observation, np.ndarray, Observation, np.ndarray]):
    """Execute ``n_action_steps`` of each chunk (H, D); observe the last To observations {key: (To, …)}.

    execution: how chunks are executed, such as ``policy.execution``. delay: the control steps that predictions take; none by
    default. At an episode's start, the first observation is repeated. The reward of a chunk is the sum of its steps'
    rewards; ``info`` is the last step's, with ``steps``, the number of environment steps since the reset, and at the
    episode's end the ``Smoothness`` of what was executed, as ``velocity_jump_at_boundaries`` and so on. With
    strategy="real_time" it also has ``prefix`` (H, D), the actions that will be executed while the next chunk is predicted,
    followed by what the old chunk plans after them, and how many of either: ``prefix_length`` and ``tail_length``.

    ``score`` and ``is_success`` in ``info`` are converted by ``contract.with_outcome``. Raises ConfigurationError for spaces
    other than Dict and Box, and for a delay or actions that the execution does not admit.
    """

    execution: ChunkExecution
    delay: VirtualDelay
    _chunk_shape: tuple[int, ...]
    _history: ObservationHistory
    _executor: ChunkExecutor
    _generator: np.random.Generator
    _request: ChunkRequest
    _steps: int
    _actions: list[np.ndarray]
    _boundaries: list[int]

    def __init__(
        self,
        env: gymnasium.Env[Observation, np.ndarray],
        execution: ChunkExecution,
        *,
        delay: VirtualDelay | None = None,
    ) -> None:
        super().__init__(env)
        space, observations = env.action_space, env.observation_space
        if not isinstance(space, Box) or not isinstance(observations, Dict):
            raise ConfigurationError(
                f"expected an environment with Dict observations and Box actions, but {env} has {observations} and "
                f"{space}; wrap it with gymnasium.ObservationWrapper or gymnasium.ActionWrapper"
            )
        self.execution, self.delay = execution, delay or VirtualDelay()
        execution.check_delay(self.delay.steps)
        if env.has_wrapper_attr("action_spec"):
            execution.check_actions(env.get_wrapper_attr("action_spec"))
        self._chunk_shape = (execution.horizon, *space.shape)
        low, high = (np.broadcast_to(bound, self._chunk_shape) for bound in (space.low, space.high))
        self.action_space = Box(low, high, dtype=space.dtype.type)
        steps = execution.observation_steps
        self.observation_space = Dict({key: _stacked(box, steps) for key, box in observations.items()})
        self._history = ObservationHistory(steps)
        self._executor = self._new_executor()
        self._generator = np.random.default_rng(self.delay.seed)
        self._steps = 0

    @classmethod
    def for_policy(
        cls, env: gymnasium.Env[Observation, np.ndarray], policy: Policy, *, delay: VirtualDelay | None = None
    ) -> Self:
        """Execute chunks as the policy was made to: its observation steps, horizon and number of executed actions."""
        return cls(env, policy.execution, delay=delay)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode, with the first observation repeated as its history."""
        observation, info = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self._generator = np.random.default_rng([self.delay.seed, seed])
        self._history.start(observation)
        self._executor = self._new_executor()
        self._steps = 0
        self._actions, self._boundaries = [], []
        self._request = self._first_request()
        return self._window(), {**info, "steps": 0, **self._request_info()}

    def step(self, chunk: np.ndarray) -> Step:
        """Execute chunks until the next one is to be predicted, or the episode ends.

        ``chunk`` (H, D) takes over after the delay; until then the previous one is executed, or the robot waits, as the
        strategy says. Raises SimulationError for a chunk of another shape, SpecMismatchError for one with
        values that are not finite.
        """
        if np.shape(chunk) != self._chunk_shape:
            raise SimulationError(f"a chunk must be (H, D) = {self._chunk_shape}, but is {np.shape(chunk)}")
        total = 0.0
        for _ in self._steps_until_next_request(np.asarray(chunk)):
            action = self._executor.next_action()
            assert action is not None, "the first chunk takes over at once"
            observation, reward, terminated, truncated, info = self.env.step(action)
            self._steps += 1
            self._actions.append(action)
            self._history.append(observation, self._steps)
            total += float(reward)
            if terminated or truncated:
                info = {**info, **self._smoothness()}
                break
        info = {**with_outcome(info), "steps": self._steps, **self._request_info()}
        return self._window(), total, terminated, truncated, info

    def _new_executor(self) -> ChunkExecutor:
        if not self.has_wrapper_attr("action_spec"):
            return ChunkExecutor(self.execution)
        spec = self.get_wrapper_attr("action_spec")
        return ChunkExecutor(self.execution, hold=lambda last: holding_action(spec, measured=None, last=last))

    def _first_request(self) -> ChunkRequest:
        request = self._executor.request()
        assert request is not None
        return request

    def _steps_until_next_request(self, chunk: np.ndarray) -> Iterator[None]:
        """Yields once for each environment step that is due; the chunk takes over when its delay has passed."""
        is_first = self._executor.step == 0
        delay, is_lost = (0, False) if is_first else self.delay.sample(self._generator)
        for _ in range(delay):
            yield
        if is_lost:
            self._executor.abandon()
        else:
            placement = self._executor.receive(chunk)
            self._boundaries += [] if placement.is_first else [len(self._actions)]
        while (request := self._executor.request()) is None:
            yield
        self._request = request

    def _request_info(self) -> dict[str, Any]:
        """What the next prediction is to continue, for strategies that commit to actions; the arrays have a fixed shape."""
        if not STRATEGIES[self.execution.strategy].commits:
            return {}
        prefix, tail = self._request.prefix, self._request.tail
        planned = np.zeros(self._chunk_shape, np.float32)
        if len(prefix) + len(tail):
            planned[: len(prefix) + len(tail)] = np.concatenate([prefix, tail])
        return {"prefix": planned, "prefix_length": len(prefix), "tail_length": len(tail)}

    def _smoothness(self) -> dict[str, float]:
        hz = self.get_wrapper_attr("action_spec").control_hz if self.has_wrapper_attr("action_spec") else 1.0
        measured = smoothness(np.stack(self._actions), self._boundaries, control_hz=hz)
        return {name: float(value) for name, value in asdict(measured).items()}

    def _window(self) -> Observation:
        window = self._history.window()
        assert window is not None, "a simulation observes every step"
        return window


def _stacked(box: Any, steps: int) -> Box:
    low, high = (np.broadcast_to(bound, (steps, *box.shape)) for bound in (box.low, box.high))
    return Box(low, high, dtype=box.dtype.type)
