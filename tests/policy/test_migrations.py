"""Checkpoints of earlier formats mean what they meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.migrations import migrate_description
from tests.policy.small_policies import BEFORE_THE_SKIP, make_policy, observe


def description(format_version: int, network: str, **options: Any) -> dict[str, Any]:
    return {"format_version": format_version, "config": {"network": network, "network_options": options}}


@pytest.mark.parametrize(
    ("before", "options"),
    [
        (description(1, "mlp", width=8), {"width": 8, "skip": False}),
        (description(2, "mlp"), {"skip": False}),
        (description(3, "mlp"), {}),
        (description(3, "mlp", skip=False), {"skip": False}),
        (description(2, "mixer", width=8), {"width": 8}),
    ],
)
def test_the_mlp_had_no_skip_up_to_format_2(before: dict[str, Any], options: dict[str, Any]) -> None:
    assert migrate_description(before)["config"]["network_options"] == options


def test_a_checkpoint_of_format_2_acts_as_before(tmp_path: Path) -> None:
    policy = make_policy(network_options=BEFORE_THE_SKIP)
    policy.save(tmp_path)
    content = json.loads((tmp_path / "checkpoint.json").read_text())
    del content["config"]["network_options"]["skip"]
    (tmp_path / "checkpoint.json").write_text(json.dumps(content | {"format_version": 2}))
    seen = observe()
    loaded = ChunkPolicy.load(tmp_path)
    np.testing.assert_array_equal(loaded.predict_chunk(seen, seed=0), policy.predict_chunk(seen, seed=0))
