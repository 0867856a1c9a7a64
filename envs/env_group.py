"""Several environments that are reset and stepped together, in this process or spread over others."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.vector.utils import CloudpickleWrapper

from flowchunk.datasets import errors
from flowchunk.datasets.errors import ConfigurationError, FlowchunkError, SimulationError
from flowchunk.envs.failed_episodes import described
from flowchunk.envs.interrupts import without_interrupts

CLOSING_TIME = 5.0  # s, after which a process is killed
MakeEnv = Callable[[], gymnasium.Env[Any, Any]]


@dataclass(frozen=True)
class EnvStep:
    """What one environment returned; ``is_over``: the episode has ended."""

    observation: Mapping[str, np.ndarray]
    info: Mapping[str, Any]
    is_over: bool = False


class EnvGroup(Protocol):
    """Numbered environments. The mappings say which of them are meant, and the results are of those alone."""

    def reset(self, seeds: Mapping[int, int]) -> dict[int, EnvStep]:
        """Start episodes with these seeds."""
        ...

    def step(self, actions: Mapping[int, np.ndarray]) -> dict[int, EnvStep]:
        """Step with these actions."""
        ...

    def close(self) -> None:
        """Close all of them."""
        ...


def make_group(make_env: MakeEnv, num_envs: int, *, processes: int) -> EnvGroup:
    """So many environments; with more than one process, each of them steps its share. Raises ConfigurationError."""
    if processes < 1:
        raise ConfigurationError(f"processes={processes} must be at least 1")
    if min(processes, num_envs) == 1:
        return LocalEnvs(make_env, range(num_envs))
    return ProcessEnvs(make_env, num_envs, processes=min(processes, num_envs))


class LocalEnvs:
    """Environments in this process, stepped one after another; see ``EnvGroup``."""

    def __init__(self, make_env: MakeEnv, numbers: Collection[int]) -> None:
        self._envs = {number: make_env() for number in numbers}

    def reset(self, seeds: Mapping[int, int]) -> dict[int, EnvStep]:
        """See ``EnvGroup``."""
        return {number: EnvStep(*self._envs[number].reset(seed=seed)) for number, seed in seeds.items()}

    def step(self, actions: Mapping[int, np.ndarray]) -> dict[int, EnvStep]:
        """See ``EnvGroup``."""
        return {number: _step(self._envs[number], action) for number, action in actions.items()}

    def close(self) -> None:
        """See ``EnvGroup``."""
        for env in self._envs.values():
            env.close()


def _step(env: gymnasium.Env[Any, Any], action: np.ndarray) -> EnvStep:
    observation, _, terminated, truncated, info = env.step(action)
    return EnvStep(observation, info, bool(terminated or truncated))


class ProcessEnvs:
    """Environments spread over this process and spawned ones; see ``EnvGroup``.

    Environment i is in process i modulo their number, so that few that are left are spread, too; this process is the first,
    and steps its share while the others step theirs. What those raise is raised here: our own errors as they are, others as
    SimulationError. Ctrl-C is for this process alone, whose ``close`` ends the others; if it is killed, they end by
    themselves.
    """

    def __init__(self, make_env: MakeEnv, num_envs: int, *, processes: int) -> None:
        self._connections: list[Connection] = []
        self._processes: list[SpawnProcess] = []
        self._ours = LocalEnvs(make_env, ())
        try:
            for index in range(1, processes):
                self._start(make_env, range(index, num_envs, processes))
            self._ours = LocalEnvs(make_env, range(0, num_envs, processes))
            for index in range(1, processes):
                self._receive(index)
        except BaseException:
            self.close()
            raise

    def reset(self, seeds: Mapping[int, int]) -> dict[int, EnvStep]:
        """See ``EnvGroup``."""
        return self._call("reset", seeds)

    def step(self, actions: Mapping[int, np.ndarray]) -> dict[int, EnvStep]:
        """See ``EnvGroup``."""
        return self._call("step", actions)

    def close(self) -> None:
        """Close all, and end the processes; those that do not end within ``CLOSING_TIME`` are killed."""
        self._ours.close()
        for connection in self._connections:
            connection.close()
        end = time.monotonic() + CLOSING_TIME
        for process in self._processes:
            process.join(max(0.0, end - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()

    def _start(self, make_env: MakeEnv, numbers: Sequence[int]) -> None:
        context = multiprocessing.get_context("spawn")
        connection, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, CloudpickleWrapper(make_env), numbers), daemon=True)
        with without_interrupts():
            process.start()
            self._connections.append(connection)
            self._processes.append(process)
        theirs.close()  # so that its death closes the pipe

    def _call(self, method: str, arguments: Mapping[int, Any]) -> dict[int, EnvStep]:
        shares: list[dict[int, Any]] = [{} for _ in range(1 + len(self._processes))]
        for number, argument in arguments.items():
            shares[number % len(shares)][number] = argument
        called = [index for index, share in enumerate(shares) if share and index > 0]
        for index in called:
            with suppress(OSError):  # it has ended, which receiving explains
                self._connections[index - 1].send((method, shares[index]))
        results: dict[int, EnvStep] = getattr(self._ours, method)(shares[0])
        for index in called:
            results |= self._receive(index)
        return results

    def _receive(self, index: int) -> dict[int, EnvStep]:
        """The answer of a process, of which this one has the index 0. Raises what failed there."""
        try:
            answer = self._connections[index - 1].recv()
        except (EOFError, OSError) as error:
            process = self._processes[index - 1]
            process.join(CLOSING_TIME)
            raise SimulationError(
                f"process {index + 1} of {len(self._processes) + 1} that step environments ended unexpectedly (exit code "
                f"{process.exitcode}); try processes=1, or a smaller num_envs if memory ran out"
            ) from error
        if isinstance(answer, _Failure):
            raise getattr(errors, answer.kind, SimulationError)(answer.message)
        steps: dict[int, EnvStep] = answer
        return steps


@dataclass(frozen=True)
class _Failure:
    kind: str
    message: str


def _serve(connection: Connection, make_env: MakeEnv, numbers: Sequence[int]) -> None:
    """Make environments, and answer calls until the connection is closed; the first answer says that they are made."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    made = _answer(lambda: LocalEnvs(make_env, numbers))
    answer: Any = made if isinstance(made, _Failure) else {}
    with suppress(EOFError, OSError):  # the process that started this one closed the connection, or is gone
        connection.send(answer)
        while not isinstance(answer, _Failure):
            method, arguments = connection.recv()
            answer = _answer(partial(getattr(made, method), arguments))
            connection.send(answer)
    if not isinstance(made, _Failure):
        made.close()


def _answer(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # it is raised again where the call comes from
        kind = type(error) if isinstance(error, FlowchunkError) else SimulationError
        return _Failure(kind.__name__, described(error))
