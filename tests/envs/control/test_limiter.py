"""Limits of motion on whole chunks: kept exactly, changed no more than needed, and taken back when braking is too late."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowchunk.envs.control.limiter import MotionLimits, limit_plan

HZ = 20.0


def limits(
    size: int = 1,
    *,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    velocity: float = np.inf,
    acceleration: float = np.inf,
    is_position: bool = True,
) -> MotionLimits:
    return MotionLimits(
        np.full(size, bounds[0]),
        np.full(size, bounds[1]),
        np.full(size, velocity),
        np.full(size, acceleration),
        np.full(size, is_position),
    )


def at_rest(size: int = 1, value: float = 0.0) -> np.ndarray:
    return np.full((2, size), value)


def motion_of(previous: np.ndarray, targets: np.ndarray, *, is_position: bool) -> tuple[np.ndarray, np.ndarray]:
    """The largest velocity and acceleration, counted from what came before."""
    whole = np.concatenate([previous, targets])
    moved = np.diff(whole, axis=0)[1:] * HZ if is_position else targets
    order = 2 if is_position else 1
    changed = np.diff(whole, n=order, axis=0)[2 - order :] * HZ**order
    return np.abs(moved).max(), np.abs(changed).max()


@given(
    seed=st.integers(0, 10_000),
    length=st.integers(1, 20),
    velocity=st.floats(0.2, 5),
    acceleration=st.floats(1, 50),
    is_position=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_every_limit_holds_over_the_whole_chunk(
    seed: int, length: int, velocity: float, acceleration: float, is_position: bool
) -> None:
    generator = np.random.default_rng(seed)
    given_limits = limits(2, bounds=(-1, 1), velocity=velocity, acceleration=acceleration, is_position=is_position)
    previous = at_rest(2, generator.uniform(-0.9, 0.9) if is_position else 0.0)
    plan = generator.uniform(-2, 2, (length, 2))
    limited = limit_plan(plan, previous, given_limits, hz=HZ).targets
    fastest, hardest = motion_of(previous, limited, is_position=is_position)
    assert np.abs(limited).max() <= 1 + 1e-6
    assert fastest <= velocity * (1 + 1e-5) + 1e-6
    assert hardest <= acceleration * (1 + 1e-5) + 1e-4


def test_what_keeps_to_the_limits_is_returned_bit_for_bit() -> None:
    plan = np.linspace(0, 0.5, 16)[:, None]
    limited = limit_plan(plan, at_rest(), limits(bounds=(-1, 1), velocity=1.0, acceleration=100.0), hz=HZ)
    np.testing.assert_array_equal(limited.targets, plan)
    assert limited.interventions == {}


def test_a_jump_becomes_the_fastest_straight_way() -> None:
    limited = limit_plan(np.ones((8, 1)), at_rest(), limits(velocity=4.0), hz=HZ)
    np.testing.assert_allclose(limited.targets[:, 0], [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1], atol=1e-9)
    assert dict(limited.interventions) == {"velocity": (0,)}


def test_a_stop_is_approached_in_time_and_not_overshot() -> None:
    """Step by step, one would run at full speed until the target stands still, and then beyond it."""
    previous = np.array([[-0.1], [0.0]])  # 2 units per second
    plan = np.array([0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4, 0.4])[:, None]
    limited = limit_plan(plan, previous, limits(bounds=(-1, 0.4), acceleration=20.0), hz=HZ).targets
    assert limited.max() <= 0.4 + 1e-9
    assert np.abs(np.diff(np.concatenate([previous, limited]), n=2, axis=0)).max() * HZ**2 <= 20.0 + 1e-6
    assert np.abs(limited - plan).max() < 0.1


def test_only_the_dimension_that_breaks_a_limit_is_changed() -> None:
    plan = np.stack([np.linspace(0, 0.1, 6), np.ones(6)], axis=1)
    limited = limit_plan(plan, at_rest(2), limits(2, bounds=(-1, 0.5)), hz=HZ)
    np.testing.assert_array_equal(limited.targets[:, 0], plan[:, 0])
    np.testing.assert_allclose(limited.targets[:, 1], 0.5)
    assert dict(limited.interventions) == {"bounds": (1,)}


def test_what_moves_by_itself_is_limited_by_its_value_and_its_change() -> None:
    plan = np.array([3.0, 3.0, -3.0])[:, None]
    given_limits = limits(velocity=2.0, acceleration=20.0, is_position=False)
    limited = limit_plan(plan, at_rest(), given_limits, hz=HZ)
    fastest, hardest = motion_of(at_rest(), limited.targets, is_position=False)
    assert fastest <= 2.0 + 1e-6
    assert hardest <= 20.0 + 1e-4
    assert set(limited.interventions) == {"velocity", "acceleration"}


def test_where_braking_is_too_late_the_bounds_come_before_the_acceleration() -> None:
    previous = np.array([[0.5], [0.9]])  # 8 units per second, a tenth before the bound
    limited = limit_plan(np.full((4, 1), 2.0), previous, limits(bounds=(-1, 1), velocity=10.0, acceleration=1.0), hz=HZ)
    assert limited.targets.max() <= 1 + 1e-9
    assert "braking" in limited.interventions


def test_from_outside_the_bounds_it_comes_back_at_the_limit_of_velocity() -> None:
    limited = limit_plan(
        np.zeros((4, 1)), at_rest(1, 3.0), limits(bounds=(-1, 1), velocity=10.0, acceleration=100.0), hz=HZ
    )
    np.testing.assert_allclose(limited.targets[:, 0], [2.5, 2, 1.5, 1])
    assert "braking" in limited.interventions


@pytest.mark.parametrize("excess", [1e-7, 1e-3])
def test_rounding_is_no_violation_and_a_thousandth_is(excess: float) -> None:
    limited = limit_plan(np.full((3, 1), 1 + excess), at_rest(1, 1.0), limits(bounds=(0, 1)), hz=HZ)
    assert bool(limited.interventions) == (excess > 1e-6)
