"""Recorded episodes that a finished policy is measured on: those that its training held out, or those of another data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from flowchunk.cli.options import read_options
from flowchunk.cli.own_data import open_source, specs_of_source
from flowchunk.cli.runs import CONFIG, read_config
from flowchunk.cli.train import dataset_options
from flowchunk.datasets.derived_specs import DerivedSpecs, distinct_names
from flowchunk.datasets.episode_source import TASK, EpisodeSource
from flowchunk.datasets.errors import DatasetError, SpecMismatchError
from flowchunk.datasets.image_cache import ImageCacheOptions, Say
from flowchunk.datasets.windows import Windows, load_image_tensors, load_windows
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.demonstrations import Demonstrations, Specs, load_demonstrations, matching_specs
from flowchunk.policy.fitting import require_specs_of


@dataclass(frozen=True)
class Recordings:
    """Windows of recorded episodes, and those that the policy was trained on (None if they are unknown).

    selection: which episodes of the store: those that training held out, or all.
    """

    store: EpisodeSource
    selection: Literal["held-out", "all"]
    windows: Windows
    training: Windows | None

    def __str__(self) -> str:
        count = len(self.first_frames)
        episodes = f"{count} held-out episode" if self.selection == "held-out" else f"all {count} episode"
        return f"{episodes}{'s' * (count != 1)} of {self.store.path}"

    @property
    def first_frames(self) -> list[int]:
        """The first frame of each episode, without mirrored episodes."""
        return [first for first in torch.unique(self.windows.first).tolist() if first < self.store.num_frames]

    def episode_of(self, frame: int) -> int:
        """The number of the episode in the store that a frame belongs to."""
        return int(np.searchsorted(self.store.episode_ends, frame, side="right"))


def load_recordings(policy: ChunkPolicy, run: Path, dataset: Mapping[str, Any], *, say: Say) -> Recordings:
    """The episodes that the run held out if ``dataset["path"]`` is its training data, otherwise all of that data set.

    dataset: ``path``, and what else of ``schemas.SOURCES`` and ``SPECS`` differs from the training. say: called with messages
    on cached images, and on training data that cannot be read. Raises SpecMismatchError if the data are not those that the
    policy needs, DatasetError if they cannot be read.
    """
    path, training = Path(dataset["path"]).expanduser(), _training_options(run)
    trained_on: Mapping[str, Any] = _default_dataset() if training is None else training["dataset"]
    given = {name: value for name, value in dataset.items() if value != _default_dataset().get(name)}
    sources = {**trained_on["sources"], **dataset.get("sources", {})}
    store = _open(policy, {**trained_on, **given, "sources": sources}, training)
    specs: Specs = (policy.data_spec, policy.action_spec)
    if training is not None and Path(trained_on["path"]).expanduser().resolve() == path.resolve():
        data = _demonstrations(policy, store, training, say)
        return Recordings(store, "held-out", data.validation, data.training)
    cache = ImageCacheOptions() if training is None else dataset_options(training, specs, None).cache
    windows = load_windows(
        store,
        *specs,
        episodes=np.arange(len(store.episode_ends)),
        observation_steps=policy.config.observation_steps,
        horizon=policy.config.horizon,
        images=load_image_tensors(store, specs[0], cache, device=policy.model.device, say=say),
        latest_only=policy.config.estimated,
        device=policy.model.device,
    )
    return Recordings(store, "all", windows, _training_windows(policy, run, training, say))


def _open(policy: ChunkPolicy, dataset: Mapping[str, Any], training: Mapping[str, Any] | None) -> EpisodeSource:
    """A data set for the policy. Raises SpecMismatchError if what it says about its numbers differs from the policy's."""
    options = {"dataset": dataset, "task": {} if training is None else training["task"]}
    store = open_source(options)
    is_described = store.observation_spec is not None and store.action_spec is not None
    if is_described:  # others are held to the policy's shapes
        specs = specs_of_source(store, options)
        described = (specs.observation_spec, specs.action_spec)
        side = "the open-loop evaluation of the policy" if policy.config.estimated else "the policy"
        require_specs_of(policy, described, expected_by=side, got_from=str(store.path))
    else:
        _require_no_contradiction(policy, store)
    matching_specs(store, DerivedSpecs(policy.data_spec, policy.action_spec, {}))  # raises for missing arrays
    return store


def _require_no_contradiction(policy: ChunkPolicy, store: EpisodeSource) -> None:
    """Raise SpecMismatchError if the format says something else about the numbers than the policy: rate, names or tasks."""
    described = store.description
    said: list[tuple[str, Any, Any]] = [("control_hz", policy.action_spec.control_hz, described.control_hz)]
    for key, field in policy.data_spec.fields.items():
        if key == TASK and store.tasks:
            said.append(("the tasks", field.names, distinct_names(store.tasks)))
        elif key in described.observations and key not in store.sources:
            said.append((f"the names of {key}", field.names, described.observations[key].names))
    for what, of_policy, of_data in said:
        if of_policy and of_data and of_policy != of_data:
            raise SpecMismatchError(f"{what} differ: the policy has {of_policy}, but {store.path} has {of_data}")


def _training_windows(policy: ChunkPolicy, run: Path, training: Mapping[str, Any] | None, say: Say) -> Windows | None:
    """What the policy was trained on; None, and a message, if that cannot be read."""
    try:
        if training is None:
            raise DatasetError(f"{run} has no {CONFIG}")
        store = _open(policy, training["dataset"], training)
        return _demonstrations(policy, store, training, say).training
    except (DatasetError, SpecMismatchError) as error:
        say(
            f"the training data cannot be read ({error}), so whether these episodes were trained on is unknown; errors are "
            "divided by the standard deviation of these actions instead, and the baselines nearest and mean are left out"
        )
        return None


def _default_dataset() -> dict[str, Any]:
    dataset: dict[str, Any] = read_options("train", ["task=own", "dataset.path=-"])["dataset"]
    return dataset


def _training_options(run: Path) -> dict[str, Any] | None:
    """The options of the run's training, with defaults for those that are newer than it; None if it has no file of them."""
    if not (run / CONFIG).exists():
        return None
    options = read_config(run / CONFIG)
    dataset = {**_default_dataset(), **options["dataset"]}
    if dataset["cache"] == "device":  # the policy may run on the CPU now, or beside what its training still holds
        dataset["cache"] = "auto"
    return {**options, "dataset": dataset}


def _demonstrations(policy: ChunkPolicy, store: EpisodeSource, training: Mapping[str, Any], say: Say) -> Demonstrations:
    """The episodes of the training, split as they were then."""
    specs: Specs = (policy.data_spec, policy.action_spec)
    return load_demonstrations(
        store,
        specs,
        dataset_options(training, specs, None),
        observation_steps=policy.config.observation_steps,
        horizon=policy.config.horizon,
        seed=training["seed"],
        latest_only=policy.config.estimated,
        device=policy.model.device,
        say=say,
    )
