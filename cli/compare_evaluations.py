"""The evaluations that are compared: found, completed on the same seeds, and refused where they do not belong together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from flowchunk.cli.eval import PolicyEvaluation, read_training, summary
from flowchunk.cli.options import read_options
from flowchunk.cli.reports import write_report
from flowchunk.cli.runs import CONFIG, differing_options
from flowchunk.datasets.errors import ConfigurationError
from flowchunk.envs.rollout import REPORT_SEED
from flowchunk.policy.checkpoint import find_checkpoint, find_run
from flowchunk.policy.evaluation.paired import Outcomes

REPORT = "eval.json"
TASK = ("task", "env_id", "robot", "env", "delay")
"""Entries that say what the episodes are, which compared policies have in common."""
SETTINGS = ("nfe", "solver", "noise_scale", "n_action_steps", "strategy", "prefix_method", "reanchor_steps")
"""Entries that say how a policy acts, which runs of one method have in common."""
Report = Mapping[str, Any]


@dataclass
class Evaluation:
    """An ``eval.json`` that is there, or that will be. path: as the user named it; report: {} as long as there is none."""

    path: str
    file: Path
    report: Report
    _loaded: PolicyEvaluation | None = field(default=None, repr=False)

    @classmethod
    def find(cls, path: str) -> Evaluation:
        """Of a file, or of a folder: its own, or its run's in ``eval``.

        Raises ConfigurationError if there is neither such a file nor a run, or if the file is none of ``flowchunk eval``.
        """
        given = Path(path).expanduser()
        if given.parent.name == "checkpoints" and not (given / REPORT).exists():
            raise ConfigurationError(
                f"{path} is a checkpoint, and several of a run share its folder eval; give the run, or the eval.json of "
                "flowchunk eval CHECKPOINT output_dir=DIR"
            )
        for file in (given, given / REPORT, given / "eval" / REPORT):
            if file.is_file():
                return cls(path, file, read_report(file))
        if not given.exists():
            raise ConfigurationError(
                f"there is no run at {path}: no such path; give folders of runs, or their eval.json"
            )
        return cls(path, find_run(find_checkpoint(given)) / "eval" / REPORT, {})

    @property
    def seeds(self) -> list[int]:
        return [episode["seed"] for episode in self.report.get("episodes", [])]

    def complete(self, episodes: int, options: Mapping[str, Any], console: Console) -> None:
        """Evaluate the episodes that are missing, on the seeds after those that are there, and write the file.

        options: of ``schemas.COMPARE_RUNS``. Raises ConfigurationError if it cannot be continued.
        """
        if (missing := episodes - len(self.seeds)) <= 0:
            return
        self.prepare(options, console)
        evaluation, directory = self.load(options, console), self._checkpoint()
        seed = self.report["seed"] + len(self.seeds)
        console.print(
            f"evaluating {self.path}: {missing} episodes from seed {seed}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        chosen = {**evaluation.options, "seed": seed, "episodes": missing}
        found = replace(evaluation, options=chosen).run(nfe=self.report["nfe"])
        every = [*self.report["episodes"], *(asdict(episode) for episode in found.episodes)]
        self.report = {
            **self.report,
            **summary(every, read_training(directory)),
            "env_steps_per_second": found.env_steps_per_second,
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_report(self.file, self.report)

    def prepare(self, options: Mapping[str, Any], console: Console) -> None:
        """Make the report of a run that was never evaluated: its conditions, without episodes."""
        if not self.report:
            evaluation, directory = self.load(options, console), self._checkpoint()
            latency = {"latency_ms": evaluation.latency_ms(None)}
            self.report = {**evaluation.identity(directory), **evaluation.conditions(), "episodes": [], **latency}

    def load(self, options: Mapping[str, Any], console: Console) -> PolicyEvaluation:
        """The policy in its environment, under the conditions of the episodes that are there.

        options: ``num_envs``, ``processes``, ``device`` and ``seed`` of ``schemas.COMPARE_RUNS``. Raises ConfigurationError
        if no more episodes can be run.
        """
        if self._loaded is None:
            given = {name: self.report[name] for name in (*SETTINGS, "env_id", "env", "delay") if name in self.report}
            given |= {name: options[name] for name in ("num_envs", "processes", "device")}
            given["seed"] = self.report.get("seed", REPORT_SEED if options["seed"] is None else options["seed"])
            self._require_continuable()
            chosen = {**read_options("eval", []), **given}
            self._loaded = PolicyEvaluation.load(self._checkpoint(), chosen, console=console)
        return self._loaded

    def _checkpoint(self) -> Path:
        """The checkpoint of the report; that of the same name in its run, wherever that was moved."""
        run = self.file.parent.parent
        if not self.report:
            return find_checkpoint(run)
        recorded = Path(self.report["checkpoint"])
        moved = run / "checkpoints" / recorded.name
        return find_checkpoint(moved if self.file.parent.name == "eval" and moved.exists() else recorded)

    def config(self) -> Path | None:
        """The options of the run's training; None if it was trained from Python, or is not there."""
        runs = [self.file.parent.parent, find_run(Path(self.report["checkpoint"]))]
        return next((run / CONFIG for run in runs if (run / CONFIG).is_file()), None)

    def _require_continuable(self) -> None:
        if not self.report:
            return
        if "robot" in self.report:
            raise ConfigurationError(
                f"{self.path} has {len(self.seeds)} episodes on hardware, and more cannot be simulated; give episodes="
                f"{len(self.seeds)} or fewer, or record more with flowchunk run"
            )
        then, now = self.report.get("step"), read_training(self._checkpoint()).get("step")
        if then is not None and then != now:
            raise ConfigurationError(
                f"{self.path} was evaluated at training step {then}, and its checkpoint is of step {now} now; evaluate it "
                f"again with flowchunk eval {self.path}"
            )


