"""The trainings of a grid, run side by side as processes of ``flowchunk train``, and what became of them."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed

from flowchunk.cli.grid_plan import GridRun
from flowchunk.datasets.errors import CheckpointError
from flowchunk.policy.checkpoint import find_checkpoint, read_description
from flowchunk.policy.training.run_log import read_metrics

LOG = "log.txt"
FINISHED_FILE = "loss.png"  # the last file of flowchunk train
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "COLUMNS": "200"}


def is_finished(run: GridRun) -> bool:
    """Whether a run's folder holds its last step, evaluated."""
    try:
        training = read_description(run.folder / "checkpoints" / "last")["training"]
    except CheckpointError:
        return False
    return bool(training["step"] == training["steps"]) and (run.folder / FINISHED_FILE).exists()


@dataclass
class Trainings:
    """Runs processes of ``flowchunk train``, and ends them all together."""

    _processes: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _is_over: bool = False

    def run_all(self, runs: Sequence[GridRun], *, processes: int, advance: Callable[[], None]) -> dict[str, str]:
        """Train, so many at a time; returns {name: error} of the runs that failed, which do not stop the others.

        Ctrl-C interrupts all, and waits until they have ended.
        """
        parallel = Parallel(n_jobs=processes, backend="threading", return_as="generator_unordered")
        errors = {}
        try:
            for name, error in parallel(delayed(self._run)(run) for run in runs):
                advance()
                if error is not None:
                    errors[name] = error
        except BaseException:
            self._interrupt()
            raise
        return errors

    def _run(self, run: GridRun) -> tuple[str, str | None]:
        run.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "flowchunk.cli.main", "train", *run.command]
        environment = {**os.environ, **ONE_THREAD, "PYTHONSAFEPATH": "1"}
        with (run.folder / LOG).open("ab") as log:
            with self._lock:
                if self._is_over:
                    return run.name, "interrupted"
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
                self._processes.add(process)
            status = process.wait()
        with self._lock:
            self._processes.discard(process)
        return run.name, None if status == 0 else _error_in(run.folder / LOG, status)

    def _interrupt(self) -> None:
        with self._lock:
            self._is_over = True
            running = list(self._processes)
        for process in running:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
        for process in running:
            process.wait()


def _error_in(log: Path, status: int) -> str:
    """The last error in a log; otherwise how the process ended."""
    lines = log.read_text(errors="replace").splitlines()
    found = next((line for line in reversed(lines) if line.startswith("error: ")), None)
    if found is not None:
        return found.removeprefix("error: ")
    return f"it was ended by signal {-status}" if status < 0 else f"it ended with status {status}; see {log}"


def result_of(run: GridRun, error: str | None) -> dict[str, Any]:
    """What a run came to, as JSON values: ``best`` and ``final`` are its metrics, None if it has none."""
    state = "failed" if error is not None else "finished" if is_finished(run) else "unfinished"
    entries = read_metrics(run.folder)
    evaluated = [entry for entry in entries if "score" in entry]
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    best = None
    with suppress(CheckpointError):
        training = read_description(find_checkpoint(run.folder))["training"]
        best = {"step": training["step"], **training["metrics"]}
    return {
        "name": run.name,
        "values": dict(run.values),
        "command": shlex.join(["flowchunk", "train", *run.command]),
        "state": state,
        "error": error,
        "best": best,
        "final": evaluated[-1] if evaluated else None,
        "loss": losses[-1] if losses else None,
    }
