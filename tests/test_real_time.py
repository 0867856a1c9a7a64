"""Tests in real time have the machine for themselves: see conftest.py."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest


def others_may_run() -> bool:
    """Whether another worker would get the lock that each test holds."""
    descriptor = os.open(Path(__file__).parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


@pytest.mark.real_time
def test_in_real_time_no_other_test_runs() -> None:
    assert not others_may_run()


def test_others_run_side_by_side() -> None:
    assert others_may_run()
