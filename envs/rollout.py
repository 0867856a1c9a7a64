"""Run a policy for many episodes in parallel, with one batched inference per round over all environments."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.specs import ObservationSpec
from flowchunk.envs.contract import observation_spec_of, require_outcome
from flowchunk.envs.idle import IdleAfterEpisodes
from flowchunk.envs.receding_horizon import RecedingHorizon
from flowchunk.envs.video import VideoRecorder
from flowchunk.envs.virtual_delay import VirtualDelay
from flowchunk.policy.execution.executor import ChunkExecution
from flowchunk.policy.execution.policy import Policy

REPORT_SEED = 100_000
SELECTION_SEED = 300_000
CONTINUATION = {"prefix", "prefix_length", "tail_length"}
"""What the info of ``RecedingHorizon`` says about the chunk to be continued."""


@dataclass(frozen=True)
class Episode:
    """The outcome of one episode. score: the best that the task reported, in [0, 1]."""

    seed: int
    score: float
    success: bool
    steps: int


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
    workers: bool = False,
    delay: VirtualDelay | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> Rollout:
    """Run ``episodes`` episodes; episode i is reset with ``seed + i``, and its noise depends only on that seed.

    num_envs: environments in parallel. workers: run each in its own process (worthwhile if a step takes much longer than
    a message). delay: the control steps that predictions take; none by default. advance: called with the number of
    finished episodes after every round. Raises SimulationError if an episode ends without ``score`` and ``is_success`` in
    its info.
    """
    num_envs = min(num_envs, episodes)
    environments = _vector_env(make_env, execution, num_envs, workers=workers, delay=delay)
    started = time.perf_counter()
    try:
        infos = _run(policy, environments, episodes=episodes, seed=seed, nfe=nfe, advance=advance)
    finally:
        environments.close()
    results = [
        Episode(seed + number, float(info["score"]), bool(info["is_success"]), int(info["steps"]))
        for number, info in enumerate(infos)
    ]
    return Rollout(tuple(results), time.perf_counter() - started, tuple(infos))


def record_episode(
    policy: Policy,
    make_env: Callable[[], gymnasium.Env[Any, Any]],
    execution: ChunkExecution,
    *,
    seed: int,
    nfe: int | None = None,
    samples: int = 8,
    observation_spec: ObservationSpec | None = None,
) -> Iterator[np.ndarray]:
    """Run the episode of this seed again and yield an image (height, width, 3) of every step, with chunks drawn in.

    The images are yielded while the episode runs, so that a long video need not be held in memory.

    samples: chunks predicted for each observation, to show what else the policy might have done; the first, with the same
    noise as in ``rollout``, is executed. observation_spec: the policy's, whose images are shown with their crops; by default
    the environment's. Raises ConfigurationError if ``samples`` is below 1, SimulationError if the environment cannot render.
    """
    if samples < 1:
        raise ConfigurationError(f"samples={samples} must be at least 1: the first is executed")
    return _record(policy, make_env, execution, seed=seed, nfe=nfe, samples=samples, observation_spec=observation_spec)


def _record(
    policy: Policy,
    make_env: Callable[[], gymnasium.Env[Any, Any]],
    execution: ChunkExecution,
    *,
    seed: int,
    nfe: int | None,
    samples: int,
    observation_spec: ObservationSpec | None,
) -> Iterator[np.ndarray]:
    """The generator of ``record_episode``, which checks its arguments before the first image is requested."""
    scene = make_env()
    try:
        recorder = VideoRecorder(scene, images=(observation_spec or observation_spec_of(scene)).images)
        env = RecedingHorizon(recorder, execution)
        observation, _ = env.reset(seed=seed)
        over, rounds = False, 0
        while not over:
            batch = {key: np.repeat(value[None], samples, axis=0) for key, value in observation.items()}
            recorder.chunks = policy.predict_chunk(batch, nfe=nfe, seed=noise_seeds(seed, rounds, samples))
            observation, _, terminated, truncated, _ = env.step(recorder.chunks[0])
            over, rounds = terminated or truncated, rounds + 1
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
    environments: SyncVectorEnv | AsyncVectorEnv,
    *,
    episodes: int,
    seed: int,
    nfe: int | None,
    advance: Callable[[int], None],
) -> list[dict[str, Any]]:
    slots = environments.num_envs
    outcome: list[dict[str, Any]] = [{} for _ in range(episodes)]
    episode_of, rounds = np.arange(slots), np.zeros(slots, dtype=int)
    begun, finished = slots, 0
    first_seeds: list[int | None] = [seed + slot for slot in range(slots)]
    observation, info = environments.reset(seed=first_seeds)
    chunks = np.zeros(environments.action_space.shape or (), dtype=np.float32)
    while finished < episodes:
        active = np.flatnonzero(episode_of >= 0)
        observed = {key: value[active] for key, value in observation.items()}
        seeds = [noise_seed(seed + int(episode_of[slot]), int(rounds[slot])) for slot in active]
        chunks[active] = _predict(policy, observed, info, active, nfe=nfe, seeds=seeds)
        observation, _, terminated, truncated, info = environments.step(chunks)
        rounds[active] += 1
        done = [slot for slot in active if terminated[slot] or truncated[slot]]
        if not done:
            continue
        for slot in done:
            outcome[episode_of[slot]] = _info_of(info, int(slot))
            require_outcome(outcome[episode_of[slot]])
            episode_of[slot], rounds[slot] = (begun if begun < episodes else -1), 0
            begun += 1
        finished += len(done)
        advance(finished)
        ended = np.isin(np.arange(slots), done)
        for mask, options in ((ended & (episode_of >= 0), {}), (ended & (episode_of < 0), {"idle": True})):
            if mask.any():
                seeds_or_none = [
                    seed + int(number) if is_new else None for number, is_new in zip(episode_of, mask, strict=True)
                ]
                observation, started = environments.reset(seed=seeds_or_none, options={"reset_mask": mask, **options})
                for name in CONTINUATION & started.keys():
                    info[name][mask] = started[name][mask]
    return outcome


def _predict(
    policy: Policy,
    observed: Mapping[str, np.ndarray],
    info: Mapping[str, Any],
    active: np.ndarray,
    *,
    nfe: int | None,
    seeds: Sequence[int],
) -> np.ndarray:
    """Chunks (N, H, D) for the active slots, each continuing what its ``info`` says; one call per length of that."""
    if "prefix" not in info:
        return policy.predict_chunk(observed, nfe=nfe, seed=seeds)
    planned, lengths = info["prefix"][active], info["prefix_length"][active]
    ends = lengths + info["tail_length"][active]
    chunks = np.zeros_like(planned)
    for length, end in {(int(length), int(end)) for length, end in zip(lengths, ends, strict=True)}:
        rows = np.flatnonzero((lengths == length) & (ends == end))
        continued = {"prefix": planned[rows, :length], "tail": planned[rows, length:end]} if end else {}
        chunks[rows] = policy.predict_chunk(
            {key: value[rows] for key, value in observed.items()},
            nfe=nfe,
            seed=[seeds[row] for row in rows.tolist()],
            **continued,
        )
    return chunks


def _info_of(info: Mapping[str, Any], slot: int) -> dict[str, Any]:
    """The info of one environment of a vector environment."""
    return {
        key: _info_of(values, slot) if isinstance(values, dict) else values[slot]
        for key, values in info.items()
        if not key.startswith("_") and info[f"_{key}"][slot]
    }


def _vector_env(
    make_env: Callable[[], gymnasium.Env[Any, Any]],
    execution: ChunkExecution,
    num_envs: int,
    *,
    workers: bool,
    delay: VirtualDelay | None,
) -> SyncVectorEnv | AsyncVectorEnv:
    def make() -> gymnasium.Env[Any, Any]:
        return IdleAfterEpisodes(RecedingHorizon(make_env(), execution, delay=delay))

    if workers:
        return AsyncVectorEnv([make] * num_envs, context="spawn", autoreset_mode=AutoresetMode.DISABLED)
    return SyncVectorEnv([make] * num_envs, autoreset_mode=AutoresetMode.DISABLED)
