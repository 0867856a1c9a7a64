"""A task that moves as a robot does: by its newest command, or holding for a reason. In the test's own process."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from flowchunk.datasets.errors import ConfigurationError, RobotError
from flowchunk.datasets.specs import ObservationSpec
from flowchunk.envs.robots.env_holding import env_hold_action, measured_positions
from flowchunk.envs.robots.lossy_channel import LossyChannel
from flowchunk.envs.robots.simulated_options import SimulatedOptions
from flowchunk.envs.robots.simulated_task import EventLog, SimulatedTask
from tests.envs.custom_environments import Reach
from tests.envs.robots.fake_robots import arm_actions, arm_field

pytestmark = pytest.mark.real_time

NOW = -1e6  # before any step, so that a command of this time has arrived


class Moved:
    """A simulated task, and the log of what it did."""

    def __init__(self, path: Path, **options: Any) -> None:
        env = gymnasium.make("flowchunk.envs:flowchunk/PickPlace-v1", max_episode_steps=-1, disable_env_checker=True)
        self.env: Any = env.unwrapped
        self._path, channel = path, options.pop("channel", LossyChannel())
        options = {"command_timeout": 1e9, **options}
        self._log = EventLog(path)
        self.task = SimulatedTask(env, channel=channel, log=self._log, **options)
        self.task.reset(0, channel)
        self.start = self.task.hold("test")

    def events(self, kind: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self._path.read_text().splitlines()]
        return [event for event in found if event["event"] == kind]

    def close(self) -> None:
        self.env.close()
        self._log.close()

    def last_step(self) -> dict[str, Any]:
        self.task.step(late=0.0)
        return self.events("step")[-1]


@pytest.fixture
def moved(tmp_path: Path) -> Iterator[Moved]:
    moved = Moved(tmp_path / "log")
    yield moved
    moved.close()


def test_it_holds_until_a_command_arrives(moved: Moved) -> None:
    assert moved.last_step()["holding"] == "test"
    np.testing.assert_array_equal(moved.last_step()["target"], moved.start)
    target = moved.start + 0.1
    moved.task.command(target, NOW)
    step = moved.last_step()
    assert step["holding"] is None
    np.testing.assert_array_equal(step["target"], target)
    assert moved.env.joint_positions()[0] > 0.01


def test_only_the_newest_command_that_has_arrived_is_followed(moved: Moved) -> None:
    for offset in (0.1, 0.2, 0.3):
        moved.task.command(moved.start + offset, NOW)
    moved.task.command(moved.start + 0.4, time.monotonic() + 1e6)
    np.testing.assert_array_equal(moved.last_step()["target"], moved.start + 0.3)
    np.testing.assert_array_equal(moved.last_step()["target"], moved.start + 0.3)


def test_a_command_that_is_overtaken_is_ignored(moved: Moved) -> None:
    """The way of the first takes longer than that of the second."""
    soon = time.monotonic() + 0.05
    moved.task.command(moved.start + 0.1, soon)
    moved.task.command(moved.start + 0.2, NOW)
    np.testing.assert_array_equal(moved.last_step()["target"], moved.start + 0.2)
    time.sleep(max(0.0, soon - time.monotonic()) + 0.01)
    np.testing.assert_array_equal(moved.last_step()["target"], moved.start + 0.2)


def test_holding_forgets_commands_on_their_way_and_does_not_creep(moved: Moved) -> None:
    moved.task.command(moved.start + 0.1, NOW)
    moved.task.step(late=0.0)
    moved.task.command(moved.start + 0.2, NOW)
    held = moved.task.hold("stop")
    np.testing.assert_array_equal(held, moved.env.hold_action())
    step = moved.last_step()
    assert step["holding"] == "stop"
    np.testing.assert_array_equal(step["target"], held)
    np.testing.assert_array_equal(moved.task.hold("again"), held)


@pytest.mark.parametrize(("timeout", "holds"), [(0.02, True), (1e9, False), (None, True)])
def test_it_holds_by_itself_if_commands_stop(tmp_path: Path, timeout: float | None, holds: bool) -> None:
    moved = Moved(tmp_path / "log", command_timeout=timeout)
    assert moved.task.command_timeout == pytest.approx(0.075 if timeout is None else timeout)
    moved.task.command(moved.start + 0.1, time.monotonic())
    assert moved.last_step()["holding"] is None
    time.sleep(0.09)  # longer than one and a half control periods
    assert moved.last_step()["holding"] == ("no command in time" if holds else None)
    moved.task.command(moved.start + 0.1, time.monotonic())
    assert moved.last_step()["holding"] is None
    moved.close()


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.full(7, np.nan), "expected finite numbers"),
        (np.array([0, 0, 0, np.inf, 0, 0, 0.0]), "expected finite numbers"),
        (np.zeros(6), r"expected 7 numbers, got shape \(6,\)"),
        (np.zeros((1, 7)), r"expected 7 numbers, got shape \(1, 7\)"),
        (None, "expected 7 numbers, got none"),
    ],
)
def test_commands_that_cannot_be_followed_are_refused_and_it_holds(
    moved: Moved, action: np.ndarray | None, message: str
) -> None:
    moved.task.command(moved.start + 0.1, NOW)
    moved.task.step(late=0.0)
    with pytest.raises(RobotError, match=rf"a command was refused, and the robot holds: {message}"):
        moved.task.command(action, NOW)
    assert moved.last_step()["holding"] == "a command was refused"
    assert "expected" in moved.events("command")[-1]["refused"]


def test_a_reset_starts_the_episode_of_its_seed_and_holds(moved: Moved) -> None:
    moved.task.command(moved.start + 0.3, NOW)
    moved.task.step(late=0.0)
    moved.task.command(moved.start + 0.3, NOW)
    moved.task.reset(5, LossyChannel(drop=1.0))
    moved.task.command(moved.start + 0.3, NOW)
    assert moved.last_step()["holding"] == "reset", "by the new channel, which loses it"
    cube = moved.env.cube_position()
    moved.env.reset(seed=5)
    np.testing.assert_allclose(moved.env.cube_position()[:2], cube[:2], atol=1e-3)
    assert moved.task.outcome() == {"score": 0.0, "is_success": False}


def test_delays_and_losses_depend_on_the_seed_only(tmp_path: Path) -> None:
    def travel_times(name: str, seed: int) -> list[float | None]:
        channel = LossyChannel(delay=0.1, jitter=0.2, drop=0.3, seed=(seed,))
        moved = Moved(tmp_path / name, channel=channel)
        for _ in range(200):
            moved.task.command(moved.start, NOW)
        moved.close()
        return [event["travel_time"] for event in moved.events("command")]

    first = travel_times("a", 0)
    assert first == travel_times("b", 0) != travel_times("c", 1)
    arrived = [seconds for seconds in first if seconds is not None]
    assert 0.1 <= min(arrived) < 0.12
    assert 0.28 < max(arrived) <= 0.3
    assert 0.2 < first.count(None) / len(first) < 0.4


def test_a_perfect_channel_neither_delays_nor_loses() -> None:
    channel = LossyChannel()
    assert [channel.travel_time() for _ in range(100)] == [0.0] * 100
    lossy = LossyChannel(drop=1.0)
    assert [lossy.travel_time() for _ in range(100)] == [None] * 100


# -- other environments -----------------------------------------------------------------------------------------------------


def test_an_environment_without_hold_action_holds_at_what_it_observes() -> None:
    env = Reach()
    env.reset(seed=0)
    assert env_hold_action(env, {"state": np.array([0.5])}, last=np.array([0.9])).tolist() == [0.5]


def test_positions_are_measured_under_the_same_name_and_unit() -> None:
    spec = ObservationSpec(
        {"a": arm_field(("wrist", "x")), "b": arm_field(("elbow",), unit="deg"), "c": arm_field(("shoulder",))}
    )
    observed = {"a": np.array([1.0, 2.0]), "b": np.array([3.0]), "c": np.array([4.0])}
    np.testing.assert_array_equal(measured_positions(spec, arm_actions(), observed), [4.0, np.nan, 1.0])


# -- options ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"drop": 1.5}, "drop: expected a probability from 0 to 1, got 1.5"),
        ({"drop": -0.1}, "drop: expected a probability"),
        ({"jitter": -1}, "jitter: expected a number of seconds from 0, got -1"),
        ({"sensing_delay": float("nan")}, "sensing_delay: expected a number of seconds"),
        ({"command_delay": "soon"}, "command_delay: expected a number of seconds"),
        ({"command_timeout": float("inf")}, "command_timeout: expected a number of seconds"),
        ({"linger": True}, "linger: expected a number of seconds"),
        ({"seed": -1}, "seed: expected an integer from 0"),
        ({"seed": 0.5}, "seed: expected an integer from 0"),
        ({"env": {"size": np.zeros(2)}}, "env: expected options that JSON can hold"),
    ],
)
def test_options_that_cannot_be_used_are_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        SimulatedOptions(env_id="flowchunk/PushT-v1", **option)


@pytest.mark.parametrize(
    "options",
    [
        SimulatedOptions(env_id="flowchunk/PushT-v1"),
        SimulatedOptions(
            env_id="module:Id-v0",
            env={"observation": "image", "size": [1, 2.5], "none": None},
            seed=3,
            sensing_delay=0.1,
            command_delay=0.2,
            jitter=0.3,
            drop=0.4,
            command_timeout=0.5,
            log="/tmp/a b.jsonl",
            linger=1.0,
        ),
    ],
)
def test_options_survive_the_command_line(options: SimulatedOptions) -> None:
    arguments = ["--address", "/tmp/socket", *options.to_arguments()]
    assert SimulatedOptions.parse_arguments(arguments) == (options, "/tmp/socket")


def test_paths_need_no_quotation_marks_on_the_command_line() -> None:
    options, _ = SimulatedOptions.parse_arguments(
        ["flowchunk/PushT-v1", "--address", "a", "--log", "/tmp/log", "--seed=2"]
    )
    assert (options.log, options.seed) == ("/tmp/log", 2)
