"""What tests of several rooms share. Do not write into it."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
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


class Turn:
    """A worker's right to run a test: with others, or alone, then for all tests in real time that follow one another."""

    def __init__(self) -> None:
        self._held, self._is_kept = ExitStack(), False

    @contextmanager
    def of(self, item: pytest.Item, following: pytest.Item | None) -> Iterator[None]:
        is_alone = item.get_closest_marker("real_time") is not None
        if not self._is_kept:
            kind = fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH
            with locked(Path(__file__), fcntl.LOCK_EX):  # nobody passes one that waits to be alone
                self._held.enter_context(locked(Path(__file__).parent, kind))
        self._is_kept = is_alone and following is not None and following.get_closest_marker("real_time") is not None
        try:
            yield
        finally:
            if not self._is_kept:
                self._held.close()


TURN = Turn()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """Robots are driven in real time while no other worker runs a test: on few cores it would make them late."""
    with TURN.of(item, nextitem):
        return (yield)


@contextmanager
def locked(path: Path, kind: int) -> Iterator[None]:
    """Holds a lock of a file or folder, which need not be writable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a process that was forked meanwhile may still have it open
        os.close(descriptor)


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
