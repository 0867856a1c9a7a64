"""Reports of commands, written atomically, and console output that loses nothing in narrow terminals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def write_report(file: Path, report: Mapping[str, Any]) -> None:
    """Write JSON atomically: an interruption or a full disk leaves an earlier file unchanged."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_text(json.dumps(report, indent=1))
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def print_written(console: Console, *files: Path) -> None:
    """Print the written files, each path on a single line, so that it can be copied."""
    for file in files:
        console.print(f"written: {file}", soft_wrap=True, markup=False, highlight=False)


def print_table(console: Console, title: str, table: Table) -> None:
    """Print a title, which may be wider than the table, and the table below it."""
    console.print(title, soft_wrap=True, markup=False)
    console.print(table)


def table_of(*columns: str) -> Table:
    """An empty table whose cells are wrapped, not cut, in narrow terminals; [] in its columns' names is no markup."""
    table = Table()
    for number, column in enumerate(columns):
        table.add_column(escape(column), justify="right" if number else "left", overflow="fold")
    return table
