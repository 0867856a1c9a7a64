"""What commands leave behind: reports that are whole or not there, and lines that can be read and copied at any width."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def write_report(file: Path, report: Mapping[str, Any]) -> None:
    """Write JSON in one step: an interruption or a full disk leaves what was there before."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_text(json.dumps(report, indent=1))
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def print_written(console: Console, *files: Path) -> None:
    """Say which files were written, each path whole on one line, so that it can be copied."""
    for file in files:
        console.print(f"written: {file}", soft_wrap=True, markup=False, highlight=False)


def print_table(console: Console, title: str, table: Table) -> None:
    """The table below its title, which is longer than most tables are wide."""
    console.print(title, soft_wrap=True, markup=False)
    console.print(table)


def table_of(*columns: str) -> Table:
    """A table that loses nothing where there is little room: what does not fit goes on below."""
    table = Table()
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table
