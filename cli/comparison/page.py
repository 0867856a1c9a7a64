"""The comparison as one HTML page: tables and plots of the cells, with nothing to load from elsewhere.

``results.json`` holds all that the page shows, so that it can be rendered again without the trained models.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowchunk.cli.comparison.cells import DIGIT_NFE, PUSHT_NFE, TIMES, TOY_NFE, TOYS, Cell
from flowchunk.cli.domains.domain import figure

Found = dict[str, Any]
SCHEDULE_STYLE = {"linear": "-", "linear_beta": ":", "cosine": "--", "sigmoid": "-.", "": "-"}
COLORS = {
    "flow": "C0",
    "noise_prediction": "C1",
    "data_prediction": "C2",
    "v": "C3",
    "posterior": "C4",
    "flow_map": "C5",
    "regression": "C7",
    "mip": "C8",
}


def write_page(folder: Path, cells: Sequence[Cell]) -> Path:
    """Write ``index.html`` and ``results.json`` into the folder that holds the finished cells; returns the page's path."""
    results = gather_results(folder, cells)
    (folder / "results.json").write_text(json.dumps(results, separators=(",", ":")) + "\n")
    file = folder / "index.html"
    file.write_text(render_page(results))
    return file


def gather_results(folder: Path, cells: Sequence[Cell]) -> dict[str, Any]:
    """What the finished cells found, as JSON takes it: numbers to six digits, digits as PNG in base64, no paths."""
    found = []
    for cell in cells:
        run = folder / "cells" / cell.name
        one = _rounded(json.loads((run / "cell.json").read_text()))
        one["training"] = [_without_path(argument) for argument in one["training"]]
        if cell.section == "digits":
            one["samples"] = base64.b64encode((run / "samples.png").read_bytes()).decode()
        found.append(one)
    return {"versions": {name: version(name) for name in ("flowchunk", "torch", "diffusers", "mujoco")}, "cells": found}


def render_page(results: Mapping[str, Any]) -> str:
    """The page of what ``gather_results`` gave."""
    found: list[Found] = results["cells"]
    toys, digits, pusht = ([one for one in found if one["section"] == name] for name in ("toys", "digits", "pusht"))
    environment = Environment(
        loader=PackageLoader("flowchunk.cli.comparison", "."), autoescape=select_autoescape(), trim_blocks=True
    )
    return environment.get_template("page.html").render(
        versions=results["versions"],
        toys=[
            _toy_section(name, chosen) for name in TOYS if (chosen := [one for one in toys if one["key"][0] == name])
        ],
        digits=_digit_section(digits) if digits else None,
        pusht=_pusht_section(pusht) if pusht else None,
        nfe={"toys": TOY_NFE, "digits": DIGIT_NFE, "pusht": PUSHT_NFE},
        commands={one["section"]: f"flowchunk train {' '.join(one['training'])}" for one in found},
    )


def _toy_section(name: str, found: list[Found]) -> Found:
    """Distances in units of the floor, how bent the ways are, and two plots."""
    drawn, axes = figure(1, 2, size=4.5)
    for one in found:
        _, objective, schedule = one["key"]
        look = {"color": COLORS[objective], "ls": SCHEDULE_STYLE[schedule], "label": f"{objective} {schedule}"}
        ratios = _ratios(one, "sliced_wasserstein")
        points = [(nfe, ratio) for nfe, ratio in zip(TOY_NFE, ratios, strict=True) if ratio is not None]
        axes[0, 0].plot(*zip(*points, strict=True), marker="." if len(points) > 1 else "o", **look)
        if "loss_std" in one:
            relative = [std / mean for mean, std in zip(one["loss_mean"], one["loss_std"], strict=True)]
            axes[0, 1].plot(TIMES, relative, **look)
    axes[0, 0].set(xscale="log", yscale="log", xlabel="network calls", title="sliced Wasserstein / floor")
    axes[0, 0].set(xticks=TOY_NFE, xticklabels=TOY_NFE)
    axes[0, 0].axhline(1, color="0.6", lw=0.8)
    axes[0, 1].set(xlabel="t (0 noise, 1 data)", title="deviation of the loss / its mean", yscale="log")
    axes[0, 1].legend(*axes[0, 0].get_legend_handles_labels(), fontsize=5, ncols=2)  # some have no loss over time
    rows = [
        {"names": one["key"][1:], "cells": _ratios(one, "sliced_wasserstein"), "straightness": one.get("straightness")}
        for one in found
    ]
    return {"name": name, "floor": found[0]["floor"]["sliced_wasserstein"], "rows": rows, "plot": _embedded(drawn)}


