"""What a grid of trainings came to: a table, JSON, and one page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from flowchunk.cli.pages import fixed, render_template
from flowchunk.cli.plots import png_base64
from flowchunk.cli.reports import print_table, print_written, table_of, write_report
from flowchunk.policy.checkpoint import replace_text

SEED = "seed"
SCORE = "score"
"""The metric that chooses the best checkpoint of each run."""
Result = Mapping[str, Any]


def write_grid(console: Console, folder: Path, results: Sequence[Result]) -> Path:
    """Print a grid's results, and write ``grid.json`` and ``grid.html``; returns the former."""
    files = [folder / "grid.json", folder / "grid.html"]
    content: dict[str, Any] = {"runs": list(results), "groups": groups_of(results)}
    write_report(files[0], content)
    columns, rows = _columns(results), [[*_cells(result)] for result in results]
    plot = png_base64(_plot(results)) if any(_score(result) is not None for result in results) else None
    page = render_template(
        "grid_report.html", title=folder.absolute().name, columns=columns, rows=rows, plot=plot, **content
    )
    replace_text(files[1], page)
    table = table_of(*columns)
    for row in rows:
        table.add_row(*row)
    print_table(console, f"{len(results)} trainings in {folder}", table)
    for group in content["groups"]:
        console.print(
            f"{group['name']}: best score {_spread(group)} over {group['runs']} seeds", markup=False, highlight=False
        )
    print_written(console, *files)
    return files[0]


def groups_of(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Runs that differ only in their seed, with mean and standard deviation of their best scores; only those with several."""
    groups: dict[tuple[tuple[str, str], ...], list[float]] = {}
    for result in results:
        if SEED in result["values"] and (score := _score(result)) is not None:
            key = tuple((name, value) for name, value in result["values"].items() if name != SEED)
            groups.setdefault(key, []).append(score)
    return [
        {
            "name": " ".join(f"{name}={value}" for name, value in key) or "all",
            "values": dict(key),
            "runs": len(scores),
            "mean": mean(scores),
            "std": stdev(scores),
        }
        for key, scores in groups.items()
        if len(scores) > 1
    ]


def _spread(group: Mapping[str, Any]) -> str:
    return f"{fixed(group['mean'])} ± {fixed(group['std'])}"


def _score(result: Result) -> float | None:
    score: float | None = (result["best"] or {}).get(SCORE)
    return score


def _columns(results: Sequence[Result]) -> list[str]:
    return [*(results[0]["values"] or ["run"]), "state", "best step", "best score", "final score", "final loss"]


def _cells(result: Result) -> Iterator[str]:
    best, final = result["best"] or {}, result["final"] or {}
    yield from result["values"].values() or [result["name"]]
    yield result["state"]
    yield str(best.get("step", "-"))
    yield fixed(_score(result))
    yield fixed(final.get(SCORE))
    yield fixed(result["loss"], 4)


def _plot(results: Sequence[Result]) -> Figure:
    """The best score of every run, a row for each combination without its seed."""
    rows: dict[str, list[float]] = {}
    for result in results:
        name = " ".join(f"{key}={value}" for key, value in result["values"].items() if key != SEED) or "all"
        rows.setdefault(name, [])
        if (score := _score(result)) is not None:
            rows[name].append(score)
    figure = Figure(figsize=(8.5, 1 + 0.35 * len(rows)), layout="constrained")
    axes = figure.add_subplot(xlabel="best score, a point per run", yticks=range(len(rows)), yticklabels=list(rows))
    for place, scores in enumerate(rows.values()):
        axes.plot(scores, [place] * len(scores), "o", color="tab:blue", alpha=0.7)
        if scores:
            axes.plot(mean(scores), place, "|", color="black", ms=16)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    return figure
