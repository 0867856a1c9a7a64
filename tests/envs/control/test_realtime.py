"""Real-time measures: each is done, or says why not. They change a process for good, so each test has its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def measured(options: str, after: str = "None") -> tuple[dict[str, str], Any]:
    script = f"""
import gc, json, os
from flowchunk.envs.control.realtime import RealTimeOptions, apply_measures
outcome = apply_measures(RealTimeOptions({options}))
print(json.dumps([outcome, {after}]))
"""
    result = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    outcome, found = json.loads(result.stdout)
    return outcome, found


def test_nothing_is_done_that_was_not_asked_for() -> None:
    assert measured("", "gc.isenabled()") == ({}, True)


def test_a_process_stays_on_its_core() -> None:
    assert measured("cpu=0", "sorted(os.sched_getaffinity(0))") == ({"cpu": "done"}, [0])


def test_garbage_collection_is_frozen() -> None:
    outcome, found = measured("freeze_gc=True", "[gc.isenabled(), gc.get_freeze_count() > 100]")
    assert outcome == {"freeze_gc": "done"}
    assert found == [False, True]


def test_timer_slack_is_set_or_the_system_is_said_to_keep_its_own() -> None:
    """Sandboxes (gVisor) and real-time scheduling classes accept the call and change nothing."""
    outcome, slack = measured("timer_slack_us=7", "__import__('ctypes').CDLL(None).prctl(30, 0, 0, 0, 0)")
    assert outcome == {
        "timer_slack_us": "done" if slack == 7000 else f"refused: the system keeps a timer slack of {slack} ns"
    }


def test_what_is_refused_says_why_and_the_rest_is_done() -> None:
    outcome, _ = measured("cpu=100000, freeze_gc=True")
    assert outcome["cpu"].startswith("refused: ")
    assert len(outcome["cpu"]) > len("refused: ")
    assert outcome["freeze_gc"] == "done"


def test_memory_and_priority_are_done_or_refused_with_a_reason() -> None:
    outcome, locked = measured(
        "lock_memory=True, priority=10",
        "[int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmLck')][0]",
    )
    assert (outcome["lock_memory"] == "done") == (locked > 0)
    for word in outcome.values():
        assert word == "done" or word.startswith("refused: ")
