"""Run a policy for many episodes in parallel, with one batched inference per round over all environments.

The environments may be spread over processes. Slots, batches and noise do not depend on that, so neither do the results.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from flowchunk.datasets.errors import ConfigurationError, SimulationError
from flowchunk.datasets.specs import ObservationSpec
from flowchunk.envs.contract import observation_spec_of, require_outcome
from flowchunk.envs.env_group import EnvGroup, EnvStep, make_group
from flowchunk.envs.failed_episodes import ERROR, ErrorsAsFailures
from flowchunk.envs.receding_horizon import RecedingHorizon
from flowchunk.envs.video import VideoRecorder
from flowchunk.envs.virtual_delay import VirtualDelay
from flowchunk.policy.execution.executor import ChunkExecution
from flowchunk.policy.execution.policy import Policy

REPORT_SEED = 100_000
SELECTION_SEED = 300_000


@dataclass(frozen=True)
class Episode:
    """The outcome of one episode. score: the best that the task reported, in [0, 1].

    error: why the environment failed in it, which counts as no success and a score of 0; None if it did not.
    """

    seed: int
    score: float
    success: bool
    steps: int
    error: str | None = None


@dataclass(frozen=True)
class Rollout:
    """The outcomes of many episodes, in order of their seeds, and the total time."""

    episodes: tuple[Episode, ...]
    seconds: float
    infos: tuple[Mapping[str, Any], ...]

    @property
    def score_mean(self) -> float:
        return float(np.mean([episode.score for episode in self.episodes]))

    @property
    def successes(self) -> int:
        return sum(episode.success for episode in self.episodes)

    @property
    def success_rate(self) -> float:
        return self.successes / len(self.episodes)

    @property
    def failures(self) -> tuple[Episode, ...]:
        """The episodes in which the environment failed."""
        return tuple(episode for episode in self.episodes if episode.error is not None)

    @property
    def env_steps_per_second(self) -> float:
        return sum(episode.steps for episode in self.episodes) / self.seconds


def rollout(
    policy: Policy,
    make_env: Callable[[], gymnasium.Env[Any, Any]],
    execution: ChunkExecution,
    *,
    episodes: int,
    seed: int = REPORT_SEED,
    nfe: int | None = None,
    num_envs: int = 50,
    processes: int = 1,
    delay: VirtualDelay | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> Rollout:
    """Run ``episodes`` episodes; episode i is reset with ``seed + i``, and its noise depends only on that seed.

    num_envs: environments in parallel. processes: over which they are spread; with 1 they run in this one. More give the same
    results, bit for bit, faster if the environments' steps take longer than the policy and the messages; they are spawned, so
    a script needs ``if __name__ == "__main__"``. delay: the control steps that predictions take; none by default. advance:
    called with the number of finished episodes when it grows.

    An episode in which the environment raises, or observes what is not finite, counts as no success; that is logged, and the
    others go on. Raises SimulationError if all fail so, or if one ends without ``score`` and ``is_success`` in its info.
    """
    num_envs = min(num_envs, episodes)

    def make() -> gymnasium.Env[Any, Any]:
        contained = ErrorsAsFailures(make_env, keys=policy_keys)
        return RecedingHorizon(contained, execution, delay=delay)

    policy_keys = frozenset(policy.observation_spec.fields)  # and not the policy, which processes do not need
    environments = make_group(make, num_envs, processes=processes)
    started = time.perf_counter()
    try:
        infos = _run(policy, environments, num_envs=num_envs, episodes=episodes, seed=seed, nfe=nfe, advance=advance)
    finally:
        environments.close()
    results = tuple(_episode(seed + number, info) for number, info in enumerate(infos))
    rollout = Rollout(results, time.perf_counter() - started, tuple(infos))
    _report_failures(rollout)
    return rollout


def _report_failures(rollout: Rollout) -> None:
    """Warn about episodes in which the environment failed. Raises SimulationError if it did in all."""
    if not rollout.failures:
        return
    failed, episodes, first = len(rollout.failures), len(rollout.episodes), rollout.failures[0]
    text = f"the environment failed in {failed} of {episodes} episodes; in that of seed {first.seed}: {first.error}"
    if failed == episodes:
        raise SimulationError(text)
    logging.getLogger(__name__).warning("%s; these count as no success", text)


def _episode(seed: int, info: Mapping[str, Any]) -> Episode:
    return Episode(seed, float(info["score"]), bool(info["is_success"]), int(info["steps"]), info.get(ERROR))


def record_episode(
    policy: Policy,
    make_env: Callable[[], gymnasium.Env[Any, Any]],
    execution: ChunkExecution,
    *,
    seed: int,
    nfe: int | None = None,
    samples: int = 8,
    observation_spec: ObservationSpec | None = None,
    delay: VirtualDelay | None = None,
) -> Iterator[np.ndarray]:
    """Run the episode of this seed again and yield an image (height, width, 3) of every step, with chunks drawn in.

    The images are yielded while the episode runs, so that a long video need not be held in memory.

    samples: chunks predicted for each observation, to show what else the policy might have done; the first, with the same
    noise as in ``rollout``, is executed. observation_spec: the policy's, whose images are shown with their crops; by default
    the environment's. delay: as in ``rollout``. Raises ConfigurationError if ``samples`` is below 1, SimulationError if the
    environment cannot render.
    """
    if samples < 1:
        raise ConfigurationError(f"samples={samples} must be at least 1: the first is executed")
    options: dict[str, Any] = {"nfe": nfe, "samples": samples, "observation_spec": observation_spec, "delay": delay}
    return _record(policy, make_env, execution, seed=seed, **options)


def _record(
    policy: Policy,
    make_env: Callable[[], gymnasium.Env[Any, Any]],
    execution: ChunkExecution,
    *,
    seed: int,
    nfe: int | None,
    samples: int,
    observation_spec: ObservationSpec | None,
    delay: VirtualDelay | None,
) -> Iterator[np.ndarray]:
    """The generator of ``record_episode``, which checks its arguments before the first image is requested."""
    scene = make_env()
    try:
        recorder = VideoRecorder(scene, images=(observation_spec or observation_spec_of(scene)).images)
        env = RecedingHorizon(recorder, execution, delay=delay)
        latest, rounds = EnvStep(*env.reset(seed=seed)), 0
        while not latest.is_over:
            seeds = noise_seeds(seed, rounds, samples)
            recorder.chunks = np.stack(_predict(policy, [latest] * samples, nfe=nfe, seeds=seeds))
            observation, _, terminated, truncated, info = env.step(recorder.chunks[0])
            latest, rounds = EnvStep(observation, info, terminated or truncated), rounds + 1
            yield from recorder.pop_images()
    finally:
        scene.close()


def noise_seed(episode_seed: int, rounds: int) -> int:
    """The seed of an episode's noise in round ``rounds``, different for every episode and round."""
    return noise_seeds(episode_seed, rounds, samples=1)[0]


