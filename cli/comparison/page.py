"""The comparison as one HTML page of tables and plots, without external files.

``results.json`` holds everything that the page shows, so that it can be rendered again without the trained models.
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

from flowchunk.cli.comparison.variants import DIGIT_NFE, PUSHT_NFE, TIMES, TOY_NFE, TOYS, Variant
from flowchunk.cli.domains.domain import make_figure

Results = dict[str, Any]  # of one variant
Row = dict[str, Any]  # of one number of network evaluations
NFE_LABEL, TIME_LABEL = "network evaluations", "t (0 noise, 1 data)"
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


def write_page(folder: Path, variants: Sequence[Variant]) -> Path:
    """Write ``index.html`` and ``results.json`` of finished variants into the folder; returns the page's path."""
    results = gather_results(folder, variants)
    (folder / "results.json").write_text(json.dumps(results, separators=(",", ":")) + "\n")
    file = folder / "index.html"
    file.write_text(render_page(results))
    return file


def gather_results(folder: Path, variants: Sequence[Variant]) -> dict[str, Any]:
    """The results of finished variants for JSON: numbers to six digits, images as PNG in base64, no paths."""
    gathered = []
    for variant in variants:
        run = folder / "variants" / variant.name
        results = _rounded(json.loads((run / "variant.json").read_text()))
        results["training"] = [_without_path(argument) for argument in results["training"]]
        if variant.section == "digits":
            results["samples"] = base64.b64encode((run / "samples.png").read_bytes()).decode()
        gathered.append(results)
    versions = {name: version(name) for name in ("flowchunk", "torch", "diffusers", "mujoco")}
    return {"versions": versions, "variants": gathered}


def render_page(results: Mapping[str, Any]) -> str:
    """The page as HTML. results: of ``gather_results``."""
    variants: list[Results] = results["variants"]
    toys, digits, pusht = ([v for v in variants if v["section"] == name] for name in ("toys", "digits", "pusht"))
    environment = Environment(
        loader=PackageLoader("flowchunk.cli.comparison", "."), autoescape=select_autoescape(), trim_blocks=True
    )
    return environment.get_template("page.html").render(
        versions=results["versions"],
        toys=[_toy_section(name, chosen) for name in TOYS if (chosen := [v for v in toys if v["key"][0] == name])],
        digits=_digit_section(digits) if digits else None,
        pusht=_pusht_section(pusht) if pusht else None,
        nfe={"toys": TOY_NFE, "digits": DIGIT_NFE, "pusht": PUSHT_NFE},
        commands={v["section"]: f"flowchunk train {' '.join(v['training'])}" for v in variants},
    )


def _toy_section(name: str, variants: list[Results]) -> dict[str, Any]:
    """Distances in units of the floor, the straightness of the trajectories, and two plots."""
    figure, axes = make_figure(1, 2, size=4.5)
    for variant in variants:
        _, objective, schedule = variant["key"]
        style = {"color": COLORS[objective], "ls": SCHEDULE_STYLE[schedule], "label": f"{objective} {schedule}"}
        ratios = _ratios(variant, "sliced_wasserstein")
        points = [(nfe, ratio) for nfe, ratio in zip(TOY_NFE, ratios, strict=True) if ratio is not None]
        axes[0, 0].plot(*zip(*points, strict=True), marker="." if len(points) > 1 else "o", **style)
        if "loss_std" in variant:
            relative = [std / mean for mean, std in zip(variant["loss_mean"], variant["loss_std"], strict=True)]
            axes[0, 1].plot(TIMES, relative, **style)
    axes[0, 0].set(xscale="log", yscale="log", xlabel=NFE_LABEL, title="sliced Wasserstein / floor")
    axes[0, 0].set(xticks=TOY_NFE, xticklabels=TOY_NFE)
    axes[0, 0].axhline(1, color="0.6", lw=0.8)
    axes[0, 1].set(xlabel=TIME_LABEL, title="standard deviation of the loss / its mean", yscale="log")
    axes[0, 1].legend(*axes[0, 0].get_legend_handles_labels(), fontsize=5, ncols=2)  # some have no loss over time
    rows = [
        {
            "names": variant["key"][1:],
            "numbers": _ratios(variant, "sliced_wasserstein"),
            "straightness": variant.get("straightness"),
        }
        for variant in variants
    ]
    return {"name": name, "floor": variants[0]["floor"]["sliced_wasserstein"], "rows": rows, "plot": _embedded(figure)}


