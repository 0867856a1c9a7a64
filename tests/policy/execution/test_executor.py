"""The executor: which action comes next, when a chunk is requested, and what it is to continue."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowchunk.datasets.errors import ConfigurationError, SpecMismatchError
from flowchunk.datasets.specs import ActionDimension, ActionSpec
from flowchunk.policy.execution.executor import ChunkExecution, ChunkExecutor, ChunkRequest, Placement
from flowchunk.policy.execution.strategies import AGE_DECAY, STRATEGIES

H = 8
EXECUTION = ChunkExecution(observation_steps=2, horizon=H, n_action_steps=4)
CONCURRENT = [name for name, strategy in STRATEGIES.items() if not strategy.waits]


def with_strategy(strategy: str, **changes: Any) -> ChunkExecution:
    return replace(EXECUTION, strategy=strategy, longest_prefix=4, **changes)


def numbered(number: int, step: int) -> np.ndarray:
    """The chunk ``number``, requested at ``step``: its action for step s is (number, s)."""
    return np.stack([np.full(H, float(number)), np.arange(step, step + H, dtype=float)], axis=1)


def test_rotations_that_jump_are_not_averaged() -> None:
    spec = ActionSpec((ActionDimension("rx", "rad", "world", rotation="axis_angle"),), control_hz=10)
    for execution in (with_strategy("temporal_ensemble"), replace(EXECUTION, reanchor_steps=2)):
        with pytest.raises(
            ConfigurationError, match=r"(strategy=temporal_ensemble|reanchor_steps=2): \['rx'\] are a rot"
        ):
            execution.check_actions(spec)
        for change in ({"rotation": "rotation_6d"}, {"reference": "delta"}, {"rotation": None}, {"unit": "rad/s"}):
            execution.check_actions(ActionSpec((replace(spec.dimensions[0], **change),), control_hz=10))
    with_strategy("real_time").check_actions(spec)


class Run:
    """Executes numbered chunks, each after its delay in calls of ``next_action``."""

    def __init__(self, execution: ChunkExecution, delays: Sequence[int]) -> None:
        self.executor, self.delays = ChunkExecutor(execution), iter([0, *delays])
        self.requests: list[ChunkRequest] = []
        self.placements: list[Placement] = []
        self.actions: list[tuple[int, int]] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        left = None
        while True:
            if (request := self.executor.request()) is not None:
                self.requests.append(request)
                left = next(self.delays, None)
                if left is None:
                    return
            if left == 0 and self.executor.is_waiting:
                chunk = numbered(len(self.requests), self.requests[-1].step)
                self.placements.append(self.executor.receive(chunk))
            if left is not None:
                left -= 1
            action = self.executor.next_action()
            assert action is not None
            self.actions.append((int(action[0]), round(action[1])))  # averages are rounded
            yield self.actions[-1]

    def all(self) -> list[tuple[int, int]]:
        return list(self)


def test_without_delay_every_strategy_but_the_ensemble_executes_the_newest_chunk() -> None:
    for name in ("synchronous", "asynchronous", "real_time"):
        actions = Run(with_strategy(name), [0, 0, 0]).all()
        assert actions == [(1 + step // 4, step) for step in range(16)]


def test_a_synchronous_robot_waits_for_its_chunk_and_skips_none_of_it() -> None:
    run = Run(with_strategy("synchronous"), [3, 1])
    assert run.all() == [
        *((1, step) for step in range(4)),
        *[(1, 3)] * 3,  # it holds
        *((2, step) for step in range(4, 8)),
        (2, 7),
        *((3, step) for step in range(8, 12)),
    ]
    assert [placement.delay for placement in run.placements] == [0, 0, 0]


@pytest.mark.parametrize("strategy", ["asynchronous", "real_time"])
def test_meanwhile_the_old_chunk_is_executed_and_as_much_of_the_new_one_skipped(strategy: str) -> None:
    run = Run(with_strategy(strategy), [3, 1])
    assert run.all() == [
        *((1, step) for step in range(7)),
        *((2, step) for step in range(7, 9)),
        *((3, step) for step in range(9, 12)),
    ]
    assert [placement.delay for placement in run.placements] == [0, 3, 1]
    assert [placement.is_first for placement in run.placements] == [True, False, False]


@given(
    strategy=st.sampled_from(sorted(STRATEGIES)),
    n_action_steps=st.integers(1, H),
    delays=st.lists(st.integers(0, 12), max_size=6),
)
@settings(deadline=None)
def test_every_step_is_executed_once_and_in_order(strategy: str, n_action_steps: int, delays: list[int]) -> None:
    """Whatever the delays: steps advance by one or the robot holds, and no chunk is executed before its request."""
    run = Run(with_strategy(strategy, n_action_steps=n_action_steps), delays)
    steps = [step for _, step in run.all()]
    assert steps[0] == 0
    assert all(after - before in (0, 1) for before, after in pairwise(steps))
    for placement, delay in zip(run.placements, [0, *delays], strict=False):
        assert placement.delay <= delay
    for request, following in pairwise(run.requests):
        assert following.step - request.step >= min(n_action_steps, H)


def test_a_chunk_that_comes_after_the_plan_has_run_out_goes_on_where_the_robot_holds() -> None:
    run = Run(with_strategy("asynchronous"), [6])
    assert run.all() == [*((1, step) for step in range(8)), (1, 7), (1, 7), (2, 8)]
    assert run.placements[-1].delay == 4, "two of the six steps were held, and consumed nothing"


def test_delay_is_counted_in_actions_and_the_first_chunk_is_not_counted() -> None:
    run = Run(with_strategy("real_time", delay=2), [1, 3, *[0] * 10])
    estimates = []
    for _ in run:
        estimates.append(run.executor.delay)
    assert estimates[0] == 2, "the first chunk was waited for, which says nothing"
    assert 1 in estimates
    assert max(estimates) == 3
    assert estimates[-1] == 0, "the longest of the last ten"


def test_the_prefix_is_what_will_be_executed_and_the_tail_what_was_planned_after_it() -> None:
    run = Run(with_strategy("real_time", delay=3), [3, 3])
    run.all()
    first, second, third = run.requests[:3]
    assert first.prefix.shape[0] == first.tail.shape[0] == 0
    np.testing.assert_array_equal(second.prefix, numbered(1, 0)[4:7])
    np.testing.assert_array_equal(second.tail, numbered(1, 0)[7:])
    np.testing.assert_array_equal(third.prefix, numbered(2, 4)[4:7])
    assert not second.is_padded


def test_a_prefix_that_is_too_short_is_padded_by_holding_the_last_target() -> None:
    run = Run(with_strategy("real_time", n_action_steps=7, delay=0), [])
    run.executor.execution = replace(run.executor.execution)
    run.executor._delays.append(4)
    run.all()
    request = run.requests[-1]
    assert request.is_padded
    np.testing.assert_array_equal(request.prefix, numbered(1, 0)[[7, 7, 7, 7]])
    assert len(request.tail) == 0


def test_a_prefix_is_no_longer_than_the_policy_can_continue() -> None:
    run = Run(with_strategy("real_time"), [4, 4])
    run.executor.execution = replace(run.executor.execution, longest_prefix=2)
    run.all()
    assert [len(request.prefix) for request in run.requests] == [0, 0, 2, 2][: len(run.requests)]
    assert [placement.is_late for placement in run.placements] == [False, True, True]


def test_a_chunk_later_than_its_prefix_is_executed_and_reported() -> None:
    run = Run(with_strategy("real_time", delay=1), [3])
    run.all()
    assert run.placements[1].is_late
    assert run.placements[1].delay == 3
    assert (2, 7) in run.actions
    assert not Run(with_strategy("asynchronous", delay=1), [3]).placements


def test_a_chunk_in_time_is_not_late() -> None:
    run = Run(with_strategy("real_time", delay=2), [2, 1])
    run.all()
    assert [placement.is_late for placement in run.placements] == [False, False, False]


def test_the_jump_is_the_new_action_minus_the_one_that_would_have_come() -> None:
    run = Run(with_strategy("asynchronous"), [2, 0])
    run.all()
    np.testing.assert_array_equal([placement.jump for placement in run.placements], [[0, 0], [1, 0], [1, 0]])


def test_reanchoring_begins_on_the_old_plan_and_ends_on_the_new_one() -> None:
    execution = with_strategy("asynchronous", reanchor_steps=4)
    executor = ChunkExecutor(execution)
    executor.request()
    executor.receive(np.zeros((H, 1)))
    for _ in range(4):
        executor.next_action()
    executor.request()
    executor.receive(np.full((H, 1), 8.0))
    np.testing.assert_allclose(executor.upcoming()[:, 0], [0, 2, 4, 6, 8, 8, 8, 8])
    following = [executor.next_action() for _ in range(2)]
    np.testing.assert_allclose(np.concatenate(following), [0, 2])  # type: ignore[arg-type]


def test_a_takeover_in_mid_reanchoring_begins_on_what_was_planned() -> None:
    executor = ChunkExecutor(with_strategy("asynchronous", n_action_steps=2, reanchor_steps=4))
    for value in (0.0, 8.0, 16.0):
        executor.request()
        executor.receive(np.full((H, 1), value))
        actions = [executor.next_action() for _ in range(2)]
    np.testing.assert_allclose(np.concatenate(actions), [4, 7])  # type: ignore[arg-type]


def test_the_ensemble_is_the_weighted_mean_of_all_chunks_with_an_action_for_the_step() -> None:
    executor = ChunkExecutor(with_strategy("temporal_ensemble", n_action_steps=1))
    values = [10.0, 20.0, 40.0]
    for value in values:
        executor.request()
        executor.receive(np.full((H, 1), value))
        action = executor.next_action()
    weights = np.exp(-AGE_DECAY * np.arange(3))
    assert action is not None
    np.testing.assert_allclose(action, [np.average(values, weights=weights)])
    assert weights[0] > weights[2], "the oldest weighs most"
    for value in np.arange(50.0):
        executor.request()
        executor.receive(np.full((H, 1), value))
        executor.next_action()
    assert len(executor._chunks) <= H + 1


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_what_is_upcoming_is_what_comes(strategy: str) -> None:
    executor = ChunkExecutor(with_strategy(strategy, reanchor_steps=3))
    assert executor.upcoming().shape[0] == 0
    assert executor.next_action() is None
    for number in range(3):
        request = executor.request()
        assert request is not None
        executor.receive(numbered(number, request.step))
        upcoming = executor.upcoming()
        assert len(upcoming) == (4 if strategy == "synchronous" else H)
        for expected in upcoming[:4]:
            np.testing.assert_array_equal(executor.next_action(), expected)


def test_a_lost_chunk_is_requested_again_at_once() -> None:
    executor = ChunkExecutor(with_strategy("asynchronous"))
    executor.request()
    executor.receive(numbered(1, 0))
    for _ in range(4):
        executor.next_action()
    assert executor.request() is not None
    executor.next_action()
    assert executor.request() is None
    executor.abandon()
    request = executor.request()
    assert request is not None
    assert request.step == 5


def test_a_new_episode_starts_from_nothing_but_the_measured_delays() -> None:
    run = Run(with_strategy("real_time"), [3, 3])
    run.all()
    run.executor.reset()
    assert (run.executor.step, run.executor.next_action(), run.executor.delay) == (0, None, 3)
    request = run.executor.request()
    assert request is not None
    assert len(request.prefix) == 0


def test_the_array_of_a_chunk_may_be_used_again() -> None:
    executor = ChunkExecutor(with_strategy("asynchronous"))
    buffer = numbered(1, 0)
    executor.request()
    executor.receive(buffer)
    first = executor.next_action()
    buffer[:] = 7
    assert first is not None
    assert first.tolist() == [1, 0]
    assert executor.upcoming()[:, 0].tolist() == [1] * (H - 1)


@pytest.mark.parametrize("chunk", [np.zeros((H - 1, 2)), np.zeros(H), np.zeros((1, H, 2))])
def test_chunks_of_another_shape_are_refused(chunk: np.ndarray) -> None:
    executor = ChunkExecutor(EXECUTION)
    executor.request()
    with pytest.raises(SpecMismatchError, match=r"must be \(H, D\) = \(8, D\), but is"):
        executor.receive(chunk)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_chunks_that_are_not_finite_are_refused(value: float) -> None:
    executor = ChunkExecutor(EXECUTION)
    executor.request()
    chunk = numbered(0, 0)
    chunk[-1, 0] = value
    with pytest.raises(SpecMismatchError, match="not finite"):
        executor.receive(chunk)


@pytest.mark.parametrize("strategy", CONCURRENT)
@pytest.mark.parametrize(("delay", "n_action_steps"), [(3, 2), (2, 7), (5, 4), (1, 8)])
def test_delays_that_cannot_be_are_refused(strategy: str, delay: int, n_action_steps: int) -> None:
    with pytest.raises(ConfigurationError, match=r"delay <= n_action_steps <= horizon - delay"):
        with_strategy(strategy, n_action_steps=n_action_steps, delay=delay)


@pytest.mark.parametrize("strategy", CONCURRENT)
@pytest.mark.parametrize(("delay", "n_action_steps"), [(0, 1), (0, 8), (1, 1), (2, 2), (2, 6), (4, 4)])
def test_delays_up_to_the_limits_are_admitted(strategy: str, delay: int, n_action_steps: int) -> None:
    execution = with_strategy(strategy, n_action_steps=n_action_steps, delay=delay, observation_steps=1)
    assert ChunkExecutor(execution).delay == delay


def test_the_defaults_are_those_of_a_simulation() -> None:
    execution = ChunkExecution(1, H, H)
    assert (execution.strategy, execution.longest_prefix, execution.delay, execution.reanchor_steps) == (
        "synchronous",
        0,
        0,
        0,
    )


def test_a_synchronous_robot_admits_any_delay() -> None:
    assert with_strategy("synchronous", n_action_steps=2, delay=100).delay == 100


def test_a_delay_beyond_the_longest_prefix_is_refused_only_where_there_is_a_prefix() -> None:
    with pytest.raises(
        ConfigurationError, match=r"continues at most 2 committed actions: train it with policy.prefix_max=3"
    ):
        ChunkExecution(2, H, 4, strategy="real_time", longest_prefix=2, delay=3)
    ChunkExecution(2, H, 4, strategy="real_time", longest_prefix=3, delay=3)
    ChunkExecution(2, H, 4, strategy="asynchronous", longest_prefix=0, delay=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_action_steps": 0}, "n_action_steps=0"),
        ({"n_action_steps": H + 1}, "n_action_steps=9"),
        ({"observation_steps": 0}, "observation_steps=0"),
        ({"strategy": "smooth"}, "unknown strategy 'smooth'; there are synchronous, asynchronous"),
        ({"reanchor_steps": -1}, "reanchor_steps=-1"),
        ({"delay": -1}, "delay=-1"),
    ],
)
def test_executions_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        replace(EXECUTION, **changes)


def test_executing_chunks_needs_no_simulator_and_no_torch() -> None:
    """With gymnasium, mujoco and torch blocked, the room can be imported and used."""
    script = """
import sys
for name in ("gymnasium", "mujoco", "torch"):
    sys.modules[name] = None
import numpy as np
from flowchunk.policy.execution import checks, executor, history, policy, strategies
run = executor.ChunkExecutor(executor.ChunkExecution(2, 8, 4))
assert run.request() is not None
run.receive(np.zeros((8, 2)))
assert run.next_action().shape == (2,)
"""
    result = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
