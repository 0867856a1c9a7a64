"""Policies that were saved: they act the same, and what describes no policy is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowchunk.datasets.errors import CheckpointError
from flowchunk.policy.chunk_policy import ChunkPolicy
from tests.policy.small_policies import ACTION, BEFORE_THE_SKIP, OBSERVATION, make_policy, observe, to_format_1


@pytest.mark.parametrize("sharded", [False, True])
def test_a_saved_policy_acts_the_same(tmp_path: Path, sharded: bool) -> None:
    policy = make_policy(prefix_max=2, solver="midpoint")
    policy.save(tmp_path / "a", training={"step": 3}, sharded=sharded)
    loaded = ChunkPolicy.load(tmp_path / "a")
    assert not loaded.training
    assert loaded.config == policy.config
    assert loaded.objective.valid_nfe is None
    assert loaded.observation_spec == OBSERVATION
    assert loaded.action_spec == ACTION
    np.testing.assert_array_equal(
        loaded.predict_chunk(observe(), nfe=2, seed=0), policy.predict_chunk(observe(), nfe=2, seed=0)
    )
    assert json.loads((tmp_path / "a" / "checkpoint.json").read_text())["training"] == {"step": 3}


@pytest.mark.parametrize(
    "changes",
    [
        {"config": None},
        {"config": {"network": "transformer"}},
        {"config": {"horizon": 8, "no_such_option": 1}},
        {"config": {"network_options": {"width": 24}}},
        {"observation_spec": {"state": 3}},
        {"action_spec": {"dimensions": []}},
        {"action_spec": []},
        {"normalizer": {"state": {}}},
        {"normalizer": []},
        {"valid_nfe": 4},
    ],
)
def test_checkpoints_that_describe_no_policy(tmp_path: Path, changes: dict[str, Any]) -> None:
    make_policy().save(tmp_path / "a")
    file = tmp_path / "a" / "checkpoint.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(CheckpointError, match="does not describe a chunk policy"):
        ChunkPolicy.load(tmp_path / "a")


def test_a_checkpoint_from_before_objectives_had_names_acts_the_same(tmp_path: Path) -> None:
    policy = make_policy(solver="euler", network_options=BEFORE_THE_SKIP)
    policy.save(tmp_path / "a")
    content = to_format_1(tmp_path / "a")
    for name in ("objective", "schedule", "time_density_options", "eta", "noise_scale"):
        del content["config"][name]
    (tmp_path / "a" / "checkpoint.json").write_text(json.dumps(content))
    loaded = ChunkPolicy.load(tmp_path / "a")
    np.testing.assert_array_equal(loaded.predict_chunk(observe(), seed=0), policy.predict_chunk(observe(), seed=0))


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "noise_prediction", "solver": "ancestral", "eta": 0.5},
        {"objective": "data_prediction", "min_snr_gamma": 5.0, "noise_scale": 0.7},
        {"objective": "posterior", "num_noise_samples": 3},
        {"objective": "flow_map"},
        {"objective": "regression"},
    ],
)
def test_a_checkpoint_with_the_names_of_format_1_acts_the_same(options: dict[str, Any], tmp_path: Path) -> None:
    policy = make_policy(**options, network_options=BEFORE_THE_SKIP)
    policy.save(tmp_path / "a")
    content = to_format_1(tmp_path / "a")
    assert content["config"]["objective"] in ("ddpm", "x", "kl", "flow_map", "regression")
    loaded = ChunkPolicy.load(tmp_path / "a")
    assert loaded.config == policy.config
    np.testing.assert_array_equal(loaded.predict_chunk(observe(), seed=0), policy.predict_chunk(observe(), seed=0))
    loaded.save(tmp_path / "b")
    assert ChunkPolicy.load(tmp_path / "b").config == policy.config


@pytest.mark.parametrize("key", ["config", "observation_spec", "action_spec", "normalizer", "valid_nfe"])
def test_checkpoints_that_lack_a_part(tmp_path: Path, key: str) -> None:
    make_policy().save(tmp_path / "a")
    file = tmp_path / "a" / "checkpoint.json"
    content = json.loads(file.read_text())
    del content[key]
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"does not describe a chunk policy: .*{key}"):
        ChunkPolicy.load(tmp_path / "a")
