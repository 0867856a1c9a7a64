"""The process that predicts chunks, so that the control loop never waits for the network."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from flowchunk.datasets.errors import FlowchunkError
from flowchunk.envs.control.messages import Failed, InferenceReady, Prediction, PredictionRequest
from flowchunk.envs.control.realtime import RealTimeOptions, apply_measures

WARM_UP, TRIALS = 5, 20  # predictions
TRIAL_TIME = 4.0  # s, after which slow policies are not tried any further


@dataclass(frozen=True)
class InferenceOptions:
    """What is predicted, and where; picklable.

    sampling: options of ``ChunkPolicy.with_sampling``. landmarks: poses for ``ChunkPolicy.with_landmarks``. threads: of
    torch; small networks are fastest on 1. delay_ms, jitter_ms: added to each prediction, the second uniform to either side,
    to try what a slower network would do.
    """

    checkpoint: str
    device: str = "cpu"
    sampling: Mapping[str, Any] = field(default_factory=dict)
    landmarks: Mapping[str, Sequence[float]] = field(default_factory=dict)
    threads: int = 1
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    seed: int = 0


def run_inference(connection: Connection, options: InferenceOptions) -> None:
    """The process: load the policy, and answer requests until the pipe closes. Faults are reported as ``Failed``."""
    for number in (signal.SIGINT, signal.SIGQUIT):  # keys of a terminal, which are the loop's
        signal.signal(number, signal.SIG_IGN)
    import torch

    from flowchunk.policy.chunk_policy import ChunkPolicy
    from flowchunk.policy.devices import choose_device
    from flowchunk.policy.execution.checks import any_observation

    try:
        torch.set_num_threads(options.threads)
        policy = ChunkPolicy.load(options.checkpoint, device=choose_device(options.device))
        policy = policy.with_sampling(**options.sampling)
        policy = policy.with_landmarks(options.landmarks) if options.landmarks else policy
        generator = np.random.default_rng(options.seed)
        observation = any_observation(policy.observation_spec, policy.execution.observation_steps, generator)
        prefix = np.zeros((policy.longest_prefix, policy.action_spec.size), np.float32)
        trial = PredictionRequest(0, observation, prefix, prefix[:0], 0)
        seconds: list[float] = []
        end = time.monotonic() + TRIAL_TIME
        while len(seconds) <= WARM_UP or (len(seconds) < WARM_UP + TRIALS and time.monotonic() < end):
            seconds.append(_predict(policy, trial, options, generator).seconds)
        measures = apply_measures(RealTimeOptions(freeze_gc=True))
        connection.send(InferenceReady(policy.execution, _sampling(policy), np.array(seconds[WARM_UP:]), measures))
        while True:
            connection.send(_predict(policy, connection.recv(), options, generator))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the loop is gone
    except Exception as error:  # of torch, or of somebody's own policy
        kind = type(error).__name__
        with suppress(OSError):
            connection.send(Failed(kind, str(error) if isinstance(error, FlowchunkError) else f"{kind}: {error}"))


def _sampling(policy: Any) -> dict[str, Any]:
    sampling = policy.config.sampling
    return {
        "nfe": policy.model.resolve_nfe(sampling),
        "solver": policy.objective.solver_name(sampling),
        "noise_scale": sampling.noise_scale,
        "prefix_method": sampling.prefix_method,
        "device": str(policy.model.device),
    }


def _predict(
    policy: Any, request: PredictionRequest, options: InferenceOptions, generator: np.random.Generator
) -> Prediction:
    began = time.monotonic()
    if options.delay_ms or options.jitter_ms:
        delay = options.delay_ms + generator.uniform(-options.jitter_ms, options.jitter_ms)
        time.sleep(max(0.0, delay / 1000))
    continued = {}
    if len(request.prefix) + len(request.tail):
        continued = {"prefix": request.prefix[None].astype(np.float32), "tail": request.tail[None].astype(np.float32)}
    batch = {key: value[None] for key, value in request.observation.items()}
    chunk = policy.predict_chunk(batch, seed=[request.seed], **continued)[0]
    return Prediction(request.number, chunk, time.monotonic() - began)
