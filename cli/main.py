"""The ``flowchunk`` command: find the sub-command, run it, and turn our errors into one clear line."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
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

_LISTING = "\n".join(f"  {name:<9} {text}" for name, text in COMMANDS.items())
USAGE = f"""flowchunk: learn a robot's behaviour from demonstrations with conditional flow matching.

usage: flowchunk COMMAND [ARGUMENTS] [KEY=VALUE ...] [--debug]

commands:
{_LISTING}

`flowchunk COMMAND --help` lists what a command takes. --debug adds the traceback to an error.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit status is 0, 1 for an error of ours, 2 for wrong usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help"):
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
    command = importlib.import_module(f"flowchunk.cli.{name}")
    if {"-h", "--help"} & set(rest):
        print((command.__doc__ or "").strip())
        return 0
    return run(command.run, rest, debug=debug)


def run(command: object, arguments: list[str], *, debug: bool) -> int:
    """Call a sub-command and report its errors."""
    from flowchunk.datasets.errors import FlowchunkError

    assert callable(command)
    try:
        command(arguments)
    except (FlowchunkError, OSError, KeyboardInterrupt) as error:
        if debug:
            raise
        if isinstance(error, KeyboardInterrupt):
            print(
                "\ninterrupted; a training run goes on from its last checkpoint with training.resume=true",
                file=sys.stderr,
            )
            return 130
        what_to_do = "; check that the path is right and may be written, and that the disk is not full"
        print(f"error: {error}{what_to_do if isinstance(error, OSError) else ''}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
