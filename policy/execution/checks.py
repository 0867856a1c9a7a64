"""Whether a policy of your own keeps the contract of ``Policy``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flowchunk.datasets.errors import FlowchunkError, SpecMismatchError
from flowchunk.datasets.specs import ObservationSpec
from flowchunk.policy.execution.policy import Policy

MEMBERS = ("observation_spec", "action_spec", "execution", "predict_chunk")


def check_policy(policy: Policy, observation: Mapping[str, np.ndarray] | None = None) -> None:
    """Raise SpecMismatchError with what is wrong unless the policy keeps its contract.

    Predicts chunks for two observations: their shape, that they are finite, that equal seeds give equal chunks and other rows
    do not matter, that missing keys are refused and prefixes returned. observation: {key: (To, …)}, a real one; by default
    zeros, and random images.
    """
    if missing := [name for name in MEMBERS if not hasattr(policy, name)]:
        raise SpecMismatchError(
            f"expected a policy with {', '.join(MEMBERS)}, but {type(policy).__name__} has no {', '.join(missing)}"
        )
    execution, generator = policy.execution, np.random.default_rng(0)
    first = observation or any_observation(policy.observation_spec, execution.observation_steps, generator)
    batch = {key: np.stack([np.asarray(value)] * 2) for key, value in first.items()}
    chunks = _predicted(policy, batch, seed=[1, 2])
    if not np.array_equal(chunks, _predicted(policy, batch, seed=[1, 2])):
        raise SpecMismatchError("the same observation and seeds gave other chunks; let all noise depend on the seed")
    alone = _predicted(policy, {key: value[1:] for key, value in batch.items()}, seed=[2])
    if not np.allclose(chunks[1], alone[0], rtol=1e-3, atol=1e-4 * max(1.0, float(np.abs(alone).max()))):
        raise SpecMismatchError("a row's chunk depends on the other rows of the batch; give each row its own noise")
    _check_refusal(policy, batch)
    if execution.longest_prefix:
        _check_prefix(policy, batch, chunks[:, :1])


def any_observation(spec: ObservationSpec, steps: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        key: generator.integers(0, 256, (steps, *field.shape), np.uint8)
        if field.is_image
        else np.zeros((steps, *field.shape), np.float32)
        for key, field in spec.fields.items()
    }


def _predicted(policy: Policy, batch: Mapping[str, np.ndarray], **options: Any) -> np.ndarray:
    chunks = policy.predict_chunk(batch, **options)
    rows = len(next(iter(batch.values())))
    shape = (rows, policy.execution.horizon, policy.action_spec.size)
    if not isinstance(chunks, np.ndarray) or chunks.shape != shape:
        raise SpecMismatchError(
            f"expected chunks (B, H, D) = {shape} as an array, got {getattr(chunks, 'shape', type(chunks).__name__)}"
        )
    if not np.issubdtype(chunks.dtype, np.floating) or not np.isfinite(chunks).all():
        raise SpecMismatchError(f"expected chunks of finite floating-point numbers, got {chunks.dtype} with {chunks}")
    return chunks


def _check_refusal(policy: Policy, batch: Mapping[str, np.ndarray]) -> None:
    key = next(iter(batch))
    try:
        policy.predict_chunk({name: value for name, value in batch.items() if name != key}, seed=[1, 2])
    except (FlowchunkError, KeyError, ValueError):
        return
    raise SpecMismatchError(f"an observation without {key!r}, which the spec names, was not refused")


def _check_prefix(policy: Policy, batch: Mapping[str, np.ndarray], prefix: np.ndarray) -> None:
    chunks = _predicted(policy, batch, seed=[1, 2], prefix=prefix)
    if not np.array_equal(chunks[:, : prefix.shape[1]], prefix):
        raise SpecMismatchError("a chunk must begin with the prefix that it was given, unchanged")
