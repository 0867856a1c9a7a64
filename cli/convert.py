"""flowchunk data convert: convert a store of another layout into flowchunk's own."""

from __future__ import annotations

from rich.console import Console

from flowchunk.cli.options import read_options
from flowchunk.cli.own_data import open_source
from flowchunk.cli.train import task_specs
from flowchunk.datasets.convert import convert
from flowchunk.datasets.errors import ConfigurationError
from flowchunk.envs.simulation import environment_maker

SKIP_CORRUPT = "--skip-corrupt"


def convert_store(arguments: list[str]) -> None:
    """Convert with command-line arguments; ``flowchunk.cli.data`` documents them."""
    paths = [argument for argument in arguments if "=" not in argument and argument != SKIP_CORRUPT]
    if len(paths) != 2 or any(path.startswith("-") for path in paths):
        raise ConfigurationError(
            "usage: flowchunk data convert SOURCE OUT [to=FORMAT] [KEY=VALUE ...] [--skip-corrupt]"
        )
    options = read_options("convert", [argument for argument in arguments if "=" in argument])
    options["dataset"]["path"] = paths[0]
    source, env_id = open_source(options), options["task"]["env_id"]
    make_env = None if env_id is None else environment_maker(env_id, options["env"])
    console = Console()
    convert(
        source,
        *task_specs(source, make_env, options),
        paths[1],
        to=options["to"],
        jpeg=options["jpeg"],
        codec=options["codec"],
        skip_corrupt=SKIP_CORRUPT in arguments,
        say=lambda text: console.print(text, markup=False, highlight=False),
    )
