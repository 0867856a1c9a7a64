"""flowchunk data: look at a data set.

usage: flowchunk data inspect PATH

prints episodes, lengths, keys, shapes, ranges and specs.
"""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.table import Table

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.store import Store


def run(arguments: list[str]) -> None:
    """Inspect the store that the arguments name."""
    if len(arguments) != 2 or arguments[0] != "inspect":
        raise ConfigurationError("usage: flowchunk data inspect PATH")
    store = Store.open(arguments[1])
    console = Console()
    lengths = store.episode_lengths
    console.print(
        f"{store.path}: {len(lengths)} episodes, {store.frames:,} frames; lengths {lengths.min()} to {lengths.max()}, "
        f"median {np.median(lengths):g} (zarr format {store.root.metadata.zarr_format})"
    )
    table = Table("key", "shape of a frame", "type", "lowest", "highest")
    for key in store.keys:
        blocks = [(float(block.min()), float(block.max())) for block in store.blocks(key, frames=2048)]
        low, high = min(low for low, _ in blocks), max(high for _, high in blocks)
        table.add_row(key, str(store.shape(key)), str(store.arrays[key].dtype), f"{low:g}", f"{high:g}")
    console.print(table)
    _print_specs(console, store)


def _print_specs(console: Console, store: Store) -> None:
    if store.observation_spec is None or store.action_spec is None:
        console.print("no specs: not a store of flowchunk's; the task supplies them (flowchunk train task=…)")
        return
    table = Table("observation", "dimension", "unit", "wraps")
    for key, field in store.observation_spec.fields.items():
        for index in range(field.size if field.names else 0):
            table.add_row(
                key, field.names[index], field.units[index] if field.units else "", "yes" * (index in field.wraps)
            )
    console.print(table)
    table = Table("action", "unit", "frame", "reference", "rotation", "low", "high")
    for one in store.action_spec.dimensions:
        table.add_row(one.name, one.unit, one.frame, one.reference, one.rotation or "", f"{one.low}", f"{one.high}")
    console.print(table)
    console.print(f"commanded at {store.action_spec.control_hz:g} Hz")
