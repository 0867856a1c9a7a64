"""What a run is held to: limits from the checkpoint or the user, and the range of the training data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowchunk.datasets.errors import CheckpointError, ConfigurationError
from flowchunk.datasets.specs import ActionDimension, ActionSpec
from flowchunk.envs.control.observed_range import ObservedRange
from flowchunk.envs.control.safety import PolicyFacts, SafetyOptions
from flowchunk.envs.control.session import choose_execution
from flowchunk.policy.action_limits import ActionLimits
from flowchunk.policy.checkpoint import write_checkpoint
from flowchunk.policy.execution.executor import ChunkExecution
from tests.policy.small_policies import HIGH, LOW, make_policy

SPEC = ActionSpec(
    (ActionDimension("x", "m", "world", low=-1.0, high=2.0), ActionDimension("v", "m/s", "world")), control_hz=10.0
)
DEMONSTRATED = ActionLimits(np.array([4.0, 6.0]), np.array([40.0, 60.0]))
RANGE = ObservedRange(
    {"state": np.array([0.0, -np.pi, 5.0])},
    {"state": np.array([10.0, np.pi, 5.0])},
    {"state": (1,)},
    {"state": ("m", "rad", "m")},
)


def limits(demonstrated: ActionLimits | None = DEMONSTRATED, **options: Any) -> Any:
    return SafetyOptions(**options).motion_limits(SPEC, demonstrated)


def test_by_default_nothing_moves_faster_than_the_demonstrations_did() -> None:
    found = limits()
    np.testing.assert_array_equal(found.velocity, [4, 6])
    np.testing.assert_array_equal(found.acceleration, [40, 60])
    np.testing.assert_array_equal(found.low, [-1, -np.inf])
    np.testing.assert_array_equal(found.high, [2, np.inf])
    np.testing.assert_array_equal(found.is_position, [True, False])


def test_a_scale_slows_velocity_and_acceleration_down() -> None:
    found = limits(scale=0.5)
    np.testing.assert_array_equal(found.velocity, [2, 3])
    np.testing.assert_array_equal(found.acceleration, [20, 30])


@pytest.mark.parametrize(("given", "expected"), [(3.0, [3, 3]), ([1.0, 2.0], [1, 2])])
def test_limits_of_ones_own_replace_those_of_the_demonstrations(given: Any, expected: list[float]) -> None:
    found = limits(velocity_max=given)
    np.testing.assert_array_equal(found.velocity, expected)
    assert np.isinf(found.acceleration).all()
    np.testing.assert_array_equal(limits(velocity_max=given, acceleration_max=9.0).acceleration, [9, 9])
    np.testing.assert_array_equal(limits(acceleration_max=9.0).velocity, [4, 6])


def test_without_any_limit_of_velocity_a_run_is_refused_with_both_ways_out() -> None:
    with pytest.raises(ConfigurationError, match=r"give dataset.path=.* or safety.velocity_max="):
        limits(None)
    np.testing.assert_array_equal(limits(None, velocity_max=3.0).velocity, [3, 3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"velocity_max": [1.0, 2.0, 3.0]}, r"safety.velocity_max=.*expected a number of at least 0, or 2 of them"),
        ({"velocity_max": -1.0}, "safety.velocity_max=-1.0"),
        ({"velocity_max": float("nan")}, "safety.velocity_max=nan"),
        ({"acceleration_max": [1.0, -2.0]}, "safety.acceleration_max="),
        ({"scale": 0.0}, "safety.scale=0.0"),
        ({"scale": 1.5}, "give safety.velocity_max to move faster"),
        ({"ramp": 0.0}, "safety.ramp=0.0"),
        ({"margin": -0.1}, "safety.margin=-0.1"),
        ({"sensor_timeout": 0.0}, "safety.sensor_timeout=0.0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        limits(**options)


def test_a_sensor_counts_as_lost_after_three_periods_but_not_too_soon() -> None:
    assert SafetyOptions().timeout(5.0) == pytest.approx(0.6)
    assert SafetyOptions().timeout(100.0) == pytest.approx(0.2)
    assert SafetyOptions(sensor_timeout=0.05).timeout(5.0) == 0.05


@pytest.mark.parametrize("value", [-4.9, 0.0, 14.9])
def test_within_the_margin_nothing_is_far_outside(value: float) -> None:
    assert RANGE.far_outside({"state": np.array([value, 0.0, 5.0])}, 0.5) is None


@pytest.mark.parametrize("value", [-5.1, 15.1])
def test_what_is_far_outside_is_named_with_its_range(value: float) -> None:
    text = RANGE.far_outside({"state": np.array([value, 0.0, 5.0])}, 0.5)
    assert text == f"state[0] is {value:g}, but was 0 to 10 in training"
    assert RANGE.far_outside({"state": np.array([value, 0.0, 5.0])}, 0.6) is None


def test_angles_that_wrap_and_what_never_changed_are_never_far_outside() -> None:
    assert RANGE.far_outside({"state": np.array([5.0, 100.0, 7.0])}, 0.0) is None


def test_what_hardly_moved_is_judged_by_the_values_of_its_unit() -> None:
    """A height of which the demonstrations show a millimetre; without other values in its unit nothing else is known."""
    low, high = np.zeros((2, 3)), np.array([[0.3, 0.001, 2.0], [0.2, 0.0, 1.0]])
    units = ("m", "m", "rad", "m", "m", "unknown")
    found = ObservedRange({"state": low}, {"state": high}, {"state": ()}, {"state": units})
    at = np.zeros((2, 3))
    for index, near, far in (((0, 1), 0.1, 0.102), ((0, 2), 2.9, 3.1), ((0, 0), 0.44, 0.46), ((1, 2), 1.4, 1.6)):
        for value, is_far in ((near, False), (far, True), (-near / 3, False)):
            at[index] = value
            assert (found.far_outside({"state": at}, 0.5) is not None) == is_far, (index, value)
        at[index] = 0
    alone = ObservedRange({"x": low[0, :2]}, {"x": high[0, :2]}, {"x": ()}, {"x": ("unknown", "unknown")})
    assert alone.far_outside({"x": np.array([0.0, 0.002])}, 0.5) is not None


def test_the_facts_of_a_checkpoint_need_no_weights(tmp_path: Path) -> None:
    policy = make_policy()
    policy.action_limits = ActionLimits(np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    policy.save(tmp_path / "run", training={"env_id": "mine"})
    (tmp_path / "run" / "model.safetensors").unlink()
    facts = PolicyFacts.of_checkpoint(tmp_path / "run")
    assert facts.observation_spec == policy.observation_spec
    assert facts.action_spec == policy.action_spec
    assert facts.training == {"env_id": "mine"}
    assert facts.observed.wraps == {"state": (2,), "forces": ()}
    assert facts.observed.low["forces"].shape == (2, 2)
    assert facts.action_limits is not None
    np.testing.assert_array_equal(facts.action_limits.velocity, [1, 2])
    assert LOW.shape == HIGH.shape == (2,)


def test_models_of_another_kind_are_no_policy(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", kind="data_model", description={}, weights={})
    with pytest.raises(CheckpointError, match="is a 'data_model', but a 'chunk_policy' was expected"):
        PolicyFacts.of_checkpoint(tmp_path / "model")


OWN = ChunkExecution(observation_steps=2, horizon=8, n_action_steps=4, longest_prefix=3)


@pytest.mark.parametrize(
    ("longest_prefix", "delay", "changes", "expected"),
    [
        (3, 0, {}, "real_time"),
        (3, 3, {}, "real_time"),
        (3, 4, {}, "asynchronous"),
        (0, 2, {}, "asynchronous"),
        (3, 2, {"n_action_steps": 8}, "synchronous"),
        (3, 5, {}, "synchronous"),
        (3, 2, {"strategy": "temporal_ensemble"}, "temporal_ensemble"),
    ],
)
def test_the_strategy_is_the_best_that_policy_and_delay_admit(
    longest_prefix: int, delay: int, changes: dict[str, Any], expected: str
) -> None:
    chosen = choose_execution(replace(OWN, longest_prefix=longest_prefix), changes, delay)
    assert chosen.strategy == expected
    assert chosen.delay == delay
    assert chosen.n_action_steps == changes.get("n_action_steps", 4)


def test_a_strategy_that_was_asked_for_is_not_replaced() -> None:
    with pytest.raises(ConfigurationError, match="continues at most 3 committed actions"):
        choose_execution(OWN, {"strategy": "real_time"}, 4)
    with pytest.raises(ConfigurationError, match="n_action_steps=9"):
        choose_execution(OWN, {"n_action_steps": 9}, 0)
