"""That a process was killed is noticed before its memory is freed."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from flowchunk.envs.control.liveness import HAS_PROC, is_ending

pytestmark = pytest.mark.real_time

HEAVY = "import time; memory = bytearray(1 << 29); memory[::4096] = bytes(1 << 17); print(flush=True); time.sleep(60)"


@pytest.mark.skipif(not HAS_PROC, reason="this system does not tell")
def test_a_killed_process_is_ending_before_its_pipe_closes() -> None:
    with subprocess.Popen([sys.executable, "-c", HEAVY], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        assert not is_ending(process.pid)
        process.kill()
        deadline = time.monotonic() + 10
        while not is_ending(process.pid):
            assert time.monotonic() < deadline
        assert process.stdout.read() == b""
        assert is_ending(process.pid)
        process.wait()
        assert is_ending(process.pid)
    assert not is_ending(os.getpid())
