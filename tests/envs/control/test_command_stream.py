"""From plans to commands: rates, handing over, the approach to the first target, and holding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.specs import ActionDimension, ActionSpec
from flowchunk.envs.control.command_stream import STALE_AFTER, CommandStream
from flowchunk.envs.control.limiter import MotionLimits

HZ = 10.0
POSITION = ActionDimension("x", "m", "world")
WIDE = np.full(1, np.inf)


def stream(
    *, rate: float = HZ, velocity: float = np.inf, dimension: ActionDimension = POSITION, **options: Any
) -> CommandStream:
    limits = MotionLimits(-WIDE, WIDE, np.full(1, velocity), WIDE, np.array([dimension.quantity == "position"]))
    return CommandStream(ActionSpec((dimension,), HZ), limits, rate, **options)


def commands(made: CommandStream, start: float, count: int) -> list[float]:
    """Of ``count`` ticks from ``start`` on."""
    found = []
    for number in range(count):
        command = made.command(start + number / made.rate)
        assert command is not None
        found.append(float(command[0]))
    return found


def column(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


def test_at_equal_rates_every_target_is_commanded_when_it_is_due() -> None:
    made = stream()
    made.hold_at(np.zeros(1))
    made.play(5.0, column(1, 2, 4, 8))
    assert commands(made, 5.0, 5) == [1, 2, 4, 8, 8]


def test_at_a_higher_rate_targets_are_interpolated_and_met_when_they_are_due() -> None:
    made = stream(rate=50.0)
    made.hold_at(np.zeros(1))
    made.play(5.0, column(0, 10, 30))
    np.testing.assert_allclose(commands(made, 5.0, 11), [0, 2, 4, 6, 8, 10, 14, 18, 22, 26, 30], atol=1e-9)


@pytest.mark.parametrize("rate", [25.0, 47.0, 50.0, 100.0, 125.0])
def test_a_plan_that_is_renewed_at_every_step_is_followed_like_one(rate: float) -> None:
    """Although every renewal comes after its step; if no command falls on a step, up to the motion of one command."""
    targets = np.cumsum(np.random.default_rng(0).uniform(-1, 1, (12, 1)), axis=0)
    made = stream(rate=rate)
    made.hold_at(targets[0])
    step, found = 0, []
    for number in range(int(1.0 * rate)):
        now = number / rate
        while step + 1 < len(targets) and now > step / HZ + 0.005:
            made.play(step / HZ, targets[step:])
            step += 1
        if (command := made.command(now)) is not None:
            found.append((now, float(command[0])))
    times, values = np.array(found).T
    error = 1e-6 if rate % HZ == 0 else HZ / rate * np.abs(np.diff(targets, axis=0)).max()
    np.testing.assert_allclose(values, np.interp(times, np.arange(12) / HZ, targets[:, 0]), atol=error)


def test_a_new_chunk_does_not_make_the_commands_jump() -> None:
    made = stream(rate=50.0)
    made.hold_at(np.zeros(1))
    made.play(0.0, column(0, 1, 2, 3))
    before = commands(made, 0.0, 7)
    made.play(0.1, column(6, 6, 6))  # elsewhere altogether
    after = commands(made, 0.14, 4)
    assert before[-1] == pytest.approx(1.2)
    np.testing.assert_allclose(np.diff([before[-1], *after]), np.full(4, (6 - 1.2) / 4), atol=1e-9)


def test_between_targets_too_the_limit_of_velocity_holds() -> None:
    made = stream(rate=50.0, velocity=10.0)
    made.hold_at(np.zeros(1))
    made.play(0.0, column(0, 1, 2))
    commands(made, 0.0, 3)
    made.play(0.0, column(-5, -5, -5))
    moved = np.abs(np.diff(commands(made, 0.06, 4)))
    assert moved.max() <= 10.0 / 50 * (1 + 1e-5)
    assert any(kind == "velocity" for kind, _ in made.interventions)


def test_the_first_target_is_approached_slowly_and_then_reached() -> None:
    made = stream(velocity=10.0, ramp=0.25)
    made.hold_at(np.zeros(1))
    made.approach(np.array([1.0]))
    assert not made.has_arrived
    np.testing.assert_allclose(commands(made, 0.0, 5), [0.25, 0.5, 0.75, 1, 1])
    assert made.has_arrived
    assert not made.is_stale(1e9), "an approach lasts as long as it needs"


def test_an_approach_stays_within_the_bounds() -> None:
    made = stream(velocity=100.0, ramp=1.0)
    made.limits = replace(made.limits, high=np.array([0.5]))
    made.hold_at(np.zeros(1))
    made.approach(np.array([2.0]))
    assert commands(made, 0.0, 1) == [0.5]
    assert made.has_arrived


def test_without_a_known_place_the_first_target_is_commanded_as_it_is() -> None:
    made = stream(velocity=1.0)
    made.hold_at(None)
    made.play(0.0, column(7, 7))
    assert commands(made, 0.0, 1) == [7]


def test_a_plan_is_stale_when_it_was_not_renewed() -> None:
    made = stream()
    assert made.is_stale(0.0)
    made.hold_at(np.zeros(1))
    made.play(2.0, column(*range(100)))
    assert not made.is_stale(2.0 + 0.99 * STALE_AFTER / HZ)
    assert made.is_stale(2.0 + 1.01 * STALE_AFTER / HZ)


def test_holding_still_repeats_positions_and_stops_what_moves_by_itself() -> None:
    for dimension, held in ((POSITION, 3.0), (ActionDimension("v", "m/s", "world"), 0.0)):
        made = stream(dimension=dimension)
        made.hold_at(np.zeros(1))
        made.play(0.0, column(3, 4))
        made.command(0.0)
        command = made.hold_still(0.1)
        assert command is not None
        assert command.tolist() == [held]
    assert stream().hold_still(0.0) is None


def test_after_holding_it_starts_from_rest() -> None:
    made = stream(velocity=10.0)
    made.hold_at(np.zeros(1))
    made.play(0.0, column(1, 2, 3))
    commands(made, 0.0, 2)
    made.hold_at(np.array([1.5]))
    assert made.target is None
    made.play(1.0, column(9, 9))
    assert commands(made, 1.0, 1) == [2.5]


def test_the_target_of_a_step_is_what_was_commanded_for_it() -> None:
    made = stream(velocity=10.0)
    made.hold_at(np.zeros(1))
    made.play(0.0, column(5, 5))
    np.testing.assert_allclose(made.target, [1.0])  # type: ignore[arg-type]
    fast = stream(rate=50.0)
    fast.hold_at(np.array([2.0]))
    fast.play(0.0, column(2, 3))
    fast.command(0.0)
    fast.play(0.0, column(8, 8))  # comes after this step's command was sent
    np.testing.assert_allclose(fast.target, [2.0])  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [0.0, 5.0, 9.99])
def test_a_rate_below_the_chunks_own_is_refused(rate: float) -> None:
    with pytest.raises(ConfigurationError, match=r"at least as many commands per second as the chunk has actions, 10"):
        stream(rate=rate)


def test_displacements_cannot_be_interpolated() -> None:
    displacement = ActionDimension("dx", "m", "world", reference="delta")
    stream(dimension=displacement)
    with pytest.raises(ConfigurationError, match=r"\['dx'\] are displacements per control step.*rate=10"):
        stream(rate=20.0, dimension=displacement)


@pytest.mark.parametrize("rotation", ["axis_angle", "euler_xyz", "quaternion_xyzw"])
def test_rotations_that_jump_cannot_be_interpolated(rotation: str) -> None:
    """From 3.14 to -3.12 an angle moves by 0.02, and its interpolation by nearly a full turn."""
    turning = ActionDimension("rx", "rad", "world", rotation=rotation)
    stream(dimension=turning)
    stream(rate=20.0, dimension=replace(turning, rotation="rotation_6d", unit="1"))
    with pytest.raises(
        ConfigurationError, match=rf"rate=20 of 10 .*\['rx'\] are a rotation in {rotation}.*rotation_6d"
    ):
        stream(rate=20.0, dimension=turning)


def accelerating(*, acceleration: float) -> CommandStream:
    limits = MotionLimits(-WIDE, WIDE, np.full(1, 20.0), np.full(1, acceleration), np.array([True]))
    return CommandStream(ActionSpec((POSITION,), HZ), limits, HZ)


def test_a_new_plan_continues_the_speed_of_the_commands() -> None:
    made = accelerating(acceleration=10.0)  # 0.1 per step and step
    made.hold_at(np.zeros(1))
    made.play(0.0, column(0.1, 0.3, 0.6, 1.0))
    np.testing.assert_allclose(commands(made, 0.0, 4), [0.1, 0.3, 0.6, 1.0], atol=1e-6)
    made.play(0.4, column(1.5, 2.1, 2.8, 3.6))
    np.testing.assert_allclose(commands(made, 0.4, 4), [1.5, 2.1, 2.8, 3.6], atol=1e-6)
    assert not made.interventions


def test_after_being_held_it_starts_from_rest() -> None:
    made = accelerating(acceleration=10.0)
    made.hold_at(np.zeros(1))
    made.play(0.0, column(0.1, 0.3, 0.6, 1.0))
    commands(made, 0.0, 4)
    made.hold_at(np.ones(1))
    made.play(0.4, column(1.4, 1.4, 1.4))
    np.testing.assert_allclose(commands(made, 0.4, 1), [1.1], atol=1e-6)


def test_a_plan_is_limited_once_and_again_only_where_the_commands_have_left_it() -> None:
    targets = column(0, 9, 3, 3, 9, 9, 0, 9)
    whole, renewed = stream(velocity=20.0), stream(velocity=20.0)
    for made in (whole, renewed):
        made.hold_at(np.zeros(1))
    whole.play(0.0, targets)
    found = []
    for step in range(5):
        renewed.play(step / HZ, targets[step:])
        found += commands(renewed, step / HZ, 1)
    assert found == commands(whole, 0.0, 5)
    assert [kind for kind, _ in renewed.interventions] == ["velocity"], "limited once"
    renewed.play(0.5, column(9, 0, 8))
    assert len(renewed.interventions) == 2, "another plan is limited again"


def test_after_holding_still_the_rest_of_the_plan_is_limited_from_there() -> None:
    made = stream(velocity=10.0)
    made.hold_at(np.zeros(1))
    targets = column(*range(12))
    made.play(0.0, targets)
    path = commands(made, 0.0, 3)
    for step in (3, 4, 5, 6):
        held = made.hold_still(step / HZ)
        assert held is not None
        path.append(float(held[0]))
    made.play(0.7, targets[7:])
    path += commands(made, 0.7, 5)
    assert np.abs(np.diff(path)).max() <= 1.0 + 1e-5
    assert path[6] == path[2]


def test_an_approach_holds_what_is_no_position_and_names_what_must_not_move() -> None:
    """A speed of the first target would be commanded all along the approach, and a displacement again and again."""
    speed = ActionDimension("v", "m/s", "world")
    step = ActionDimension("dx", "m", "world", reference="delta")
    for dimension in (speed, step):
        made = stream(velocity=1.0, dimension=dimension)
        made.hold_at(np.zeros(1))
        made.approach(np.ones(1))
        assert commands(made, 0.0, 2) == [0, 0]
        assert made.has_arrived
        assert made.out_of_reach() == []
    fixed = stream(velocity=0.0)
    fixed.hold_at(np.zeros(1))
    fixed.approach(np.ones(1))
    assert fixed.out_of_reach() == [0]
    fixed.approach(np.zeros(1))
    assert fixed.out_of_reach() == []
