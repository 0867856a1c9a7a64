"""The ``flowchunk`` command: find the sub-command, run it, and turn our errors into one clear line."""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version

COMMANDS = {
    "demo": "the whole job on the bundled arm: collect, train, evaluate, film",
    "train": "train a policy from demonstrations",
    "eval": "evaluate a checkpoint in simulation: score, success, latency, videos",
    "sweep": "quality and latency of a checkpoint against its number of network calls",
    "generate": "samples, pictures and measures of a model of toys or pictures",
    "compare": "diffusion objectives side by side, measured on one page: flowchunk compare objectives",
    "collect": "record demonstrations by a task's scripted expert",
    "data": "look at a data set, or convert it: flowchunk data inspect PATH, flowchunk data convert SOURCE OUT task=TASK",
}
AFTER_INTERRUPTION = {
    "demo": "flowchunk demo output_dir=DIR goes on with what DIR holds (and the same --quick)",
    "train": "a training run goes on from its last checkpoint with training.resume=true and its output_dir",
    "eval": "a report is written when all episodes are over, so give the same command again",
    "sweep": "what was measured is in sweep.json; the same command begins anew",
    "generate": "measures are written when all are there, so give the same command again",
    "compare": "the same command goes on: what is done is not done again, and begun trainings go on from their checkpoints",
    "collect": "finished episodes are kept",
    "data": "a store is converted as a whole or not at all, so give the same command again",
}
"""What is true of each command once Ctrl-C has stopped it, unless the interruption itself says more."""

ADVICE = {
    errno.ENOENT: "check that the path is right",
    errno.ENOTDIR: "check that the path is right: a file stands where a folder is needed",
    errno.EEXIST: "a file stands where a folder is needed; remove it or choose another path",
    errno.EISDIR: "a folder stands where a file is needed; remove it or choose another path",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EACCES: "check that the path is right and may be read and written",
    errno.EPERM: "check that the path is right and may be read and written",
    errno.EROFS: "choose a path that may be written",
    errno.ENOSPC: "free some disk space",
    errno.EDQUOT: "free some disk space",
}
HELP = ("-h", "--help")

_LISTING = "\n".join(f"  {name:<9} {text}" for name, text in COMMANDS.items())
USAGE = f"""flowchunk: learn a robot's behaviour from demonstrations with conditional flow matching.

usage: flowchunk COMMAND [ARGUMENTS] [KEY=VALUE ...] [--debug]

commands:
{_LISTING}

`flowchunk COMMAND --help` lists what a command takes. --debug adds the traceback to an error.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit status is 0, 1 for an error of ours, 2 for wrong usage, 130 for an interruption."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that knows ASCII alone is no reason to lose a result
    try:
        status = _run(arguments, debug=debug)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt as interruption:
        if debug:
            raise
        what_is_true = str(interruption) or AFTER_INTERRUPTION.get(arguments[0] if arguments else "", "")
        print(f"\ninterrupted{what_is_true and f'; {what_is_true}'}", file=sys.stderr)
        return 130
    except BrokenPipeError as error:
        if _reader_has_gone():
            return 128 + 13  # as SIGPIPE would end it: nobody is there to be told
        if debug:
            raise
        print(f"error: {error}; another process of this command ended before its time", file=sys.stderr)
        return 1


def _run(arguments: list[str], *, debug: bool) -> int:
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in HELP:
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"flowchunk {version('flowchunk')}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"error: there is no command {name!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    # Before torch is loaded: threads that wait by spinning slow a shared machine down twentyfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if rest[:1] == ["help"] or set(HELP) & set(rest):
        return run(name, lambda command: print((command.__doc__ or "").strip()), debug=debug)
    return run(name, lambda command: command.run(rest), debug=debug)


def run(name: str, call: Callable[..., object], *, debug: bool) -> int:
    """Import a sub-command, call with it, and report its errors."""
    from flowchunk.datasets.errors import FlowchunkError

    try:
        call(importlib.import_module(f"flowchunk.cli.{name}"))
    except BrokenPipeError:
        raise
    except (FlowchunkError, OSError) as error:
        if debug:
            raise
        what_to_do = ADVICE.get(error.errno or 0, "") if isinstance(error, OSError) else ""
        print(f"error: {error}{what_to_do and f'; {what_to_do}'}", file=sys.stderr)
        return 1
    return 0


def _reader_has_gone() -> bool:
    """Whether nobody reads our output any more; if so, what is left of it goes nowhere, also at exit."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
