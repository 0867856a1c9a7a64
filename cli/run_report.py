"""The report of a run on a robot: JSON, and one page with plots."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flowchunk.cli.pages import render_template
from flowchunk.cli.plots import png_base64
from flowchunk.cli.reports import write_report
from flowchunk.cli.selection_seeds import OVERLAP, overlaps_selection
from flowchunk.envs.control.loop import EpisodeEnd
from flowchunk.envs.control.run_log import RunLog
from flowchunk.envs.control.safety import PolicyFacts
from flowchunk.envs.control.session import Preflight
from flowchunk.policy.checkpoint import replace_text
from flowchunk.policy.evaluation.intervals import wilson_interval
from flowchunk.policy.execution.smoothness import smoothness

VERSIONS = ("flowchunk", "torch", "numpy", "scipy")
SIMULATED = ("simulated", "gym")  # on hardware seeds do not decide how an episode begins
PLOTTED_STEPS = 2000
PLOTTED_DIMENSIONS = 8
EVENTS_SHOWN = 50


@dataclass
class RunReport:
    """What is known of a run; complete enough to be written at any time."""

    checkpoint: str
    options: Mapping[str, Any]
    facts: PolicyFacts
    episodes: list[dict[str, Any]] = field(default_factory=list)
    preflight: Preflight | None = None
    log: RunLog = field(default_factory=RunLog)
    stopped: str | None = None
    fault: str | None = None

    def begin(self, preflight: Preflight, log: RunLog) -> None:
        """The robot is ready."""
        self.preflight, self.log = preflight, log

    def add_episode(
        self,
        seed: int,
        end: EpisodeEnd,
        outcome: Mapping[str, float | bool] | None,
        seconds: float,
        stopped: str | None,
    ) -> None:
        """An episode has ended. stopped: why the run ends with it, if it does."""
        known = outcome or {}
        steps = len(self.log.times) - self.log.episode_starts[-1] if len(self.log.episode_starts) else 0
        self.stopped = stopped
        self.episodes.append(
            {
                "seed": seed,
                "score": None if outcome is None else float(known.get("score", 0.0)),
                "success": None if outcome is None else bool(known.get("is_success", False)),
                "steps": steps,
                "seconds": seconds,
                "end": stopped or end.cause,
            }
        )

    def content(self) -> dict[str, Any]:
        """The report as JSON values."""
        log = self.log
        return {
            "checkpoint": self.checkpoint,
            "options": dict(self.options),
            "stopped": self.stopped,
            "fault": self.fault,
            "episodes": self.episodes,
            "preflight": None if self.preflight is None else _preflight(self.preflight),
            "control_hz": self.facts.action_spec.control_hz,
            "commands": log.num_commands,
            "missed_deadlines": log.missed,
            "chunks": len(log.boundaries),
            "late_chunks": log.late_chunks,
            "padded_prefixes": log.padded_prefixes,
            "held_steps": log.held_steps,
            "postponed_predictions": log.postponed,
            "delays": {str(delay): count for delay, count in sorted(log.delays.items())},
            "interventions": dict(sorted(log.interventions.items())),
            "events": [asdict(event) for event in log.events],
            "stages_ms": log.percentiles(),
            "smoothness": _smoothness(log, self.facts),
            "versions": {name: version(name) for name in VERSIONS},
            "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        }

    def write(self, directory: Path) -> list[Path]:
        """Write ``run.json``, ``run.html`` and, if all episodes have outcomes, ``eval.json``; returns the files."""
        content = self.content()
        files = [directory / "run.json", directory / "run.html"]
        write_report(files[0], content)
        write_page(files[1], content, self.log, self.facts)
        if self.episodes and all(episode["success"] is not None for episode in self.episodes):
            files.append(directory / "eval.json")
            write_report(files[-1], self._evaluation(content))
        return files

    def _evaluation(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """As ``flowchunk eval`` writes it, so that results on hardware are compared like simulated ones."""
        successes = sum(episode["success"] for episode in self.episodes)
        assert self.preflight is not None
        execution = self.preflight.execution
        return {
            "task": self.facts.training.get("task"),
            "checkpoint": self.checkpoint,
            "step": self.facts.training.get("step"),
            "robot": self.preflight.robot.name,
            "env_id": self.facts.training.get("env_id") if self.options["env_id"] is None else self.options["env_id"],
            "env": {**self.facts.training.get("env", {}), **self.options["env"]},
            "seed": self.options["seed"],
            **self.preflight.sampling,
            "n_action_steps": execution.n_action_steps,
            "strategy": execution.strategy,
            "reanchor_steps": execution.reanchor_steps,
            "num_envs": 1,
            "episodes": [
                {name: episode[name] for name in ("seed", "score", "success", "steps")} for episode in self.episodes
            ],
            "score_mean": float(np.mean([episode["score"] for episode in self.episodes])),
            "success_rate": successes / len(self.episodes),
            "success_ci95": list(wilson_interval(successes, len(self.episodes))),
            OVERLAP: self.options["robot"] in SIMULATED
            and overlaps_selection(self.facts.training, [episode["seed"] for episode in self.episodes]),
            "latency_ms": {name: self.preflight.inference_ms[name] for name in ("p50", "p95")},
            "versions": content["versions"],
        }


def write_page(file: Path, content: Mapping[str, Any], log: RunLog, facts: PolicyFacts) -> None:
    """Write the page: tables and plots in one file, without anything from elsewhere."""
    plots = {"commands": _plot_commands(log, facts), "timing": _plot_timing(log)}
    start = log.times[0] if log.times else content["events"][0]["time"] if content["events"] else 0.0
    shown = {"report": content, "plots": plots, "options": _given(content), "start": start, "shown": EVENTS_SHOWN}
    replace_text(file, render_template("run_report.html", **shown))


def _given(content: Mapping[str, Any]) -> str:
    return json.dumps(content["options"], indent=1, default=str)


def _preflight(preflight: Preflight) -> dict[str, Any]:
    return {
        "robot": preflight.robot.name,
        "rate": preflight.robot.command_hz,
        "highest_rate": preflight.highest_rate,
        "delay": preflight.delay,
        "execution": asdict(preflight.execution),
        "inference_ms": dict(preflight.inference_ms),
        "observe_ms": dict(preflight.observe_ms),
        "late_ms": dict(preflight.late_ms),
        "measures": dict(preflight.robot.measures),
    }


def _smoothness(log: RunLog, facts: PolicyFacts) -> dict[str, float | None]:
    found = smoothness(
        log.commands(), log.boundaries, control_hz=facts.action_spec.control_hz, starts=log.episode_starts
    )
    return {name: None if math.isnan(value) else value for name, value in asdict(found).items()}


def _plot_commands(log: RunLog, facts: PolicyFacts) -> str:
    """The commanded targets of each dimension over time, and where chunks took over."""
    commands, times = log.commands()[:PLOTTED_STEPS], np.array(log.times)[:PLOTTED_STEPS]
    dimensions = facts.action_spec.dimensions[:PLOTTED_DIMENSIONS]
    figure = Figure(figsize=(10, 0.8 + 1.4 * len(dimensions)), layout="constrained")
    panels = figure.subplots(len(dimensions), 1, sharex=True, squeeze=False)[:, 0]
    if len(times):
        times = times - times[0]
        commands[[index for index in log.episode_starts if index < len(times)]] = np.nan  # a gap between two episodes
        boundaries = [times[index] for index in log.boundaries if index < len(times)]
        for index, (axes, dimension) in enumerate(zip(panels, dimensions, strict=True)):
            axes.plot(times, commands[:, index], lw=1)
            axes.vlines(boundaries, *axes.get_ylim(), color="tab:orange", lw=0.4, alpha=0.6)
            axes.set_ylabel(f"{dimension.name}\n[{dimension.unit}]", fontsize=8)
    panels[-1].set_xlabel("time [s]; orange: a new chunk takes over")
    return png_base64(figure)


def _plot_timing(log: RunLog) -> str:
    """Lateness of commands, durations of predictions, and the delay of chunks."""
    figure = Figure(figsize=(10, 2.6), layout="constrained")
    late, predictions, delays = figure.subplots(1, 3)
    late.hist(1000 * np.array(log.durations["command_late"]), bins=60, log=True)
    late.set(xlabel="commands late [ms]", ylabel="commands")
    predictions.hist(1000 * np.array(log.durations["inference"]), bins=40)
    predictions.set(xlabel="prediction [ms]", ylabel="chunks")
    steps = sorted(log.delays)
    delays.bar(steps, [log.delays[step] for step in steps], width=0.6)
    delays.set(xlabel="delay [control steps]", ylabel="chunks", xticks=steps)
    delays.set_xlim(-1, max(steps, default=0) + 1)
    return png_base64(figure)
