"""How fast demonstrations moved: found, stored with the policy, and of mirrored demonstrations too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowchunk.datasets.recorder import StoreWriter
from flowchunk.datasets.specs import ActionDimension, ActionSpec
from flowchunk.datasets.symmetry import Symmetry, ValueTransform
from flowchunk.policy.action_limits import ActionLimits, motion
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.demonstrations import demonstrated_limits
from tests.policy.small_policies import ACTION, OBSERVATION, make_policy

HZ = 10.0


def spec(**dimension: Any) -> ActionSpec:
    return ActionSpec((ActionDimension("x", dimension.pop("unit", "m"), "world", **dimension),), HZ)


def limits_of(*episodes: list[float], **dimension: Any) -> tuple[float, float]:
    found = ActionLimits.of_episodes([np.array(episode)[:, None] for episode in episodes], spec(**dimension))
    return found.velocity.item(), found.acceleration.item()


def test_positions_move_by_their_differences() -> None:
    assert limits_of([0, 1, 3, 4]) == pytest.approx((2 * HZ, 1 * HZ**2))
    assert limits_of([5, 5, 5]) == (0, 0)


def test_an_episode_starts_at_rest() -> None:
    """So the first step counts as an acceleration, and the place that it starts from does not."""
    assert limits_of([100, 103]) == pytest.approx((3 * HZ, 3 * HZ**2))


def test_nothing_moves_between_episodes() -> None:
    assert limits_of([0, 1], [50, 50, 49]) == pytest.approx((HZ, HZ**2))


@pytest.mark.parametrize("reference", ["delta", "relative"])
def test_displacements_are_themselves_what_moves(reference: str) -> None:
    assert limits_of([1, 3, -2], reference=reference) == pytest.approx((3 * HZ, 5 * HZ**2))


@pytest.mark.parametrize("unit", ["m/s", "N·m", "N"])
def test_velocities_and_efforts_are_bounded_by_their_values(unit: str) -> None:
    assert limits_of([1, 3, -2], unit=unit) == pytest.approx((3, 5 * HZ))


def test_motion_has_a_row_per_action() -> None:
    velocity, acceleration = motion(np.array([[0.0], [2.0], [3.0]]), spec())
    np.testing.assert_allclose(velocity[:, 0], [0, 20, 10])
    np.testing.assert_allclose(acceleration[:, 0], [0, 200, -100])


def test_mirrored_demonstrations_count_if_a_policy_learns_from_them(tmp_path: Path) -> None:
    two = ActionSpec(tuple(ActionDimension(name, "m", "world") for name in "xy"), HZ)
    actions = np.stack([np.arange(4.0), np.zeros(4)], axis=1)
    fields = {key: np.zeros((4, *field.shape)) for key, field in OBSERVATION.fields.items()}
    with StoreWriter(tmp_path / "data", observation_spec=OBSERVATION, action_spec=two, say=None) as writer:
        writer.add_episode(fields, actions)
    from flowchunk.datasets.formats import open_dataset

    source = open_dataset(tmp_path / "data")
    np.testing.assert_allclose(demonstrated_limits(source, two).velocity, [10, 0])
    swap = Symmetry({"action": ValueTransform((1, 0), (1.0, 1.0), (0.0, 0.0))}, {})
    np.testing.assert_allclose(demonstrated_limits(source, two, swap).velocity, [10, 10])


def test_a_checkpoint_brings_its_limits_back(tmp_path: Path) -> None:
    policy = make_policy()
    assert policy.action_limits is None
    policy.save(tmp_path / "without")
    assert ChunkPolicy.load(tmp_path / "without").action_limits is None
    policy.action_limits = ActionLimits(np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    policy.save(tmp_path / "with")
    loaded = ChunkPolicy.load(tmp_path / "with").action_limits
    assert loaded is not None
    np.testing.assert_array_equal(loaded.velocity, [1, 2])
    np.testing.assert_array_equal(loaded.acceleration, [3, 4])
    assert ACTION.size == 2
