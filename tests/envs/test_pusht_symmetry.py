"""The mirror that task=pusht_state trains with is one of the simulator: mirrored pushing gives the mirrored motion."""

from __future__ import annotations

import gymnasium
import numpy as np

from flowchunk.cli.options import read_options
from flowchunk.datasets.symmetry import Symmetry


def test_mirrored_pushing_covers_as_much_of_the_goal() -> None:
    options = read_options("train", ["task=pusht_state", "dataset.path=none"])
    mirrors = Symmetry.from_options(options["dataset"]["symmetry"], {"state": 5, "action": 2}).value_transforms
    start = np.array([[200.0, 330.0, 270.0, 280.0, 0.4]])
    actions = np.random.default_rng(0).uniform(150, 350, size=(60, 2))
    env = gymnasium.make("flowchunk.envs:flowchunk/PushT-v1")
    recorded = _run(env, start[0], actions)
    mirrored = _run(env, mirrors["state"](start)[0], mirrors["action"](actions))
    assert np.ptp(recorded[:, 0]) > 0.1  # the block was pushed
    np.testing.assert_allclose(mirrored, recorded, atol=1e-4)


def _run(env: gymnasium.Env[dict[str, np.ndarray], np.ndarray], start: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Coverage and reward after each action, (T, 2)."""
    env.reset(options={"state": start})
    outcomes = []
    for action in actions:
        _, reward, _, _, info = env.step(action)
        outcomes.append((info["coverage"], float(reward)))
    return np.array(outcomes)
