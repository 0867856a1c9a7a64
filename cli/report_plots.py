"""The plots of a run's page, each as PNG in base64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowchunk.cli.plots import plot_losses, png_base64, points_of
from flowchunk.cli.start_states import StartStates
from flowchunk.policy.evaluation.intervals import wilson_interval

Entries = Sequence[Mapping[str, Any]]
SUCCESS, FAILURE = "tab:green", "tab:red"
CHOOSING = ("success_rate", "score_mean", "action_error", "energy_distance")
"""Metrics that say how good a checkpoint is, besides its losses."""


def loss_plot(entries: Entries) -> str | None:
    """The losses over the steps; None if none were logged."""
    if not any("loss" in entry or "validation_loss" in entry for entry in entries):
        return None
    figure = Figure(figsize=(8.5, 3.2), layout="constrained")
    plot_losses(figure.add_subplot(), entries)
    return png_base64(figure)


def quality_plot(entries: Entries, *, episodes: int, best_step: int | None) -> str | None:
    """What chose the best checkpoint, over the steps; None if nothing was evaluated.

    episodes: of each evaluation, for the intervals of the success rate; 0 if they are unknown.
    """
    names = [name for name in CHOOSING if points_of(entries, name)]
    if not names:
        return None
    figure = Figure(figsize=(8.5, 3.2), layout="constrained")
    axes = figure.add_subplot(xlabel="step")
    for name in names:
        steps, values = map(np.asarray, zip(*points_of(entries, name), strict=True))
        (line,) = axes.plot(steps, values, marker="o", ms=4, label=name.replace("_", " "))
        if name == "success_rate" and episodes:
            low, high = np.array([wilson_interval(round(float(value) * episodes), episodes) for value in values]).T
            axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.2, label="95 %")
            axes.set_ylim(0, 1.02)
    if best_step is not None:
        axes.axvline(best_step, color="0.6", ls="--", label="best checkpoint")
    axes.legend(loc="best", fontsize=8)
    return png_base64(figure)


def sweep_plot(rows: Sequence[Mapping[str, Any]]) -> str:
    """Success against nfe, a line per n_action_steps, and against n_action_steps if there are several, a line per nfe.

    rows: with ``nfe``, ``n_action_steps``, ``success`` and ``success_ci95``.
    """
    several = len({row["n_action_steps"] for row in rows}) > 1
    figure = Figure(figsize=(8.5, 3.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True, squeeze=False)[0]
    _plot_lines(panels[0], rows, "nfe", "n_action_steps")
    panels[0].set(xlabel="network evaluations (nfe)", ylabel="success, 95 %")
    if several:
        _plot_lines(panels[1], rows, "n_action_steps", "nfe")
        panels[1].set(xlabel="executed actions per chunk (n_action_steps)")
    else:
        panels[1].remove()
    return png_base64(figure)


def _plot_lines(axes: Axes, rows: Sequence[Mapping[str, Any]], along: str, apart: str) -> None:
    """Success with its interval along one setting, a line for each value of the other."""
    for value in sorted({row[apart] for row in rows}):
        line = sorted((row for row in rows if row[apart] == value), key=lambda row: int(row[along]))
        places, success = [row[along] for row in line], np.array([row["success"] for row in line])
        low, high = np.array([row["success_ci95"] for row in line]).T
        errors = np.clip([success - low, high - success], 0, None)
        axes.errorbar(places, success, yerr=errors, marker="o", ms=4, capsize=2, label=f"{apart}={value}")
    ticks = sorted({row[along] for row in rows})
    axes.set(xscale="log", ylim=(0, 1.02), xticks=ticks, xticklabels=ticks)
    axes.minorticks_off()
    axes.legend(fontsize=8)


def score_plot(episodes: Sequence[Mapping[str, Any]]) -> str:
    """The scores of all episodes by seed, coloured by outcome."""
    figure = Figure(figsize=(8.5, 2.6), layout="constrained")
    axes = figure.add_subplot(xlabel="seed", ylabel="score", ylim=(-0.03, 1.03))
    axes.ticklabel_format(useOffset=False, style="plain")
    for is_success, color, label in ((True, SUCCESS, "success"), (False, FAILURE, "failure")):
        chosen = [episode for episode in episodes if bool(episode["success"]) == is_success]
        seeds, scores = [episode["seed"] for episode in chosen], [episode["score"] for episode in chosen]
        axes.scatter(seeds, scores, s=16, color=color, label=f"{label} ({len(chosen)})")
    axes.legend(fontsize=8)
    return png_base64(figure)


def start_plot(states: StartStates, episodes: Sequence[Mapping[str, Any]]) -> str:
    """A map of start states coloured by outcome, with lines for angles."""
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axes = figure.add_subplot(xlabel=f"{states.name} x [{states.unit}]", ylabel=f"{states.name} y [{states.unit}]")
    success = np.array([bool(episode["success"]) for episode in episodes])
    for chosen, color, label in ((success, SUCCESS, "success"), (~success, FAILURE, "failure")):
        x, y = states.points[chosen].T
        axes.scatter(x, y, s=18, color=color, label=f"{label} ({chosen.sum()})", alpha=0.8)
        if states.angles is not None and chosen.any():
            angles = states.angles[chosen]
            axes.quiver(
                x, y, np.cos(angles), np.sin(angles), color=color, angles="xy", scale=25, width=0.003, alpha=0.8
            )
    axes.set_aspect("equal", adjustable="datalim")
    figure.legend(loc="outside upper center", ncols=2, fontsize=8)
    return png_base64(figure)
