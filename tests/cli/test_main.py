"""The ``flowchunk`` command itself: help, version, exit statuses, and tracebacks only when asked for."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import sysconfig
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from flowchunk.cli.main import AFTER_INTERRUPTION, COMMANDS, USAGE, main

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
    assert COMMANDS.keys() == {file.stem.replace("_", "-") for file in files if "def run(arguments" in file.read_text()}


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


class WhenInterrupted:
    """A command that Ctrl-C stops, with or without words of its own."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def __call__(self, arguments: list[str]) -> None:
        raise KeyboardInterrupt(*self.words)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_interruption_says_what_is_true_of_the_command(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(f"flowchunk.cli.{name.replace('-', '_')}.run", WhenInterrupted())
    assert main([name]) == 130
    said = capsys.readouterr().err
    assert said == f"\ninterrupted; {AFTER_INTERRUPTION[name]}\n"
    assert ("training.resume=true" in said) == (name == "train")


def test_an_interruption_may_know_more_than_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flowchunk.cli.collect.run", WhenInterrupted("17 episodes are in some/where"))
    assert main(["collect"]) == 130
    assert capsys.readouterr().err == "\ninterrupted; 17 episodes are in some/where\n"


def test_an_interruption_of_the_imports_is_one_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("importlib.import_module", interrupted)
    assert main(["eval", "run"]) == 130
    assert "interrupted; " in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["help", "eval"], ["eval", "help"], ["eval", "--help"]])
def test_help_is_a_word_too(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert "usage: flowchunk eval CHECKPOINT" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["help"], ["--help"]])
def test_help_alone_lists_the_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert capsys.readouterr().out == USAGE


@pytest.mark.skipif(sys.platform == "win32", reason="pipes work differently on Windows")
@pytest.mark.parametrize("arguments", ["--help", "train --help"])
def test_a_reader_that_closes_the_pipe_is_no_error(arguments: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [str(CONSOLE_SCRIPT), *arguments.split()], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 141


def test_a_pipe_that_breaks_elsewhere_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(arguments: list[str]) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("flowchunk.cli.eval.run", broken)
    assert main(["eval"]) == 1
    assert "Broken pipe; another process" in capsys.readouterr().err


def test_help_is_printed_to_output_limited_to_ascii() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([str(CONSOLE_SCRIPT), "train", "--help"], capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert b"vision.share_weights=true ?" in done.stdout


@pytest.mark.parametrize(
    ("number", "advice"), [(errno.EEXIST, "there is a file where"), (errno.ENOSPC, "disk space"), (errno.EIO, None)]
)
def test_advice_fits_what_the_system_says(
    number: int, advice: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: list[str]) -> None:
        raise OSError(number, os.strerror(number), "a/path")

    monkeypatch.setattr("flowchunk.cli.eval.run", fail)
    assert main(["eval"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: [Errno {number}]")
    assert advice is None or advice in said
    assert ("; " in said) == (advice is not None)
    assert number == errno.ENOSPC or "disk" not in said