def _digit_section(variants: list[Results]) -> dict[str, Any]:
    figure, axes = make_figure(1, 2, size=4.5)
    rows = []
    for variant in variants:
        name, objective, schedule = variant["key"]
        distances = [_value(row, "kernel_distance") for row in variant["rows"]]
        axes[0, 0].plot(DIGIT_NFE, distances, marker=".", label=name)
        axes[0, 1].plot(TIMES, variant["loss_mean"], label=name)
        accuracy = [_value(row, "class_accuracy") for row in variant["rows"]]
        rows.append(
            {
                "names": (name, objective, schedule),
                "numbers": distances,
                "accuracy": accuracy[DIGIT_NFE.index(16)],
                "image": _data_url(variant["samples"]),
            }
        )
    axes[0, 0].set(xscale="log", yscale="symlog", xlabel=NFE_LABEL, title="kernel distance of features")
    axes[0, 0].set(xticks=DIGIT_NFE, xticklabels=DIGIT_NFE)
    axes[0, 0].set_yscale("symlog", linthresh=0.01)
    axes[0, 1].set(xlabel=TIME_LABEL, title="mean loss, each of its own target", yscale="log")
    axes[0, 0].legend(fontsize=6)
    return {"floor": variants[0]["floor"], "rows": rows, "plot": _embedded(figure)}


def _pusht_section(variants: list[Results]) -> dict[str, Any]:
    figure, axes = make_figure(1, 2, size=4)
    rows = []
    for variant in variants:
        objective, measured = variant["key"][0], [row if "refused" not in row else None for row in variant["rows"]]
        for ax, name in zip(axes[0], ("score", "success"), strict=True):
            _plot_with_interval(ax, measured, name, label=objective, color=COLORS[objective])
        rows.append({"names": (objective,), "numbers": measured})
    for ax, name in zip(axes[0], ("score", "success rate"), strict=True):
        ax.set(xscale="log", xlabel=NFE_LABEL, title=name, xticks=PUSHT_NFE, xticklabels=PUSHT_NFE)
        ax.minorticks_off()
    axes[0, 0].legend(fontsize=7)
    return {"rows": rows, "plot": _embedded(figure)}


def _plot_with_interval(axes: Axes, rows: list[Row | None], name: str, *, label: str, color: str) -> None:
    points = [(nfe, row[name], row[f"{name}_ci95"]) for nfe, row in zip(PUSHT_NFE, rows, strict=True) if row]
    nfe, values, intervals = zip(*points, strict=True)
    low = [value - interval[0] for value, interval in zip(values, intervals, strict=True)]
    high = [interval[1] - value for value, interval in zip(values, intervals, strict=True)]
    axes.errorbar(nfe, values, yerr=(low, high), marker="o", capsize=2, label=label, color=color, lw=1)


def _ratios(variant: Results, name: str) -> list[float | None]:
    values = [_value(row, name) for row in variant["rows"]]
    return [None if value is None else value / variant["floor"][name] for value in values]


def _value(row: Row, name: str) -> float | None:
    value: float | None = row.get(name)
    return value


def _without_path(argument: str) -> str:
    return "dataset.path=PATH" if argument.startswith("dataset.path=") else argument


def _rounded(value: Any) -> Any:
    """JSON values with numbers to six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list) else value


def _embedded(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    return _data_url(base64.b64encode(buffer.getvalue()).decode())


def _data_url(png: str) -> str:
    """A data URL. png: in base64."""
    return f"data:image/png;base64,{png}"