def _digit_section(found: list[Found]) -> Found:
    drawn, axes = figure(1, 2, size=4.5)
    rows = []
    for one in found:
        name, objective, schedule = one["key"]
        distances = [_value(row, "kernel_distance") for row in one["rows"]]
        axes[0, 0].plot(DIGIT_NFE, distances, marker=".", label=name)
        axes[0, 1].plot(TIMES, one["loss_mean"], label=name)
        accuracy = [_value(row, "class_accuracy") for row in one["rows"]]
        rows.append(
            {
                "names": (name, objective, schedule),
                "cells": distances,
                "accuracy": accuracy[DIGIT_NFE.index(16)],
                "picture": _data_url(one["samples"]),
            }
        )
    axes[0, 0].set(xscale="log", yscale="symlog", xlabel="network calls", title="kernel distance of features")
    axes[0, 0].set(xticks=DIGIT_NFE, xticklabels=DIGIT_NFE)
    axes[0, 0].set_yscale("symlog", linthresh=0.01)
    axes[0, 1].set(xlabel="t (0 noise, 1 data)", title="mean loss, each in its own terms", yscale="log")
    axes[0, 0].legend(fontsize=6)
    return {"floor": found[0]["floor"], "rows": rows, "plot": _embedded(drawn)}


def _pusht_section(found: list[Found]) -> Found:
    drawn, axes = figure(1, 2, size=4)
    rows = []
    for one in found:
        objective, cells = one["key"][0], [row if "refused" not in row else None for row in one["rows"]]
        for ax, name in zip(axes[0], ("score", "success"), strict=True):
            _plot_with_interval(ax, cells, name, label=objective, color=COLORS[objective])
        rows.append({"names": (objective,), "cells": cells})
    for ax, name in zip(axes[0], ("score", "success rate"), strict=True):
        ax.set(xscale="log", xlabel="network calls", title=name, xticks=PUSHT_NFE, xticklabels=PUSHT_NFE)
        ax.minorticks_off()
    axes[0, 0].legend(fontsize=7)
    return {"rows": rows, "plot": _embedded(drawn)}


def _plot_with_interval(axes: Axes, cells: list[Found | None], name: str, *, label: str, color: str) -> None:
    shown = [(nfe, cell[name], cell[f"{name}_ci95"]) for nfe, cell in zip(PUSHT_NFE, cells, strict=True) if cell]
    calls, values, intervals = zip(*shown, strict=True)
    low = [value - interval[0] for value, interval in zip(values, intervals, strict=True)]
    high = [interval[1] - value for value, interval in zip(values, intervals, strict=True)]
    axes.errorbar(calls, values, yerr=(low, high), marker="o", capsize=2, label=label, color=color, lw=1)


def _ratios(one: Found, name: str) -> list[float | None]:
    values = [_value(row, name) for row in one["rows"]]
    return [None if value is None else value / one["floor"][name] for value in values]


def _value(row: Found, name: str) -> float | None:
    value: float | None = row.get(name)
    return value


def _without_path(argument: str) -> str:
    return "dataset.path=PATH" if argument.startswith("dataset.path=") else argument


def _rounded(value: Any) -> Any:
    """JSON with its numbers to six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list) else value


def _embedded(drawn: Figure) -> str:
    buffer = io.BytesIO()
    drawn.savefig(buffer, dpi=110)
    return _data_url(base64.b64encode(buffer.getvalue()).decode())


def _data_url(png: str) -> str:
    """png: in base64."""
    return f"data:image/png;base64,{png}"
