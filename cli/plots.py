"""Plots of a training run and of its predicted chunks."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flowchunk.datasets.specs import ActionSpec
from flowchunk.policy.training.run_log import read_metrics


def png_base64(figure: Figure) -> str:
    """The figure as PNG in base64, for a page without other files."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return base64.b64encode(buffer.getvalue()).decode()


def plot_loss(run: Path) -> Path:
    """Plot a run's losses, and what chooses its best checkpoint, over its steps; returns the file, ``RUN/loss.png``."""
    entries = read_metrics(run)
    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    plot_losses(axes, entries)
    for name, where, top in (("success_rate", "selection seeds", 1.02), ("action_error", "held-out episodes", None)):
        if points := points_of(entries, name):
            right, label = axes.twinx(), name.replace("_", " ")
            right.plot(*zip(*points, strict=True), color="tab:green", marker="s", label=label)
            right.set(ylabel=f"{label} ({where})", ylim=(0, top))
            right.legend(loc="center right")
    file = run / "loss.png"
    figure.savefig(file, dpi=120)
    return file


def plot_losses(axes: Axes, entries: Sequence[Mapping[str, Any]]) -> None:
    """Plot the losses of training and validation over the steps. entries: of ``read_metrics``."""
    axes.set(xlabel="step", ylabel="loss")
    for name, style in (("loss", {"lw": 1}), ("validation_loss", {"marker": "o"})):
        if points := points_of(entries, name):
            axes.plot(*zip(*points, strict=True), label=name.replace("_", " "), **style)
    if axes.lines:  # empty if the run ended before the first log entry
        axes.legend(loc="upper right")
        if all((np.asarray(line.get_ydata()) > 0).all() for line in axes.lines):
            axes.set_yscale("log")


def points_of(entries: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """The (step, value) of a metric wherever it was logged."""
    return [(entry["step"], entry[name]) for entry in entries if name in entry]


@dataclass(frozen=True)
class EpisodeChunks:
    """The recorded actions (T, D) of an episode, and chunks (S, n, H, D): S samples from each frame of ``starts`` (n,)."""

    episode: int
    recorded: np.ndarray
    starts: np.ndarray
    samples: np.ndarray


def plot_chunks(
    file: Path, episodes: Sequence[EpisodeChunks], action_spec: ActionSpec, dimensions: Sequence[int]
) -> None:
    """Plot predicted chunks over recorded actions: a row of panels for each of the ``dimensions``, a column per episode."""
    figure = Figure(figsize=(6.5 * len(episodes), 0.8 + 1.8 * len(dimensions)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(dimensions), len(episodes), sharex="col", sharey="row", squeeze=False)
    for column, episode in enumerate(episodes):
        for axes, index in zip(panels[:, column], dimensions, strict=True):
            _plot_dimension(axes, episode, index, control_hz=action_spec.control_hz)
        panels[0, column].set_title(f"episode {episode.episode}")
        panels[-1, column].set_xlabel("time [s]")
    for axes, index in zip(panels[:, 0], dimensions, strict=True):
        dimension = action_spec.dimensions[index]
        axes.set_ylabel(f"{dimension.name} [{dimension.unit}]")
    size = action_spec.size
    cut = "" if len(dimensions) == size else f"\nthe {len(dimensions)} worst of {size} dimensions"
    figure.suptitle(f"{len(episodes[0].samples)} predicted chunks from each start{cut}")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(file, dpi=120)


def _plot_dimension(axes: Axes, episode: EpisodeChunks, index: int, *, control_hz: float) -> None:
    times = np.arange(len(episode.recorded)) / control_hz
    axes.plot(times, episode.recorded[:, index], color="black", lw=2, label="recorded")
    for number, start in enumerate(episode.starts):
        steps = times[start : start + episode.samples.shape[2]]  # without padding after the end
        chunks = episode.samples[:, number, : len(steps), index]
        lines = axes.plot(steps, chunks.T, color="tab:blue", lw=0.7, alpha=0.7)
        (point,) = axes.plot(steps[0], episode.recorded[start, index], "o", color="tab:orange", ms=3)
        if number == 0:
            lines[0].set_label("predicted")
            point.set_label("start of chunks")
