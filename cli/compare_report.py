"""What ``flowchunk compare`` prints and writes: a table, JSON, and one page with a forest plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from flowchunk.cli.compare_evaluations import TASK, Evaluation
from flowchunk.cli.pages import render_template
from flowchunk.cli.plots import png_base64
from flowchunk.cli.reports import print_table, print_written, table_of, write_report
from flowchunk.cli.selection_seeds import OVERLAP, overlap_warning
from flowchunk.policy.checkpoint import replace_text
from flowchunk.policy.evaluation.method_comparison import ComparedMethod, Comparison

COLUMNS = ("method", "runs", "episodes", "score", "success", "95 %", "difference to the best", "p", "letters")
MARK = "*"
"""Behind the name of a method whose figures are too good."""
Methods = Mapping[str, Sequence[Evaluation]]


def write_comparison(
    console: Console, directory: Path, comparison: Comparison, methods: Methods, *, planned: int
) -> Path:
    """Print a comparison, and write ``compare.json`` and ``compare.html``; returns the former. planned: episodes a run."""
    content = content_of(comparison, methods, planned=planned)
    directory.mkdir(parents=True, exist_ok=True)
    files = [directory / "compare.json", directory / "compare.html"]
    write_report(files[0], content)
    replace_text(files[1], render_page(content, comparison))
    table = table_of(*COLUMNS)
    for row in content["rows"]:
        table.add_row(*row)
    print_table(console, content["title"], table)
    for line in content["findings"]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for line in content["warnings"]:
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
    print_written(console, *files)
    return files[0]


def content_of(comparison: Comparison, methods: Methods, *, planned: int) -> dict[str, Any]:
    """The comparison as JSON values: numbers, the rows of the table, and what follows from it in words."""
    first = next(iter(methods.values()))[0].report
    used = comparison.methods[0].num_episodes
    too_good = {name for name, group in methods.items() if any(found.report.get(OVERLAP) for found in group)}
    place = first.get("env_id") or first.get("robot")
    return {
        "title": f"{place}, {used} episodes from seed {first['seed']}",
        **{name: first[name] for name in TASK if name in first},
        "seed": first["seed"],
        "episodes": used,
        "planned_episodes": planned,
        "test": _test(comparison, methods),
        **asdict(comparison),
        "runs": {
            name: [{"path": found.path, "file": str(found.file), OVERLAP: found.report.get(OVERLAP)} for found in group]
            for name, group in methods.items()
        },
        "rows": [_row(comparison, method, is_too_good=method.name in too_good) for method in comparison.methods],
        "findings": _findings(comparison, methods, planned=planned),
        "warnings": _warnings(comparison, methods, too_good),
    }


def render_page(content: Mapping[str, Any], comparison: Comparison) -> str:
    """The page: everything in one file, without anything from elsewhere."""
    plot = png_base64(plot_forest(comparison))
    return render_template("compare_report.html", report=content, columns=COLUMNS, plot=plot)


def plot_forest(comparison: Comparison) -> Figure:
    """Successes with their intervals, and their differences to the best method with theirs, one row per method."""
    methods = comparison.methods
    figure = Figure(figsize=(9, 1.2 + 0.4 * len(methods)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for place, method in enumerate(methods):
        left.plot([method.success_low, method.success_high], [place, place], color="0.3")
        left.plot(method.success, place, "s", color="0.1")
        if place:
            found = comparison.pair(methods[0].name, method.name).success
            right.plot([-found.high, -found.low], [place, place], color="0.3")
            right.plot(-found.mean, place, "s", color="0.1")
    left.set(xlabel="success, 95 %", yticks=range(len(methods)), yticklabels=[method.name for method in methods])
    right.set(xlabel=f"difference in success to {methods[0].name}, 95 %")
    right.axvline(0, color="0.6", ls="--")
    left.invert_yaxis()
    return figure


def _row(comparison: Comparison, method: ComparedMethod, *, is_too_good: bool) -> list[str]:
    best = comparison.methods[0]
    difference = p_value = "-"
    if method is not best:
        pair = comparison.pair(best.name, method.name)
        found = getattr(pair, comparison.measure)
        difference = f"{-found.mean:+.3f} ({-found.high:+.3f} to {-found.low:+.3f})"
        p_value = format_p(pair.p_corrected)
    return [
        method.name + MARK * is_too_good,
        str(method.num_runs),
        str(method.num_episodes),
        f"{method.score:.3f}",
        f"{method.success:.3f}",
        f"{method.success_low:.3f} to {method.success_high:.3f}",
        difference,
        p_value,
        method.letters,
    ]


def format_p(value: float) -> str:
    """A p-value to be read; those below 0.001 only as such."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _test(comparison: Comparison, methods: Methods) -> str:
    if comparison.sequential:
        test = "e-process, valid at any time of stopping"
    elif any(len(group) > 1 for group in methods.values()):
        test = "hierarchical bootstrap over training seeds and episodes, exact tests for pairs of single runs"
    elif comparison.measure == "success":
        test = "McNemar's exact test"
    else:
        test = "paired permutation test"
    return f"{test}, on {comparison.measure}; corrected by Holm for {len(comparison.pairs)} pair(s)"


def _findings(comparison: Comparison, methods: Methods, *, planned: int) -> list[str]:
    lines = [f"p: {_test(comparison, methods)}; methods that share a letter cannot be told apart"]
    lines += [
        f"{pair.better} is better than {pair.worse} (p {_compared(pair.p_corrected)})"
        for pair in comparison.pairs
        if pair.is_different
    ]
    if not any(pair.is_different for pair in comparison.pairs):
        lines.append(
            f"no difference is significant at {comparison.alpha:g}; flowchunk episodes-needed says how many episodes show one"
        )
    if comparison.sequential:
        used = comparison.methods[0].num_episodes
        saved = f"saved {planned - used} of {planned} planned episodes a run" if used < planned else "saved no episodes"
        lines.append(f"stopped after {used}: {saved}; the intervals do not allow for stopping")
    return lines


def _warnings(comparison: Comparison, methods: Methods, too_good: set[str]) -> list[str]:
    lines = [overlap_warning(f"{name}{MARK}") for name in methods if name in too_good]
    sizes = {method.num_runs for method in comparison.methods}
    if 1 in sizes and len(sizes) > 1:
        lines.append(
            "a method with one run: its differences are of that run, since nothing is known of other training seeds"
        )
    versions = [found.report.get("versions", {}) for group in methods.values() for found in group]
    for name in ("mujoco", "gymnasium"):
        if len(found := {entry.get(name) for entry in versions}) > 1:
            lines.append(f"evaluated with several versions of {name}: {', '.join(sorted(map(str, found)))}")
    return lines


def _compared(p_value: float) -> str:
    return format_p(p_value) if p_value < 0.001 else f"= {format_p(p_value)}"
