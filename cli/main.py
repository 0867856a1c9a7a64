"""The ``flowchunk`` command: find the sub-command, run it, and print errors as a single line."""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version

COMMANDS = {
    "demo": "collect, train, evaluate and record videos of the bundled arm",
    "train": "train a policy from demonstrations, or a model of generated data",
    "grid": "train with every combination of some options, several at a time",
    "eval": "evaluate a policy: score, success, latency and videos in simulation, or errors on recordings",
    "run": "drive a robot with a policy, simulated in real time or real",
    "sweep": "quality and latency by the number of network evaluations",
    "bench": "latency of a policy, and the delays that it can act with",
    "generate": "samples, plots and measures of a model of generated data",
    "compare": "policies compared on the same episodes, or diffusion objectives on one page",
    "report": "one page with everything that is known of a run",
    "episodes-needed": "how many episodes tell two policies apart",
    "collect": "record demonstrations of a task's scripted expert",
    "data": "inspect or convert a data set",
}
AFTER_INTERRUPTION = {
    "demo": "flowchunk demo output_dir=DIR continues with the contents of DIR (add --quick again if it was given)",
    "train": "continue from the last checkpoint with training.resume=true and the same output_dir",
    "grid": "the same command continues: finished trainings are kept, others go on from their checkpoints",
    "eval": "the report is written after the last episode, so run the same command again",
    "run": "the robot holds; the report is in the output directory",
    "sweep": "the finished rows are in sweep.json; the same command starts from the beginning",
    "bench": "the report is written at the end, so run the same command again",
    "generate": "the measures are written at the end, so run the same command again",
    "compare": "the same command continues: finished variants and episodes are kept, others go on from their checkpoints",
    "report": "the page is written at the end, so run the same command again",
    "episodes-needed": "nothing was written",
    "collect": "finished episodes are kept",
    "data": "a store is converted as a whole or not at all, so run the same command again",
}
"""The state that Ctrl-C leaves behind, for each command whose interruption carries no message of its own."""

ADVICE = {
    errno.ENOENT: "check that the path is right",
    errno.ENOTDIR: "check that the path is right: there is a file where a folder is needed",
    errno.EEXIST: "there is a file where a folder is needed; remove it or choose another path",
    errno.EISDIR: "there is a folder where a file is needed; remove it or choose another path",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EACCES: "check that the path is right and that you may read and write it",
    errno.EPERM: "check that the path is right and that you may read and write it",
    errno.EROFS: "choose a path that you may write",
    errno.ENOSPC: "free some disk space",
    errno.EDQUOT: "free some disk space",
}
HELP = ("-h", "--help")

_LISTING = "\n".join(f"  {name:<15} {text}" for name, text in COMMANDS.items())
USAGE = f"""flowchunk: learn robot policies from demonstrations with conditional flow matching.

usage: flowchunk COMMAND [ARGUMENTS] [KEY=VALUE ...] [--debug]

commands:
{_LISTING}

`flowchunk COMMAND --help` lists the arguments of a command. --debug adds the traceback to an error.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status: 0, 1 for an error, 2 for wrong usage, 130 for an interruption."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal limited to ASCII must not lose a result
    try:
        status = _run(arguments, debug=debug)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt as interruption:
        if debug:
            raise
        state = str(interruption) or AFTER_INTERRUPTION.get(arguments[0] if arguments else "", "")
        print(f"\ninterrupted{state and f'; {state}'}", file=sys.stderr)
        return 130
    except BrokenPipeError as error:
        if _reader_is_gone():
            return 128 + 13  # as if SIGPIPE had ended it: nobody reads the error
        if debug:
            raise
        print(f"error: {error}; another process of this command ended early", file=sys.stderr)
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
    # Before torch is loaded: spinning threads slow a shared machine down twentyfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if rest[:1] == ["help"] or set(HELP) & set(rest):
        return run(name, lambda command: print((command.__doc__ or "").strip()), debug=debug)
    return run(name, lambda command: command.run(rest), debug=debug)


def run(name: str, call: Callable[..., object], *, debug: bool) -> int:
    """Import a sub-command, call ``call`` with its module, and print its errors; returns the exit status."""
    from flowchunk.datasets.errors import FlowchunkError

    try:
        call(importlib.import_module(f"flowchunk.cli.{name.replace('-', '_')}"))
    except BrokenPipeError:
        raise
    except (FlowchunkError, OSError) as error:
        if debug:
            raise
        advice = ADVICE.get(error.errno or 0, "") if isinstance(error, OSError) else ""
        print(f"error: {error}{advice and f'; {advice}'}", file=sys.stderr)
        return 1
    return 0


def _reader_is_gone() -> bool:
    """Whether nobody reads the standard output any more; if so, the rest of it is discarded, also at exit."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
