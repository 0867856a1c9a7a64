"""flowchunk report: one page with everything that is known of a run.

usage: flowchunk report RUN [KEY=VALUE ...]

  RUN                 a run's folder
  output=FILE         the page (default: RUN/report.html)
  videos=true         record the worst, the median and the best episode of the evaluation, and show them
  device=cpu          where the policy runs for the videos

The page is a single file without anything from elsewhere. It holds what the folder holds: the data with
their hash, the settings, the losses, success over training with its intervals, success against nfe and
n_action_steps (of all RUN/sweep*/sweep.json), the evaluation with a map of its start states, videos, results
on a robot, versions, and the command that repeats the training. What is missing is left out, with the
command that adds it.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from flowchunk.cli.compare_evaluations import SETTINGS, Evaluation
from flowchunk.cli.eval import record_videos, summary
from flowchunk.cli.options import read_options, take_checkpoint, to_yaml
from flowchunk.cli.pages import render_template
from flowchunk.cli.report_content import Content, RunFiles
from flowchunk.cli.report_plots import loss_plot, quality_plot, score_plot, start_plot, sweep_plot
from flowchunk.cli.reports import print_written
from flowchunk.cli.run_data import summarize_dataset
from flowchunk.cli.selection_seeds import OVERLAP, overlap_warning
from flowchunk.cli.start_states import find_start_states
from flowchunk.cli.training_command import training_arguments
from flowchunk.datasets.errors import ConfigurationError, FlowchunkError
from flowchunk.policy.checkpoint import replace_text
from flowchunk.policy.chunk_policy import KIND as CHUNK_POLICY
from flowchunk.policy.evaluation.intervals import wilson_interval

PAGE = "report.html"


def run(arguments: list[str]) -> None:
    """Write a page with command-line arguments."""
    checkpoint, overrides = take_checkpoint("report", arguments)
    report(checkpoint, read_options("report", overrides))


def report(run: str | Path, options: Mapping[str, Any]) -> Path:
    """Write the page of a run with the options of ``schemas.REPORT_PAGE``; returns its path.

    Raises CheckpointError if the run has no checkpoint, ConfigurationError if one of its files is damaged.
    """
    console, files = Console(), RunFiles.read(run)
    if options["videos"]:
        _record(console, files, device=options["device"])
    file = Path(options["output"] or files.folder / PAGE).expanduser()
    if file.is_dir():
        raise ConfigurationError(f"output={file} is a folder; give a file, such as output={file / PAGE}")
    page = render_page(files)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, page)
    print_written(console, file)
    return file


def render_page(files: RunFiles) -> str:
    """The page: everything in one file, without anything from elsewhere."""
    page = _Page(files)
    return render_template(
        "report_page.html",
        run=files,
        training=files.training,
        data=page.data(),
        settings=None if files.options is None else to_yaml(files.options),
        curves=page.curves(),
        sweep=page.sweep(),
        evaluation=page.evaluation(),
        videos=page.videos(),
        robot=page.robot(),
        commands=page.commands(),
        missing=page.missing,
    )


@dataclass
class _Page:
    """The parts of the page. missing: what is left out, and the command that adds it, part by part."""

    files: RunFiles
    missing: dict[str, str] = field(default_factory=dict)

    def data(self) -> Content:
        """Specifications and normalizer as the checkpoint holds them, and the data set as long as it is there."""
        description = self.files.description
        found: Content = {
            "observations": description.get("observation_spec", {}),
            "estimated": description.get("estimated_spec", {}),
            "actions": description.get("action_spec", {}),
            "normalizer": {
                key: scaling.get("mode", "") for key, scaling in (description.get("normalizer") or {}).items()
            },
        }
        if self.files.options is None:
            self.missing["data"] = "the folder holds no config.yaml, so the data set is unknown"
            return found
        dataset = self.files.options.get("dataset")
        if not isinstance(dataset, Mapping):  # of an old run: its name
            return {**found, "generated": dataset}
        if "path" not in dataset:
            return {**found, "generated": dataset.get("name")}
        try:
            return {**found, "dataset": asdict(summarize_dataset(self.files.options))}
        except (FlowchunkError, OSError) as error:
            self.missing["data"] = f"episodes, frames and hash are left out, since the data set cannot be read: {error}"
            return found

    def curves(self) -> Content:
        """Losses and what chose the best checkpoint."""
        entries, best = self.files.entries, self.files.training.get("step")
        if not entries:
            self.missing["curves"] = f"no metrics were logged; {self._command('train', '…')} writes them"
        episodes = self.files.selection_episodes
        quality = quality_plot(entries, episodes=episodes, best_step=best)
        if entries and quality is None:
            self.missing["quality"] = (
                "nothing was evaluated during training; evaluation.episodes=N of flowchunk train adds it"
            )
        return {
            "loss": loss_plot(entries),
            "quality": quality,
            "episodes": episodes,
            "estimates": self.files.estimation_errors(),
        }

    def sweep(self) -> Content | None:
        """Success against nfe and n_action_steps."""
        if not self._is_policy:
            return None
        rows = self.files.sweep_rows
        if not rows:
            self.missing["sweep"] = f"success against nfe: {self._command('sweep')}"
            return None
        if len({row["n_action_steps"] for row in rows}) == 1:
            output = shlex.quote(f"output_dir={self.files.folder / 'sweep-2'}")
            self.missing["sweep"] = (
                f"success against n_action_steps: {self._command('sweep', f'n_action_steps=N {output}')}"
            )
        return {"rows": rows, "plot": sweep_plot(rows)}

    def evaluation(self) -> Content | None:
        """The evaluation's figures, its scores, and where its episodes began."""
        if not self._is_policy:
            return None
        found = self.files.evaluation
        if found is None:
            self.missing["evaluation"] = f"score, success and latency: {self._command('eval')}"
            return None
        figures = summary(found["episodes"], self.files.training)  # also of reports that were written without them
        return {
            "report": {**dict.fromkeys(SETTINGS), "latency_ms": None, "device": None, **found, **figures},
            "scores": score_plot(found["episodes"]),
            "starts": self._starts(found),
            "warning": overlap_warning(str(self.files.folder)) if figures[OVERLAP] else None,
        }

    def _starts(self, found: Content) -> str | None:
        seeds = [episode["seed"] for episode in found["episodes"]]
        try:
            states = find_start_states(found["env_id"], found["env"], seeds)
        except (FlowchunkError, KeyError, TypeError) as error:
            self.missing["starts"] = (
                f"the map of start states is left out, since the environment cannot be made: {error}"
            )
            return None
        if states is None:
            self.missing["starts"] = (
                "the map of start states is left out: no observed place (x, y) differs between them"
            )
            return None
        return start_plot(states, found["episodes"])

    def videos(self) -> list[Content]:
        """The videos of ranked episodes, embedded."""
        found = []
        for rank, episode in self.files.ranked_episodes().items():
            if (file := self.files.video_of(episode)) is not None:
                found.append({"rank": rank, **episode, "mp4": base64.b64encode(file.read_bytes()).decode()})
        if self.files.evaluation is not None and len(found) < len(self.files.ranked_episodes()):
            self.missing["videos"] = (
                "videos of the worst, the median and the best episode (under 5 MB each): "
                f"{self._command('report', 'videos=true')}"
            )
        return found

    def robot(self) -> Content | None:
        """The results of ``flowchunk run``."""
        found = self.files.robot
        if found is None:
            if self._is_policy:
                self.missing["robot"] = f"results on a robot: {self._command('run', 'robot=…')}"
            return None
        known = found["known"]
        return {**found, "interval": wilson_interval(found["successes"], known) if known else None}

    def commands(self) -> Content:
        """The commands that repeat training and evaluation."""
        found: Content = {}
        arguments = None if self.files.options is None else training_arguments(self.files.options)
        if arguments is None:
            self.missing["commands"] = "the command of the training is not known from this folder's config.yaml"
        else:
            output = f"output_dir={self.files.folder.absolute()}-again"
            found["training"] = shlex.join(["flowchunk", "train", *arguments, output])
        if (evaluation := self.files.evaluation) is not None:
            names = ("seed", "nfe", "n_action_steps", "strategy")
            chosen = [f"{name}={evaluation[name]}" for name in names if evaluation.get(name) is not None]
            episodes = f"episodes={len(evaluation['episodes'])}"
            found["evaluation"] = self._command("eval", shlex.join([episodes, *chosen]))
        return found

    @property
    def _is_policy(self) -> bool:
        return bool(self.files.description.get("kind") == CHUNK_POLICY)

    def _command(self, name: str, more: str = "") -> str:
        return f"flowchunk {name} {shlex.quote(str(self.files.folder))}{more and f' {more}'}"


def _record(console: Console, files: RunFiles, *, device: str) -> None:
    """Record the ranked episodes of the evaluation that have no video yet."""
    if files.evaluation is None:
        raise ConfigurationError(
            f"videos=true: {files.folder} was not evaluated, so its best and worst episodes are unknown; run flowchunk eval "
            f"{files.folder} first"
        )
    episodes = [episode for episode in files.ranked_episodes().values() if files.video_of(episode) is None]
    if episodes:
        how = {"num_envs": 1, "processes": 1, "device": device, "seed": None}
        evaluation = Evaluation.find(str(files.folder)).load(how, console)
        record_videos(console, evaluation, files.videos, [episode["seed"] for episode in episodes])
