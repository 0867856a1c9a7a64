"""What tests of several rooms share. Do not write into it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import zarr
from hypothesis import settings
from jaxtyping import install_import_hook

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # before torch is loaded: workers that share cores slow each other down by spinning
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A shell starts jobs in the background with Ctrl-C ignored, which processes that tests interrupt would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# On a busy machine any example may take long.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# Shapes in the signatures of these packages (see policy/shapes.py) are checked at every call of a test.
install_import_hook(
    ["flowchunk.policy.flow", "flowchunk.policy.diffusion.paths", "flowchunk.policy.networks"], "beartype.beartype"
)


@pytest.fixture(scope="session")
def pusht_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in diffusion_policy's layout, zarr format 2: 5 episodes of aimless pushing, 100 frames in chunks of 16."""
    states, actions, lengths = [], [], (30, 10, 25, 20, 15)
    env = gymnasium.make("flowchunk.envs:flowchunk/PushT-v1")
    env.action_space.seed(0)
    for seed, length in enumerate(lengths):
        observation, _ = env.reset(seed=seed)
        for _ in range(length):
            states.append(observation["state"])
            actions.append(env.action_space.sample())
            observation = env.step(actions[-1])[0]
    env.close()
    path = tmp_path_factory.mktemp("stores") / "pusht.zarr"
    root = zarr.open_group(path, mode="w", zarr_format=2)
    for name, rows in (("state", states), ("action", actions)):
        values = np.stack(rows).astype(np.float32)
        root.create_array(f"data/{name}", shape=values.shape, chunks=(16, values.shape[1]), dtype="f4")[:] = values
    root.create_array("meta/episode_ends", data=np.cumsum(lengths))
    return path
