"""Environments in other processes: errors arrive as they are, and no process is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]  # it comes with Gymnasium, without types
import gymnasium
import numpy as np
import psutil
import pytest

from flowchunk.datasets.errors import ConfigurationError, SimulationError
from flowchunk.envs.env_group import LocalEnvs, ProcessEnvs, make_group
from tests.envs import custom_environments, misbehaving_environments
from tests.envs.custom_environments import Reach
from tests.envs.misbehaving_environments import Misbehaving, OnlyHere, Refusing

for module in (custom_environments, misbehaving_environments):
    cloudpickle.register_pickle_by_value(module)  # other processes cannot import a test
PENDULUM = partial(gymnasium.make, "Pendulum-v1")


def children() -> list[psutil.Process]:
    """The processes of this one that step environments."""
    return [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def trajectory(group: Any) -> list[tuple[dict[int, list[float]], dict[int, bool]]]:
    """Five environments reset, some of them stepped, and one reset again."""
    steps = [group.reset({number: 10 + number for number in range(5)})]
    steps += [group.step({number: np.full(1, number / 5) for number in (4, 0, 3)}) for _ in range(3)]
    steps += [group.reset({2: 99}), group.reset({}), group.step({2: np.ones(1)})]
    return [
        (
            {number: step.observation.tolist() for number, step in sorted(found.items())},
            {number: step.is_over for number, step in found.items()},
        )
        for found in steps
    ]


def test_processes_give_the_same_as_one_and_end_with_it() -> None:
    before = children()
    local, spread = make_group(PENDULUM, 5, processes=1), make_group(PENDULUM, 5, processes=3)
    assert isinstance(local, LocalEnvs)
    assert isinstance(spread, ProcessEnvs)
    started = [child for child in children() if child not in before]
    assert len(started) == 2, "this one is the third"
    expected, got = trajectory(local), trajectory(spread)
    assert [observed for observed, _ in expected] == [observed for observed, _ in got]
    assert got[1][1] == {4: False, 0: False, 3: False}
    assert sorted(got[4][1]) == [2]
    assert got[5][1] == {}
    spread.close()
    assert not [child for child in started if child.is_running()]


def test_there_are_no_more_processes_than_environments() -> None:
    assert isinstance(make_group(Reach, 1, processes=4), LocalEnvs)
    with pytest.raises(ConfigurationError, match="processes=0 must be at least 1"):
        make_group(Reach, 1, processes=0)


def test_what_cannot_be_made_is_said_once() -> None:
    before = children()
    with pytest.raises(SimulationError, match=r"FileNotFoundError: scene.xml is missing \(.*, line \d+\)$"):
        make_group(OnlyHere, 2, processes=2)
    assert children() == before


def test_our_own_errors_keep_their_kind() -> None:
    before = children()
    with pytest.raises(ConfigurationError, match="only here"):
        make_group(Refusing, 2, processes=2)
    with pytest.raises(ZeroDivisionError):  # of this process, as with one
        make_group(lambda: 1 // 0, 2, processes=2)  # type: ignore[arg-type,return-value]
    assert children() == before


def test_a_process_that_dies_is_an_error_with_its_status() -> None:
    before = children()
    group = make_group(partial(Misbehaving, "death"), 2, processes=2)
    group.reset({0: 1, 1: 0})
    group.step({0: np.zeros(1), 1: np.zeros(1)})
    with pytest.raises(SimulationError, match=r"process 2 of 2 .* ended unexpectedly \(exit code 7\); try processes=1"):
        group.step({0: np.zeros(1), 1: np.zeros(1)})
    assert list(group.reset({0: 1})) == [0], "this one can go on"
    with pytest.raises(SimulationError, match="process 2 of 2"):
        group.step({1: np.zeros(1)})
    group.close()
    assert children() == before


PROGRAM = """
import sys
import numpy as np
import gymnasium
from functools import partial
from flowchunk.envs.env_group import make_group

if __name__ == "__main__":
    group = make_group(partial(gymnasium.make, "Pendulum-v1"), 4, processes=2)
    group.reset(dict.fromkeys(range(4), 0))
    print("running", flush=True)
    try:
        while True:
            group.step(dict.fromkeys(range(4), np.zeros(1)))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    finally:
        group.close()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals work differently on Windows")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_behind(number: int, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    started = subprocess.Popen(
        [sys.executable, "-P", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "running\n"
    others = psutil.Process(started.pid).children(recursive=True)
    assert others
    time.sleep(0.2)
    if number == signal.SIGINT:
        os.killpg(started.pid, number)  # as a terminal does
        printed, errors = started.communicate(timeout=20)
        assert (printed, errors, started.returncode) == ("interrupted\n", "", 0)
    else:
        started.kill()
        started.communicate(timeout=20)
    gone, alive = psutil.wait_procs(others, timeout=10)
    assert gone
    assert not alive
