"""flowchunk data convert: convert a store of another layout into flowchunk's own."""

from __future__ import annotations

from rich.console import Console

from flowchunk.cli.data import DataArguments
from flowchunk.cli.options import read_options
from flowchunk.cli.own_data import open_source
from flowchunk.cli.train import task_specs
from flowchunk.datasets.convert import convert
from flowchunk.envs.simulation import environment_maker

USAGE = "flowchunk data convert SOURCE OUT [to=FORMAT] [KEY=VALUE ...] [--skip-corrupt]"


def convert_store(arguments: list[str]) -> None:
    """Convert with command-line arguments; ``flowchunk.cli.data`` documents them."""
    given = DataArguments.parse(arguments, usage=USAGE)
    options = read_options("convert", given.options)
    options["dataset"]["path"] = given.source
    source, env_id = open_source(options), options["task"]["env_id"]
    make_env = None if env_id is None else environment_maker(env_id, options["env"])
    console = Console()
    convert(
        source,
        *task_specs(source, make_env, options),
        given.out,
        to=options["to"],
        jpeg=options["jpeg"],
        codec=options["codec"],
        skip_corrupt=given.skip_corrupt,
        say=lambda text: console.print(text, markup=False, highlight=False),
    )
