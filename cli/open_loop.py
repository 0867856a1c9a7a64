"""The open-loop error of a run on recorded episodes: ``open_loop.json``, its tables and its plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from flowchunk.cli.eval import load_policy
from flowchunk.cli.options import read_options
from flowchunk.cli.plots import EpisodeChunks, plot_chunks
from flowchunk.cli.recordings import Recordings, load_recordings
from flowchunk.cli.reports import print_table, print_written, table_of, write_report
from flowchunk.datasets.errors import ConfigurationError
from flowchunk.policy.checkpoint import find_checkpoint, find_run
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.evaluation.open_loop import (
    OpenLoopError,
    action_std,
    every_kth,
    open_loop_error,
    predict_chunks,
)
from flowchunk.policy.evaluation.open_loop_baselines import hold_chunks, mean_chunks, nearest_chunks

VERSIONS = ("flowchunk", "torch", "numpy")
NFE = (1, 4, 10)
MAX_ROWS = 16  # action dimensions in the table
MAX_PANELS = 8  # action dimensions in the plot
PLOTTED_EPISODES = 2
PLOTTED_SAMPLES = 5  # chunks from the same observation
PLOTTED_CHUNKS = 24  # places in an episode that chunks start at


@dataclass(frozen=True)
class Measured:
    """A method and its error. nfe: of the policy; None for a baseline."""

    method: str
    nfe: int | None
    error: OpenLoopError

    @property
    def label(self) -> str:
        """What tables call it."""
        return self.method if self.nfe is None else f"{self.method}, nfe={self.nfe}"


def evaluate_open_loop(checkpoint: str | Path, options: Mapping[str, Any]) -> Path:
    """Measure a policy on the data set in the options of ``schemas.EVAL``; returns the path of ``open_loop.json``.

    Raises ConfigurationError if the options cannot be used or no episodes were held out, SpecMismatchError if policy and data
    do not fit together, DatasetError for data that cannot be read.
    """
    directory = find_checkpoint(checkpoint)
    policy = load_policy(directory, options)
    policy.with_sampling(nfe=options["nfe"])  # raises for an invalid number before data are read
    console = Console()
    say = partial(console.print, markup=False, soft_wrap=True)
    recordings = load_recordings(policy, find_run(directory), options["dataset"], say=say)
    if not len(recordings.windows):
        raise ConfigurationError(
            f"{find_run(directory)} was trained on all episodes of {options['dataset']['path']}; give another data set, or "
            "train with dataset.validation_fraction above 0 and at least two episodes"
        )
    output_dir = Path(options["output_dir"] or find_run(directory) / "eval").expanduser()
    return _report(console, policy, directory, recordings, options, output_dir)


def report_training(run: Path, options: Mapping[str, Any]) -> None:
    """Measure a run on the episodes that its training held out, and write the report into its folder.

    options: those of ``schemas.TRAIN``.
    """
    dataset = {"path": options["dataset"]["path"]}
    evaluation = {**read_options("eval", []), "dataset": dataset, "device": options["device"]}
    directory, console = find_checkpoint(run), Console()
    policy = load_policy(directory, evaluation)
    recordings = load_recordings(policy, run, dataset, say=lambda message: None)
    if len(recordings.windows):
        _report(console, policy, directory, recordings, evaluation, run)
    else:
        console.print("no episodes were held out, so there is no open-loop error")


def _report(
    console: Console,
    policy: ChunkPolicy,
    directory: Path,
    recordings: Recordings,
    options: Mapping[str, Any],
    output_dir: Path,
) -> Path:
    seed, nfe = options["seed"], policy.model.resolve_nfe(policy.config.sampling.with_given(nfe=options["nfe"]))
    indices = every_kth(recordings.windows)
    measured = measure(policy, recordings, indices, nfe=admitted_nfe(policy, options["nfe"]), seed=seed)
    main = next(entry for entry in measured if entry.nfe == nfe)
    report = {
        "checkpoint": str(directory),
        "seed": seed,
        "nfe": nfe,
        "num_windows": len(indices),
        **conditions(policy, recordings),
        "errors": [_to_json(entry) for entry in measured],
    }
    output_dir.mkdir(parents=True, exist_ok=True)
    file, image = output_dir / "open_loop.json", output_dir / "open_loop.png"
    write_report(file, report)
    print_errors(console, recordings, measured, main)
    first_frames, shown = recordings.first_frames[:PLOTTED_EPISODES], worst_dimensions(main.error, MAX_PANELS)
    episodes = [sample_episode(policy, recordings, first, nfe=nfe, seed=seed) for first in first_frames]
    plot_chunks(image, episodes, policy.action_spec, shown)
    print_written(console, file, image)
    return file


def conditions(policy: ChunkPolicy, recordings: Recordings) -> dict[str, Any]:
    """What the errors depend on besides the checkpoint, the seed and nfe."""
    return {
        "dataset": str(recordings.store.path),
        "episodes": recordings.selection,
        "num_episodes": len(recordings.first_frames),
        "scaled_by": "these actions" if recordings.training is None else "training actions",
        "solver": policy.objective.solver_name(policy.config.sampling),
        "noise_scale": policy.config.sampling.noise_scale,
        "device": str(policy.model.device),
        "versions": {name: version(name) for name in VERSIONS},
    }


def admitted_nfe(policy: ChunkPolicy, nfe: int | None) -> list[int]:
    """The numbers of network evaluations to measure: the given one, or the default and those of ``NFE`` that are admitted."""
    sampling = policy.config.sampling
    own = policy.model.resolve_nfe(sampling.with_given(nfe=nfe))
    return [own] if nfe is not None else sorted({own, *(number for number in NFE if _is_admitted(policy, number))})


def _is_admitted(policy: ChunkPolicy, nfe: int) -> bool:
    try:
        policy.model.resolve_nfe(policy.config.sampling.with_given(nfe=nfe))
    except ConfigurationError:
        return False
    return True


def measure(
    policy: ChunkPolicy, recordings: Recordings, indices: Tensor, *, nfe: Sequence[int], seed: int
) -> list[Measured]:
    """The errors of the policy and of the baselines; ``nearest`` and ``mean`` need the training data."""
    windows, training = recordings.windows, recordings.training
    std = action_std(windows if training is None else training)
    chunks: dict[tuple[str, int | None], Tensor] = {
        ("policy", number): predict_chunks(policy, windows, indices, nfe=number, seed=seed) for number in nfe
    }
    chunks[("hold", None)] = hold_chunks(windows, indices)
    if training is not None:
        chunks[("nearest", None)] = nearest_chunks(policy, windows, indices, training)
        chunks[("mean", None)] = mean_chunks(policy, windows, indices, training)
    return [
        Measured(method, number, open_loop_error(predicted, windows, indices, std=std, action_spec=policy.action_spec))
        for (method, number), predicted in chunks.items()
    ]


def worst_dimensions(error: OpenLoopError, count: int) -> list[int]:
    """Indices of up to ``count`` dimensions with the largest normalized errors, in the order of the dimensions."""
    by_error = sorted(range(len(error.dimensions)), key=lambda index: -error.dimensions[index].normalized)
    return sorted(by_error[:count])


def sample_episode(policy: ChunkPolicy, recordings: Recordings, first: int, *, nfe: int, seed: int) -> EpisodeChunks:
    """Several chunks from each of evenly spaced frames of the episode that begins at frame ``first``."""
    windows = recordings.windows
    frames = (windows.first == first).nonzero().flatten()  # its windows, one per frame
    spacing = max(windows.horizon, math.ceil(len(frames) / PLOTTED_CHUNKS))
    starts = torch.arange(0, len(frames), spacing, device=frames.device)
    chunks = predict_chunks(policy, windows, frames[starts].repeat(PLOTTED_SAMPLES), nfe=nfe, seed=seed)
    return EpisodeChunks(
        episode=recordings.episode_of(first),
        recorded=windows.actions[windows.frames[frames]].cpu().numpy(),
        starts=starts.cpu().numpy(),
        samples=chunks.reshape(PLOTTED_SAMPLES, len(starts), *chunks.shape[1:]).numpy(),
    )


def print_errors(console: Console, recordings: Recordings, measured: Sequence[Measured], main: Measured) -> None:
    """Print the errors of all methods, and per dimension those of ``main`` and the baselines."""
    table = table_of("method", "normalized error", "first step", "last step", "worst dimension")
    for entry in measured:
        error, worst = entry.error, entry.error.worst
        measured_steps = [step for step in error.per_step if np.isfinite(step)]  # of episodes shorter than a chunk
        steps = [f"{step:.3f}" for step in (measured_steps[0], measured_steps[-1])]
        table.add_row(entry.label, f"{error.normalized:.3f}", *steps, f"{worst.name} {worst.normalized:.3f}")
    print_table(console, f"open-loop error on {recordings}", table)
    shown, size = worst_dimensions(main.error, MAX_ROWS), len(main.error.dimensions)
    columns = [main, *(entry for entry in measured if entry.nfe is None)]
    table = table_of("dimension", "unit", *(entry.label for entry in columns))
    for index in shown:
        dimension = main.error.dimensions[index]
        errors = (f"{entry.error.dimensions[index].mean_absolute:.4g}" for entry in columns)
        table.add_row(dimension.name, dimension.unit, *errors)
    cut = "" if len(shown) == size else f" of the {len(shown)} worst of {size} dimensions"
    print_table(console, f"mean absolute error{cut}", table)


def _to_json(entry: Measured) -> dict[str, Any]:
    error = asdict(entry.error)
    steps = [None if np.isnan(step) else step for step in entry.error.per_step]
    return {"method": entry.method, "nfe": entry.nfe, **error, "per_step": steps}
