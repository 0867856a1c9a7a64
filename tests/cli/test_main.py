"""The ``flowchunk`` command itself: help, version, exit statuses, and tracebacks only when asked for."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from flowchunk.cli.main import COMMANDS, main

CONSOLE_SCRIPT = Path(sysconfig.get_path("scripts")) / ("flowchunk.exe" if sys.platform == "win32" else "flowchunk")


def flowchunk(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(CONSOLE_SCRIPT), *arguments], capture_output=True, text=True, check=False, timeout=120)


def test_help_is_quick_and_lists_every_command() -> None:
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        done = flowchunk("--help")
        seconds.append(time.perf_counter() - started)
        assert done.returncode == 0
        assert all(f"  {name} " in done.stdout for name in COMMANDS)
    assert min(seconds) < 1


def test_every_file_of_a_command_is_listed() -> None:
    files = Path(sys.modules[main.__module__].__file__ or "").parent.glob("*.py")
    assert COMMANDS.keys() == {file.stem for file in files if "def run(arguments" in file.read_text()}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_help(name: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "task=no_such_task", flag]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"flowchunk {name}: ")
    assert f"usage: flowchunk {name}" in shown


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"flowchunk {version('flowchunk')}\n"


def test_an_unknown_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian", "task=pusht_state"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: there is no command 'trian'")
    assert all(name in captured.err for name in COMMANDS)


def test_no_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["--debug"]) == 2
    assert "usage: flowchunk COMMAND" in capsys.readouterr().out


def test_a_traceback_is_shown_only_when_asked_for() -> None:
    plain, debug = (flowchunk("data", "inspect", "no/such/store", *flag) for flag in ([], ["--debug"]))
    assert plain.returncode == 1
    assert plain.stderr.startswith("error: no data set at no/such/store")
    assert plain.stderr.count("\n") == 1
    assert debug.returncode == 1
    assert debug.stderr.startswith("Traceback")
    assert "DatasetError: no data set at no/such/store" in debug.stderr


def test_an_interruption_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(arguments: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flowchunk.cli.train.run", interrupt)
    assert main(["train"]) == 130
    assert "training.resume=true" in capsys.readouterr().err
