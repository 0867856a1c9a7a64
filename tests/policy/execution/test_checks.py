"""check_policy: what keeps the contract passes, and each breach is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from flowchunk.datasets.errors import SpecMismatchError
from flowchunk.policy.execution.checks import check_policy
from flowchunk.policy.execution.executor import ChunkExecution
from tests.policy.small_policies import ACTION, HORIZON, OBSERVATION, make_policy, observe


class Mine:
    """A policy as a user writes it, which breaks what the test says."""

    observation_spec, action_spec = OBSERVATION, ACTION
    execution = ChunkExecution(observation_steps=2, horizon=HORIZON, n_action_steps=4, longest_prefix=2)

    def __init__(
        self, breach: Callable[[np.ndarray, Any], Any] = lambda chunks, _: chunks, *, strict: bool = True
    ) -> None:
        self.breach, self.strict = breach, strict

    def predict_chunk(
        self,
        observation: Mapping[str, np.ndarray],
        *,
        nfe: int | None = None,
        seed: Any = None,
        prefix: np.ndarray | None = None,
        tail: np.ndarray | None = None,
    ) -> np.ndarray:
        rows = len(observation["state"] if self.strict else next(iter(observation.values())))
        chunks = np.stack([np.random.default_rng(one).normal(size=(HORIZON, 2)) for one in seed])
        assert len(chunks) == rows
        if prefix is not None:
            chunks[:, : prefix.shape[1]] = prefix
        found: np.ndarray = self.breach(chunks, prefix)
        return found


@pytest.mark.parametrize("network", ["mlp", "mixer"])
@pytest.mark.parametrize("prefix_max", [0, 3])
def test_our_own_policies_keep_the_contract(network: str, prefix_max: int) -> None:
    options = {"width": 16, "blocks": 1}
    policy = make_policy(network=network, network_options=options, prefix_max=prefix_max)
    check_policy(policy)
    check_policy(policy, {key: value[0] for key, value in observe(1).items()})


def test_a_policy_of_ones_own_passes() -> None:
    check_policy(Mine())


def other_prefix(chunks: np.ndarray, prefix: np.ndarray | None) -> np.ndarray:
    return chunks if prefix is None else chunks + 1e-6


def not_finite(chunks: np.ndarray, _: Any) -> np.ndarray:
    chunks[-1, -1, -1] = np.nan
    return chunks


def depends_on_rows(chunks: np.ndarray, _: Any) -> np.ndarray:
    return chunks + len(chunks)


BREACHES: dict[str, tuple[Callable[[np.ndarray, Any], Any], str]] = {
    "too short": (
        lambda chunks, _: chunks[:, 1:],
        r"expected chunks \(B, H, D\) = \(2, 8, 2\) as an array, got \(2, 7, 2\)",
    ),
    "a list": (lambda chunks, _: chunks.tolist(), "as an array, got list"),
    "integers": (lambda chunks, _: chunks.astype(int), "finite floating-point numbers, got int"),
    "not finite": (not_finite, "finite floating-point numbers"),
    "no seed": (lambda chunks, _: chunks + np.random.default_rng().normal(), "let all noise depend on the seed"),
    "rows": (depends_on_rows, "depends on the other rows"),
    "prefix": (other_prefix, "must begin with the prefix"),
}


@pytest.mark.parametrize("name", BREACHES)
def test_each_breach_is_named(name: str) -> None:
    breach, message = BREACHES[name]
    with pytest.raises(SpecMismatchError, match=message):
        check_policy(Mine(breach))


def test_observations_without_a_key_must_be_refused() -> None:
    with pytest.raises(SpecMismatchError, match="without 'state', which the spec names, was not refused"):
        check_policy(Mine(strict=False))


def test_prefixes_are_only_tried_if_there_may_be_some() -> None:
    policy = Mine(other_prefix)
    policy.execution = replace(Mine.execution, longest_prefix=0)
    check_policy(policy)


def test_missing_members_are_named() -> None:
    class Half:
        def predict_chunk(self, observation: Any, **options: Any) -> Any: ...

    with pytest.raises(SpecMismatchError, match="Half has no observation_spec, action_spec, execution"):
        check_policy(Half())  # type: ignore[arg-type]
