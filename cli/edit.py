"""flowchunk data edit: merge, choose, split, trim and rename, into a new data set."""

from __future__ import annotations

from rich.console import Console

from flowchunk.cli.data import DataArguments
from flowchunk.cli.options import fill, read_options
from flowchunk.cli.own_data import open_source, specs_of_source
from flowchunk.datasets.edit import EditOptions, edit

USAGE = "flowchunk data edit SOURCE OUT [KEY=VALUE ...] [--skip-corrupt]"


def edit_datasets(arguments: list[str]) -> None:
    """Edit with command-line arguments; ``flowchunk.cli.data`` documents them."""
    given = DataArguments.parse(arguments, usage=USAGE)
    options = read_options("edit", given.options)
    paths = (given.source, *options["merge"])
    sources = [open_source({"dataset": {**options["dataset"], "path": path}}) for path in paths]
    console = Console()
    edit(
        sources,
        [specs_of_source(source, options) for source in sources],
        fill(EditOptions, options, section="the options"),
        given.out,
        jpeg=options["jpeg"],
        skip_corrupt=given.skip_corrupt,
        say=lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True),
    )
