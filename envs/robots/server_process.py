"""Start and end the process of a simulated robot, which outlives the process that started it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from flowchunk.datasets.errors import RobotError
from flowchunk.envs.robots.simulated_options import SimulatedOptions

START_TIMEOUT = 60.0  # s, for a machine that is busy or imports from a slow disk
END_TIMEOUT = 3.0  # s


class ServerProcess:
    """A process of ``simulated_server`` with a folder of its own. Raises RobotError if it does not start."""

    def __init__(self, options: SimulatedOptions) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="flowchunk-robot-"))
        self.address = self._folder / "socket"
        command = [sys.executable, "-P", "-m", "flowchunk.envs.robots.simulated_server"]
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [*command, "--address", str(self.address), *options.to_arguments()],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,  # Ctrl-C in the terminal is for the controller alone
            )
        try:
            self._wait_for_socket()
        except BaseException:
            self.close()
            raise

    @property
    def last_words(self) -> str:
        """The last line that the process has printed, empty if there is none."""
        lines = self._errors.read_text(errors="replace").split("\n") if self._errors.exists() else []
        return next((line for line in reversed(lines) if line.strip()), "").removeprefix("error: ")

    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def close(self) -> None:
        """Wait a moment for the process to end by itself, then end it; delete its folder."""
        for end in (None, self._process.terminate, self._process.kill):
            if end is not None:
                end()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_TIMEOUT)
                break
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _errors(self) -> Path:
        return self._folder / "errors.txt"

    def _wait_for_socket(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not self.address.is_socket():
            if not self.is_running():
                raise RobotError(f"the simulated robot cannot start: {self.last_words}")
            if time.monotonic() > deadline:
                raise RobotError(
                    f"the simulated robot has not started in {START_TIMEOUT:g} s; is this machine overloaded?"
                )
            time.sleep(0.01)


def open_connection(address: Path) -> socket.socket:
    """A connection to the robot at this address. Raises RobotError if nothing listens there."""
    connection = socket.socket(socket.AF_UNIX)
    deadline = time.monotonic() + 1.0  # between binding and listening it is refused
    while True:
        try:
            connection.connect(str(address))
            return connection
        except OSError as error:
            if time.monotonic() > deadline or not address.exists():
                connection.close()
                raise RobotError(
                    f"no simulated robot answers at {address}: {error}; start one with python -m "
                    f"flowchunk.envs.robots.simulated_server ENV_ID --address {address}"
                ) from error
            time.sleep(0.01)
