"""The options of the page of a run and of grids of trainings, a part of ``flowchunk.cli.schemas``."""

from __future__ import annotations

from pathlib import Path

from flowchunk.cli.structured import Option

REPORT_PAGE: dict[str, Option] = {
    "output": Option(Path | None, None, "the page; default: RUN/report.html"),
    "videos": Option(bool, False, "record the worst, the median and the best episode of RUN/eval"),
    "device": Option(str, "cpu", "where the policy runs for videos"),
}
GRID: dict[str, Option] = {
    "output_dir": Option(Path, meaning="a folder per training is made in it"),
    "processes": Option(int | None, None, "trainings in parallel, one thread each; default: the number of cores"),
    "print": Option(str | None, None, "slurm: print an array script instead of training"),
}