def read_report(file: Path) -> dict[str, Any]:
    """The content of an ``eval.json``. Raises ConfigurationError if it is damaged, or none of ``flowchunk eval``."""
    try:
        content = json.loads(file.read_text())
        episodes = [(int(e["seed"]), float(e["score"]), bool(e["success"])) for e in content["episodes"]]
        is_whole = bool(episodes) and all(0 <= score <= 1 for _, score, _ in episodes)
        is_whole = is_whole and [seed for seed, _, _ in episodes] == [content["seed"] + n for n in range(len(episodes))]
    except (ValueError, TypeError, KeyError):
        is_whole = False
    if not is_whole:
        raise ConfigurationError(
            f"{file} is damaged, or not written by flowchunk eval: expected episodes on consecutive seeds with scores in "
            "[0, 1]; evaluate again"
        )
    return dict(content)


def outcomes_of(evaluations: Sequence[Evaluation], episodes: int) -> Outcomes:
    """The first so many episodes of a method's runs."""
    chosen = [evaluation.report["episodes"][:episodes] for evaluation in evaluations]
    success = np.array([[episode["success"] for episode in run] for run in chosen], dtype=bool)
    return Outcomes(success, np.array([[episode["score"] for episode in run] for run in chosen], dtype=float))


def require_comparable(evaluations: Iterable[Evaluation]) -> None:
    """Raise ConfigurationError, which names both, unless all are of the same task from the same seed."""
    first, *others = evaluations
    for other in others:
        pair = f"{first.path} and {other.path} cannot be compared"
        if first.file.resolve() == other.file.resolve():
            raise ConfigurationError(f"{pair}: they are the same evaluation, {first.file}")
        if differs := _differences(first.report, other.report, TASK):
            raise ConfigurationError(f"{pair}: {differs}; evaluate both in the same environment")
        if (seed := first.report["seed"]) != other.report["seed"]:
            raise ConfigurationError(
                f"{pair}: their episodes are from seed {seed} and from seed {other.report['seed']}; evaluate both on the "
                f"same, for example with flowchunk eval {other.path} seed={seed}"
            )


def require_same_number(evaluations: Iterable[Evaluation]) -> int:
    """The number of episodes of all. Raises ConfigurationError, which names two that differ."""
    first, *others = evaluations
    for other in others:
        if len(first.seeds) != len(other.seeds):
            raise ConfigurationError(
                f"{first.path} and {other.path} cannot be compared: they have {len(first.seeds)} and {len(other.seeds)} "
                f"episodes; give episodes={max(len(first.seeds), len(other.seeds))}, which evaluates what is missing"
            )
    return len(first.seeds)


def require_one_method(name: str, evaluations: Sequence[Evaluation]) -> None:
    """Raise ConfigurationError, which names both, unless runs differ only in the seed of their training."""
    first, *others = evaluations
    for other in others:
        pair = f"{first.path} and {other.path} are not one method, {name}"
        if differs := _differences(first.report, other.report, SETTINGS):
            raise ConfigurationError(f"{pair}: {differs}; compare them under two names")
        configs = [config for evaluation in (first, other) if (config := evaluation.config()) is not None]
        if len(configs) == 2:
            changed = differing_options(*configs)
            if "seed" not in changed:
                raise ConfigurationError(f"{pair}: both were trained with the same seed; train with seed=… of its own")
            if listed := ", ".join(f"{key} is {a} and {b}" for key, (a, b) in changed.items() if key != "seed"):
                raise ConfigurationError(f"{pair}: {listed}; compare them under two names")


def _differences(first: Report, other: Report, keys: Sequence[str]) -> str:
    """The entries that differ, in words; of a section, only what differs within it."""
    found = []
    for key in keys:
        a, b = first.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += [
                f"{key}.{name} is {a.get(name)} and {b.get(name)}" for name in {**a, **b} if a.get(name) != b.get(name)
            ]
        elif a != b:
            found.append(f"{key} is {a} and {b}")
    return ", ".join(found)
