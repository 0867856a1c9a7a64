"""flowchunk data inspect: what a data set of any format holds, in tables, and in plots on demand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from flowchunk.cli.reports import print_table, print_written, table_of
from flowchunk.datasets.episode_source import TASK, EpisodeSource
from flowchunk.datasets.formats import NeedsMappingError, open_dataset
from flowchunk.datasets.progress import progress_if_slow

BLOCK_VALUES = 2**24  # numbers read at a time
IMAGES_READ = 64  # of each camera, for the range
SHOWN_TASKS = 20


def inspect_dataset(path: str, arguments: Sequence[str] = ()) -> None:
    """Print what a data set holds; with ``output_dir=DIR`` also plot it."""
    output_dir = None
    if arguments:
        from flowchunk.cli.options import read_options  # here because it imports torch

        output_dir = read_options("inspect", arguments)["output_dir"]
    console = Console()
    try:
        source = open_dataset(path)
    except NeedsMappingError as error:
        _print_unmapped(console, error)
        return
    _print_source(console, source)
    _print_description(console, source)
    if output_dir is not None:
        from flowchunk.cli.data_plots import plot_dataset  # here because it imports matplotlib

        print_written(console, *plot_dataset(source, Path(output_dir).expanduser()))


def _print_source(console: Console, source: EpisodeSource) -> None:
    """Episodes, arrays with their ranges, tasks, and what contradicts."""
    lengths = source.episode_lengths
    count = f"{len(lengths)} episode{'s' * (len(lengths) > 1)}, {source.num_frames:,} frames"
    spread = f"lengths {lengths.min()} to {lengths.max()}, median {np.median(lengths):g}"
    console.print(f"{source.path}: {count}; {spread} ({source.format})", soft_wrap=True)
    if not getattr(source, "is_finished", True):
        console.print("an unfinished or ongoing recording; only its finished episodes are shown")
    table = table_of("key", "frame shape", "dtype", "min", "max", "stored as")
    keys = {name: key for key, name in source.description.arrays.items()}
    problems = []
    for name, info in source.arrays.items():
        low, high = ("", "") if info.problem else (f"{value:g}" for value in _range(source, name))
        key = keys.get(name, name)
        table.add_row(key, str(info.shape), str(info.dtype), low, high, "" if key == name else name)
        problems += [f"{name}: {info.problem}"] if info.problem else []
    console.print(table)
    if source.tasks:
        shown = [f"  {index}: {text}" for index, text in enumerate(source.tasks[:SHOWN_TASKS])]
        console.print("\n".join([f"{len(source.tasks)} tasks:", *shown]), markup=False, soft_wrap=True)
    if (validation := source.validation_episodes) is not None:
        console.print(f"{len(validation)} episodes are set aside for validation")
    for note in (*problems, *source.description.notes):
        console.print(f"note: {note}", style="yellow", markup=False, soft_wrap=True)


def _range(source: EpisodeSource, name: str) -> tuple[float, float]:
    """The minimum and maximum over all rows; of images, over the first ones."""
    info = source.arrays[name]
    total = min(source.num_frames, IMAGES_READ) if info.is_image else source.num_frames
    rows = max(1, BLOCK_VALUES // int(np.prod(info.shape)))
    low, high = np.inf, -np.inf
    with progress_if_slow(f"reading {name}", total) as advance:
        for start in range(0, total, rows):
            block = source.read_array(name, start, min(start + rows, total))
            source.require_finite(name, start, block)
            low, high = min(low, float(block.min())), max(high, float(block.max()))
            advance(len(block))
    return low, high


def _print_description(console: Console, source: EpisodeSource) -> None:
    """What the data set says about its numbers."""
    described = source.description
    if source.observation_spec is None:
        console.print(
            "no specifications stored; what follows is what the format says, and dataset.KEY=VALUE corrects it in flowchunk "
            "train and convert",
            soft_wrap=True,
        )
    table = Table("observation", "dimension", "unit", "wraps")
    for key, field in described.observations.items():
        if field.is_image:
            table.add_row(key, f"image of camera {field.camera}, {field.shape[0]}x{field.shape[1]} RGB", "", "")
        elif not field.names:
            table.add_row(key, f"{field.size} values without names", "", "")
        for index in range(field.size if field.names else 0):
            unit = field.units[index] if field.units else ""
            table.add_row(key, field.names[index], unit, "yes" * (index in field.wraps))
    console.print(table)
    table = Table("action", "unit", "frame", "reference", "rotation", "low", "high")
    for one in described.actions or ():
        bounds = (f"{one.low}", f"{one.high}")
        table.add_row(one.name, one.unit, one.coordinate_frame, one.reference, one.rotation or "", *bounds)
    console.print(
        table if described.actions else "no actions; dataset.sources.action=ARRAY says which array holds them"
    )
    hz = described.control_hz
    console.print("rate unknown: give dataset.control_hz=HZ" if hz is None else f"commanded at {hz:g} Hz")
    missing = " dataset.control_hz=HZ" if hz is None else ""
    broken = [key for key, name in described.arrays.items() if source.arrays[name].problem]
    excluded = f" dataset.exclude=[{','.join(broken)}]" if broken else ""
    if described.observations and described.actions:
        console.print(
            f"to train: flowchunk train dataset.path={source.path}{missing}{excluded}", markup=False, soft_wrap=True
        )
    if len(source.tasks) > 1 and TASK not in described.observations:
        console.print("dataset.condition_on_task=true lets a policy observe which task is demonstrated")


def _print_unmapped(console: Console, error: NeedsMappingError) -> None:
    """Arrays of a file of no known layout, and a mapping to start from."""
    table = table_of("array", "rows", "shape", "dtype")
    names = sorted(error.file.arrays)
    first = names[0].split("/")[0]
    shown = [name for name in names if name.split("/")[0] == first or "/" not in name]
    for name in shown:
        info = error.file.arrays[name]
        table.add_row(name, str(error.file.rows(name)), str(info.shape), str(info.dtype))
    print_table(console, f"{error.file.path}: {error.file.kind}, {len(names)} arrays, those of the first group:", table)
    console.print(
        "its layout is not known: write a mapping beside it, such as the following, adapt it, and give its path to flowchunk "
        f"data inspect and flowchunk train\n\n{error.suggestion}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
