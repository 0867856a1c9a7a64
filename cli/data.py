"""flowchunk data: inspect or convert a data set.

usage: flowchunk data inspect PATH
       flowchunk data convert SOURCE OUT task=TASK [KEY=VALUE ...] [--skip-corrupt]

  jpeg=QUALITY                     store images as JPEG, 1 to 100 (default: losslessly)
  dataset.sources.KEY=ARRAY        the array of SOURCE that holds a key of the task
  env.KEY=VALUE                    an argument of the task's environment
  --skip-corrupt                   leave out episodes with damaged images, and list them

inspect prints episodes, lengths, keys, shapes, ranges and specifications; of an unfinished
recording, those of its finished episodes.

convert writes a new store, OUT, with the keys and specifications of the task, for example from
diffusion_policy's layout. Images are stored as uint8 in sharded, compressed chunks.
"""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.table import Table

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.progress import progress_if_slow
from flowchunk.datasets.store import Store

BLOCK_VALUES = 2**24  # numbers read at a time


def run(arguments: list[str]) -> None:
    """Inspect or convert a store with command-line arguments."""
    if arguments[:1] == ["convert"]:
        from flowchunk.cli.convert import convert_store  # here because it imports torch and environments

        convert_store(arguments[1:])
    elif len(arguments) == 2 and arguments[0] == "inspect":
        inspect(Store.open(arguments[1]))
    else:
        raise ConfigurationError("usage: flowchunk data inspect PATH, or flowchunk data convert SOURCE OUT task=TASK")


def inspect(store: Store) -> None:
    """Print episodes, lengths, keys, shapes, ranges and specifications."""
    console = Console()
    lengths = store.episode_lengths
    console.print(
        f"{store.path}: {len(lengths)} episodes, {store.num_frames:,} frames; lengths {lengths.min()} to {lengths.max()}, "
        f"median {np.median(lengths):g} (zarr format {store.root.metadata.zarr_format})"
    )
    if not store.is_finished:
        console.print("an unfinished or ongoing recording; only its finished episodes are shown")
    table = Table("key", "frame shape", "dtype", "min", "max")
    for key in store.keys:
        low, high = _range(store, key)
        table.add_row(key, str(store.shape(key)), str(store.arrays[key].dtype), f"{low:g}", f"{high:g}")
    console.print(table)
    _print_specs(console, store)


def _range(store: Store, key: str) -> tuple[float, float]:
    """The minimum and maximum over all frames."""
    frames = max(1, BLOCK_VALUES // int(np.prod(store.shape(key))))
    with progress_if_slow(f"reading {key}", store.num_frames) as advance:
        low, high = np.inf, -np.inf
        for block in store.blocks(key, frames=frames):
            low, high = min(low, float(block.min())), max(high, float(block.max()))
            advance(len(block))
    return low, high


def _print_specs(console: Console, store: Store) -> None:
    if store.observation_spec is None or store.action_spec is None:
        console.print("no specifications stored; the task provides them (flowchunk train task=…)")
        return
    table = Table("observation", "dimension", "unit", "wraps")
    for key, field in store.observation_spec.fields.items():
        if field.is_image:
            table.add_row(key, f"image of camera {field.camera}, {field.shape[0]}x{field.shape[1]} RGB", "", "")
        for index in range(field.size if field.names else 0):
            table.add_row(
                key, field.names[index], field.units[index] if field.units else "", "yes" * (index in field.wraps)
            )
    console.print(table)
    table = Table("action", "unit", "frame", "reference", "rotation", "low", "high")
    for dimension in store.action_spec.dimensions:
        table.add_row(
            dimension.name,
            dimension.unit,
            dimension.coordinate_frame,
            dimension.reference,
            dimension.rotation or "",
            f"{dimension.low}",
            f"{dimension.high}",
        )
    console.print(table)
    console.print(f"commanded at {store.action_spec.control_hz:g} Hz")
