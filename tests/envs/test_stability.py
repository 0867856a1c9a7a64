"""An unstable simulation is an error in every task, and a reset recovers from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import flowchunk.envs  # noqa: F401 -- registers the ids
from flowchunk.datasets.errors import SimulationError


@pytest.mark.parametrize("env_id", ["flowchunk/PushT-v1", "flowchunk/PickPlace-v1"])
@pytest.mark.parametrize("velocity", [np.nan, np.inf, 1e12])
def test_an_unstable_simulation_is_an_error(
    env_id: str, velocity: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log file into the current folder
    env: Any = gymnasium.make(env_id).unwrapped
    env.reset(seed=0)
    data = env.data if hasattr(env, "data") else env._data
    data.qvel[2] = velocity
    action = env.action_space.sample()
    with pytest.raises(SimulationError, match="unstable"):
        env.step(action)
    env.reset(seed=0)
    env.step(action)
