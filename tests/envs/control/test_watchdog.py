"""The watchdog moves the robot as planned and no further: real processes, and a driver that writes down each call."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from flowchunk.datasets.errors import ConfigurationError, RobotError, SpecMismatchError
from flowchunk.datasets.specs import ActionDimension, ActionSpec
from flowchunk.envs.control.command_stream import STALE_AFTER
from flowchunk.envs.control.limiter import MotionLimits
from flowchunk.envs.control.messages import Wait
from flowchunk.envs.control.robot_lock import only_loop
from tests.envs.control.faults import PERIOD, SLACK, read_log, shoulders, watched
from tests.envs.control.faulty_arm import CONTROL_HZ, RATE, FaultyArm

pytestmark = pytest.mark.real_time

STEP = 1.0 / RATE * (1 + 1e-5)  # rad: the most that a joint may move between two commands


def test_it_follows_the_plan_and_holds_once_that_is_stale(tmp_path: Path) -> None:
    """Whatever the keys of a terminal send to all of its processes."""
    with watched(tmp_path) as run:
        assert (run.ready.command_hz, run.ready.can_reset) == (RATE, False)
        np.testing.assert_array_equal(run.ready.held, np.zeros(3))
        for key in (signal.SIGINT, signal.SIGTSTP, signal.SIGQUIT):
            os.kill(run.helper.pid, key)
        _, ticks = run.move(8)
        silent = time.monotonic()
        positions = [tick.observation["joints"][0] for tick in ticks]
        assert positions[0] == 0
        assert np.all(np.diff(positions[1:]) > 0)
        assert [timing.limit > 0 for timing in ticks[5].timings].count(True) == 1, "limited once per plan"
        time.sleep(STALE_AFTER * PERIOD + SLACK)
        assert np.diff(shoulders(run)).max() <= STEP
        held = shoulders(run, after=silent + STALE_AFTER * PERIOD + SLACK / 2)
        assert len(held) > 3, "it goes on commanding the same place"
        assert np.ptp(held) == 0
        kinds = []
        for _ in range(4):
            run.helper.send(Wait())
            kinds += [event.kind for event in run.tick().events]
        assert kinds == ["stale"]
        assert run.halt().is_holding
        count = len(run.commands())
        time.sleep(2 * PERIOD)
        assert len(run.commands()) == count, "a held robot is not commanded"
    assert run.helper.process.exitcode == 0
    assert [line["event"] for line in run.log()][-2:] == ["hold", "close"]


def test_a_suspended_watchdog_makes_up_for_nothing(tmp_path: Path) -> None:
    """Deadlines in the meantime are missed, and counted; commands come neither in a burst nor with a jump."""
    with watched(tmp_path) as run:
        before, _ = run.move(4)
        os.kill(run.helper.pid, signal.SIGSTOP)
        time.sleep(6 * PERIOD)
        resumed = time.monotonic()
        os.kill(run.helper.pid, signal.SIGCONT)
        run.play(before, 0.1, 0.1, 0.1)
        tick = run.tick(after=resumed)
        assert tick.missed - before.missed >= 5 * PERIOD * RATE
        for step in range(3):
            run.play(tick, 0.1 + 0.01 * step, 0.1)
            tick = run.tick()
        times = np.array([line["time"] for line in run.commands()])
        spent = times[-1] - resumed
        assert np.sum(times > resumed) <= spent * RATE + 3
        assert np.abs(np.diff(shoulders(run))).max() <= STEP


@pytest.mark.parametrize("steps", [0, 3])
def test_it_never_waits_for_a_loop_that_does_not_read(steps: int, tmp_path: Path) -> None:
    """Although one image fills the pipe between them."""
    shape = (480, 640, 3)
    spec = FaultyArm("", image=shape).observation_spec
    with watched(tmp_path, arm={"image": shape}, observation_spec=spec) as run:
        tick, _ = run.move(steps)
        assert tick.observation["image"].shape == shape
        run.play(tick, 0.5, 1.0, 1.5)
        silent = time.monotonic()
        time.sleep(STALE_AFTER * PERIOD + SLACK)
        held = shoulders(run, after=silent + STALE_AFTER * PERIOD + SLACK / 2)
        assert len(held) > 3
        assert np.ptp(held) == 0


def test_the_first_target_is_approached_slowly_while_the_loop_is_alive(tmp_path: Path) -> None:
    with watched(tmp_path) as run:
        run.begin()
        run.approach(0.1)
        began, was_silent = time.monotonic(), False
        while not (tick := run.tick()).has_arrived:
            assert time.monotonic() < began + 10
            run.helper.send(Wait())
            if tick.observation["joints"][0] > 0.03 and not was_silent:
                was_silent, silent = True, time.monotonic()
                time.sleep(STALE_AFTER * PERIOD + SLACK)
                paused = shoulders(run, after=silent + STALE_AFTER * PERIOD + SLACK / 2)
                assert len(paused) > 3
                assert np.ptp(paused) == 0
                assert paused[0] < 0.1
        assert was_silent
        assert np.diff(shoulders(run)).max() <= 0.25 * STEP
        assert shoulders(run)[-1] == pytest.approx(0.1)


def test_a_first_target_that_cannot_be_approached_is_said_so(tmp_path: Path) -> None:
    """A joint that the demonstrations never moved stands elsewhere."""
    wide, velocity = np.full(3, np.inf), np.array([1.0, 0.0, 1.0])
    limits = MotionLimits(-wide, wide, velocity, wide, np.ones(3, bool))
    with watched(tmp_path, limits=limits) as run:
        run.begin()
        run.approach(0.1)
        assert run.until_stopped() == (
            "the first target cannot be approached: ['elbow'] are elsewhere and must not move, their velocity limit is 0; "
            "move them by hand, or give safety.velocity_max"
        )
        assert not run.commands()


def test_joints_in_another_order_move_the_same(tmp_path: Path) -> None:
    """Each command goes to the joint of its name; the narrower bounds hold."""
    with watched(tmp_path, arm={"joints": ("wrist", "shoulder", "elbow")}) as run:
        tick = run.begin()
        for step in range(1, 5):
            run.play_each(tick, [0.01 * step, -0.02 * step, 0.03 * step])
            tick = run.tick()
        run.play_each(tick, [0.04, -0.08, 0.12])
        tick = run.tick()
        moved = run.commands()[-1]["values"]
        np.testing.assert_allclose(
            [moved[name] for name in ("shoulder", "elbow", "wrist")], [0.04, -0.08, 0.12], atol=1e-9
        )
        np.testing.assert_allclose(tick.observation["joints"], [0.04, -0.08, 0.12], atol=1e-6)


def test_a_dry_run_commands_nothing_at_all(tmp_path: Path) -> None:
    with watched(tmp_path, robot="ResettableArm", dry_run=True) as run:
        assert run.ready.held is None
        tick, ticks = run.move(6)
        assert tick.target is not None, "what would be sent"
        assert not ticks[-1].is_holding
        run.halt()
    assert [line["event"] for line in run.log()] == ["connect", "close"]


def test_between_episodes_the_scene_may_look_as_it_likes(tmp_path: Path) -> None:
    """Somebody sets it up; the next episode has to begin in order."""
    with watched(tmp_path, robot="ResettableArm") as run:
        assert run.ready.can_reset
        run.move(2)
        assert run.halt().outcome == {"score": 0.5, "is_success": False}
        run.fail("observe:nan")
        time.sleep(2 * PERIOD)
        assert run.halt().stopped is None
        run.fail("")
        assert run.begin().stopped is None
        assert [line["values"]["seed"] for line in run.log("reset")] == [7, 7]
        run.fail("outcome:raise")
        assert run.halt().outcome == {}
        run.fail("reset:raise")
        assert "cannot start an episode: KeyError" in (run.begin().stopped or "")


@pytest.mark.parametrize(("is_lockstep", "is_stopped"), [(True, False), (False, True)])
def test_a_robot_that_measures_when_it_moves_has_no_lost_sensors(
    is_lockstep: bool, is_stopped: bool, tmp_path: Path
) -> None:
    with watched(tmp_path, arm={"is_lockstep": is_lockstep}) as run:
        run.fail("observe:old")
        tick, _ = run.move(2)
        assert (tick.stopped is not None) == is_stopped


def test_specs_that_differ_are_refused_with_both(tmp_path: Path) -> None:
    dimensions = tuple(ActionDimension(name, "rad", "joint") for name in ("shoulder", "elbow", "gripper"))
    with (
        pytest.raises(
            SpecMismatchError, match=r"the policy commands \['gripper'\], but the robot arm:.* only has \['shou"
        ),
        watched(tmp_path, action_spec=ActionSpec(dimensions, CONTROL_HZ)),
    ):
        pass
    assert [line["event"] for line in read_log(tmp_path / "log")] == ["connect", "hold", "close"]


def test_a_rate_below_that_of_the_chunk_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigurationError, match=r"rate=19: .* as the chunk has actions, 20"),
        watched(tmp_path, rate=19.0),
    ):
        pass


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("hold:raise", "cannot be held: KeyError: 'no such register'"),
        ("connect:raise", "cannot be connected: KeyError"),
    ],
)
def test_a_robot_that_cannot_begin_is_an_error(fault: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "fault").write_text(fault)
    with pytest.raises(RobotError, match=message), watched(tmp_path):
        pass


def test_a_second_loop_on_a_robot_is_refused(tmp_path: Path) -> None:
    with watched(tmp_path) as run:
        name = run.ready.name
        refusal = pytest.raises(RobotError, match=f"another control loop drives the robot {name}; stop it first")
        with refusal, watched(tmp_path):
            pass
        assert [line["event"] for line in run.log()] == ["connect", "hold"], "the second one has not touched it"
        assert run.begin().stopped is None
    with only_loop(name), pytest.raises(RobotError, match="another control loop"), only_loop(name):
        pass
    locks = set(Path("/tmp").glob("flowchunk-robot-*.lock"))
    with only_loop(name):
        (lock,) = set(Path("/tmp").glob("flowchunk-robot-*.lock")) - locks
    assert not lock.exists()


def test_another_folder_for_temporary_files_is_not_another_robot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with only_loop("arm:shells"):
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr(tempfile, "tempdir", None)
        assert tempfile.gettempdir() == str(tmp_path)
        with pytest.raises(RobotError, match="another control loop"), only_loop("arm:shells"):
            pass


def test_a_policy_of_the_wrong_kind_of_numbers_stops(tmp_path: Path) -> None:
    with watched(tmp_path) as run:
        tick, _ = run.move(3)
        run.play(tick, 0.1, np.nan, 0.1)
        assert run.until_stopped() == "the plan has targets that are not finite"
        assert np.isfinite(shoulders(run)).all()
