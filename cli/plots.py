"""Plots of a training run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flowchunk.policy.training.run_log import read_metrics


def plot_loss(run: Path) -> Path:
    """Plot losses and success rate of a run over its steps; returns the file, ``RUN/loss.png``."""
    entries = read_metrics(run)
    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    for name, style in (("loss", {"lw": 1}), ("validation_loss", {"marker": "o"})):
        points = [(entry["step"], entry[name]) for entry in entries if name in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=name.replace("_", " "), **style)
    rates = [(entry["step"], entry["success_rate"]) for entry in entries if "success_rate" in entry]
    if rates:
        right = axes.twinx()
        right.set(ylabel="success rate (selection seeds)", ylim=(0, 1.02))
        right.plot(*zip(*rates, strict=True), color="tab:green", marker="s", label="success rate")
        right.legend(loc="center right")
    if axes.lines:  # empty if the run ended before the first log entry
        axes.legend(loc="upper right")
        if all((np.asarray(line.get_ydata()) > 0).all() for line in axes.lines):
            axes.set_yscale("log")
    file = run / "loss.png"
    figure.savefig(file, dpi=120)
    return file