def noise_seeds(episode_seed: int, rounds: int, samples: int) -> list[int]:
    """Seeds for several samples in round ``rounds`` of an episode; the first is ``noise_seed``."""
    return [int(seed) for seed in np.random.SeedSequence([episode_seed, rounds]).generate_state(samples)]


def _run(
    policy: Policy,
    environments: EnvGroup,
    *,
    num_envs: int,
    episodes: int,
    seed: int,
    nfe: int | None,
    advance: Callable[[int], None],
) -> list[Mapping[str, Any]]:
    """The info of each episode's last step."""
    outcome: list[Mapping[str, Any]] = [{} for _ in range(episodes)]
    waiting = iter(range(num_envs, episodes))
    number_of = {slot: slot for slot in range(num_envs)}  # of the episode that runs in each environment
    rounds = dict.fromkeys(number_of, 0)
    latest = environments.reset({slot: seed + number for slot, number in number_of.items()})
    finished = 0
    while number_of:
        slots = sorted(number_of)
        seeds = [noise_seed(seed + number_of[slot], rounds[slot]) for slot in slots]
        chunks = _predict(policy, [latest[slot] for slot in slots], nfe=nfe, seeds=seeds)
        latest = environments.step(dict(zip(slots, chunks, strict=True)))
        for slot in slots:
            rounds[slot] += 1
        if not (over := [slot for slot in slots if latest[slot].is_over]):
            continue
        for slot in over:
            require_outcome(latest[slot].info)
            outcome[number_of.pop(slot)] = latest[slot].info
        begun = dict(zip(over, waiting, strict=False))
        number_of |= begun
        rounds |= dict.fromkeys(begun, 0)
        latest |= environments.reset({slot: seed + number for slot, number in begun.items()})
        finished += len(over)
        advance(finished)
    return outcome


def _predict(
    policy: Policy, steps: Sequence[EnvStep], *, nfe: int | None, seeds: Sequence[int]
) -> Sequence[np.ndarray]:
    """A chunk (H, D) for each step, which continues what its ``info`` says; one call of the policy per length of that."""
    rows_of: dict[tuple[int, int], list[int]] = {}
    for row, step in enumerate(steps):
        length = int(step.info.get("prefix_length", 0))
        rows_of.setdefault((length, length + int(step.info.get("tail_length", 0))), []).append(row)
    chunks: dict[int, np.ndarray] = {}
    for (length, end), rows in rows_of.items():
        continued = {}
        if end:
            planned = np.stack([steps[row].info["prefix"] for row in rows])
            continued = {"prefix": planned[:, :length], "tail": planned[:, length:end]}
        observed = {key: np.stack([steps[row].observation[key] for row in rows]) for key in steps[0].observation}
        predicted = policy.predict_chunk(observed, nfe=nfe, seed=[seeds[row] for row in rows], **continued)
        chunks |= dict(zip(rows, np.asarray(predicted, np.float32), strict=True))
    return [chunks[row] for row in range(len(steps))]
