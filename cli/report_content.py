"""What a run's folder holds, read for its page; damaged files are refused, and what is missing is named."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowchunk.cli.compare_evaluations import REPORT, read_report
from flowchunk.cli.eval import video_name
from flowchunk.cli.runs import CONFIG, read_config
from flowchunk.datasets.errors import CheckpointError, ConfigurationError
from flowchunk.datasets.specs import ObservationSpec
from flowchunk.policy.checkpoint import DESCRIPTION, find_checkpoint, find_run, read_description
from flowchunk.policy.evaluation.estimation_error import ESTIMATION_ERROR
from flowchunk.policy.training.run_log import METRICS, read_metrics

LARGEST_VIDEO = 5 * 2**20
RANKED = ("worst", "median", "best")
Content = dict[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """A run's folder, read.

    description: ``checkpoint.json`` of its best checkpoint. entries: of ``metrics.jsonl``. sweep_rows: of every
    ``sweep*/sweep.json`` that sweeps a policy, with ``n_action_steps``. options, evaluation, robot: None if there is no such
    file.
    """

    folder: Path
    description: Content
    entries: Sequence[Content]
    sweep_rows: Sequence[Content]
    options: Content | None
    evaluation: Content | None
    robot: Content | None

    @classmethod
    def read(cls, run: str | Path) -> RunFiles:
        """Read a run. Raises CheckpointError if it has no checkpoint, ConfigurationError, which names the file, if one is
        damaged."""
        checkpoint = find_checkpoint(run)
        folder = find_run(checkpoint)
        config, evaluation, robot = folder / CONFIG, folder / "eval" / REPORT, folder / "robot" / "run.json"
        return cls(
            folder,
            _read_description(checkpoint),
            _read_entries(folder),
            [row for file in sorted(folder.glob("sweep*/sweep.json")) for row in _sweep_rows(file)],
            read_config(config) if config.is_file() else None,
            _read_evaluation(evaluation) if evaluation.is_file() else None,
            _read(robot, _robot_summary, "flowchunk run") if robot.is_file() else None,
        )

    @property
    def training(self) -> Content:
        """What the checkpoint says about its training."""
        return dict(self.description["training"])

    @property
    def selection_episodes(self) -> int:
        """The episodes of each evaluation during training; 0 if they are unknown."""
        of_training = self.training.get("evaluation") or (self.options or {}).get("evaluation") or {}
        return int(of_training.get("episodes", 0))

    def estimation_errors(self) -> list[Content]:
        """Name, unit and median error of each value that the policy estimates, as far as they were measured."""
        metrics = self.training.get("metrics") or {}
        rows = []
        for key, field in ObservationSpec.from_json(self.description.get("estimated_spec", {})).fields.items():
            for index, name in enumerate(field.names or range(field.size)):
                error = metrics.get(f"{ESTIMATION_ERROR}.{key}.{name}")
                rows.append({"name": f"{key}.{name}", "unit": "".join(field.units[index : index + 1]), "error": error})
        return [row for row in rows if row["error"] is not None]

    @property
    def videos(self) -> Path:
        """The folder of the evaluation's videos."""
        return self.folder / "eval" / "videos"

    def ranked_episodes(self) -> dict[str, Content]:
        """The worst, the median and the best evaluated episode by score; fewer if there are fewer episodes."""
        if self.evaluation is None:
            return {}
        ordered = sorted(self.evaluation["episodes"], key=lambda episode: (episode["score"], -episode["steps"]))
        found: dict[str, Content] = {}
        for name, place in zip(RANKED, (0, (len(ordered) - 1) // 2, -1), strict=True):
            if ordered[place] not in found.values():
                found[name] = ordered[place]
        return found

    def video_of(self, episode: Mapping[str, Any]) -> Path | None:
        """The video of an episode, if there is one that is small enough for a page."""
        file = self.videos / video_name(episode["seed"])
        return file if file.is_file() and 0 < file.stat().st_size <= LARGEST_VIDEO else None


def _read_description(checkpoint: Path) -> Content:
    found = read_description(checkpoint)
    if missing := [name for name in ("config", "training", "versions") if not isinstance(found.get(name), dict)]:
        raise CheckpointError(
            f"{checkpoint / DESCRIPTION} does not hold {', '.join(missing)}; copy the checkpoint again"
        )
    return found


def _read_entries(folder: Path) -> list[Content]:
    """The metrics; a last line that a crash cut off may be missing, others may not."""
    file = folder / METRICS
    entries = read_metrics(folder)
    lines = file.read_text(errors="replace").splitlines() if file.is_file() else []
    if len(entries) < len(lines) - 1 or not all(isinstance(entry, dict) and "step" in entry for entry in entries):
        raise ConfigurationError(
            f"{file} is damaged: line {len(entries) + 1} is no JSON object with a step; restore it, or delete it to "
            "leave the curves out"
        )
    return entries


def _read(file: Path, convert: Callable[[Content], Any], command: str) -> Any:
    """The converted content of a JSON file. Raises ConfigurationError if it is not what the command writes."""
    try:
        return convert(json.loads(file.read_text()))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigurationError(
            f"{file} is damaged, or not written by {command} ({error!r}); write it again with {command}, or delete it"
        ) from error


def _read_evaluation(file: Path) -> Content:
    found = read_report(file)
    if "latency_ms" in found:
        found["latency_ms"] = _read(file, lambda content: _latency(content["latency_ms"]), "flowchunk eval")
    return found


def _latency(found: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(found[name]) for name in ("p50", "p95")}


def _sweep_rows(file: Path) -> list[Content]:
    def convert(content: Content) -> list[Content]:
        if "n_action_steps" not in content:  # of a model of generated data
            return []
        valid = [row for row in content["rows"] if "refused" not in row]
        return [
            {
                "nfe": int(row["nfe"]),
                "n_action_steps": int(content["n_action_steps"]),
                "episodes": int(content["episodes"]),
                "score": float(row["score"]),
                "success": float(row["success"]),
                "success_ci95": [float(end) for end in row["success_ci95"]],
                "latency_ms": _latency(row["latency_ms"]),
            }
            for row in valid
        ]

    rows: list[Content] = _read(file, convert, "flowchunk sweep")
    return rows


def _robot_summary(content: Content) -> Content:
    """What the page shows of a run on a robot."""
    episodes = content["episodes"]
    outcomes = [episode["success"] for episode in episodes if episode["success"] is not None]
    preflight = content["preflight"] or {}
    return {
        "robot": preflight.get("robot", content["options"].get("robot")),
        "rate": preflight.get("rate"),
        "episodes": len(episodes),
        "known": len(outcomes),
        "successes": sum(outcomes),
        "counts": {
            name.replace("_", " "): int(content[name])
            for name in ("commands", "missed_deadlines", "chunks", "late_chunks", "held_steps")
        },
        "interventions": {str(name): int(count) for name, count in content["interventions"].items()},
        "stopped": content["stopped"] or content["fault"],
    }
