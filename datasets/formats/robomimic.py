"""HDF5 files, opened with errors that say what can be done, and robomimic's layout in them.

robomimic keeps a group per episode, ``data/demo_i``, with ``actions``, ``obs/KEY`` and more, the environment's arguments as
JSON, and splits under ``mask``. Early robosuite demonstrations have the same groups without observations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np

from flowchunk.datasets.description import describe_arrays, describe_specs, is_image_array
from flowchunk.datasets.episode_source import ArrayInfo, Description, EpisodeSource
from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.specs import ActionSpec, ObservationSpec, Reference

ACTIONS = "actions"
TASK_INDEX = "task_index"
CONTROLLED = {"OSC_POSE": 6, "OSC_POSITION": 3, "IK_POSE": 6}  # actions of robosuite's controllers for an arm
ATTRIBUTE = "flowchunk"  # JSON of the specifications, in files that flowchunk wrote
NO_OBSERVATIONS = (
    "holds no observations, only states of the simulation: replay them with robomimic's dataset_states_to_obs.py, which "
    "writes a file with observations"
)


def open_hdf5(path: Path) -> Any:
    """An open HDF5 file. Raises DatasetError if it is damaged."""
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DatasetError(
            f"{path} cannot be opened as HDF5 ({error}): it is truncated or of another type; copy it again"
        ) from error


def is_robomimic(path: Path) -> bool:
    """Whether an HDF5 file has episodes with actions under ``data``. Raises DatasetError if it is damaged."""
    with open_hdf5(path) as file:
        data = file.get("data")
        return isinstance(data, h5py.Group) and any(
            ACTIONS in group for group in data.values() if isinstance(group, h5py.Group)
        )


def arrays_in(group: Any) -> dict[str, Any]:
    """The datasets in a group and its subgroups by their path in it."""
    found: dict[str, Any] = {}
    group.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
    return found


def info_of(dataset: Any) -> ArrayInfo:
    """What a dataset with one row per time step holds."""
    shape = tuple(dataset.shape[1:]) or (1,)
    return ArrayInfo(shape, dataset.dtype, is_image_array(shape, dataset.dtype))


@dataclass(frozen=True, kw_only=True)
class RobomimicSource(EpisodeSource):
    """A robomimic file; open it with ``RobomimicSource.open(path)``. demos: names of the groups, a group per episode."""

    file: Any = field(repr=False, compare=False)
    demos: tuple[str, ...]

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        sources: Mapping[str, str] | None = None,
        image_size: tuple[int, int] | None = None,
    ) -> Self:
        """Open a file for reading. Raises DatasetError if it is damaged, or its episodes are inconsistent."""
        file = open_hdf5(path)
        demos = sorted((name for name in file["data"] if isinstance(file["data"][name], h5py.Group)), key=_by_number)
        if not demos:
            raise DatasetError(f"{path} holds no episodes: expected groups data/demo_0, data/demo_1, …")
        for demo in demos:
            if ACTIONS not in file["data"][demo]:
                raise DatasetError(f"data/{demo} in {path} has no actions; delete this episode, or copy the file again")
        source = cls(path=path, file=file, demos=tuple(demos), sources=dict(sources or {}), image_size=image_size)
        source._check_episodes()
        return source

    @property
    def format(self) -> str:
        has_observations = any(name.startswith("obs/") for name in self.arrays)
        return "robomimic HDF5" if has_observations else "robosuite HDF5 without observations"

    @cached_property
    def episode_lengths(self) -> np.ndarray:
        """(E,) the number of time steps of each episode."""
        return np.array([len(self.file["data"][demo][ACTIONS]) for demo in self.demos], dtype=np.int64)

    @cached_property
    def arrays(self) -> Mapping[str, ArrayInfo]:
        """The datasets of the first episode that have a row per time step: ``actions``, ``obs/KEY``, …"""
        first = self.file["data"][self.demos[0]]
        rows = int(self.episode_lengths[0])
        found = arrays_in(first).items()
        return {
            name: info_of(dataset)
            for name, dataset in found
            if dataset.shape[:1] == (rows,) and dataset.dtype.kind in "biuf" and not name.startswith("next_obs/")
        }

    @property
    def observation_spec(self) -> ObservationSpec | None:
        """The specification that flowchunk stored; None in other files."""
        return ObservationSpec.from_json(self._own["observation_spec"]) if self._own else None

    @property
    def action_spec(self) -> ActionSpec | None:
        """The specification that flowchunk stored; None in other files."""
        return ActionSpec.from_json(self._own["action_spec"]) if self._own else None

    @cached_property
    def description(self) -> Description:
        """The stored specifications, or those that follow from the arrays and the environment's arguments."""
        keys = {name.removeprefix("obs/"): name for name in self.arrays if name.startswith("obs/")} | {
            "action": ACTIONS
        }
        if self.observation_spec is not None and self.action_spec is not None:
            stored = describe_specs(self.observation_spec, self.action_spec)
            return Description(stored.observations, stored.actions, stored.control_hz, keys, stored.origins)
        observed = {name: info for name, info in self.arrays.items() if name.startswith("obs/") or name == ACTIONS}
        env = _env_arguments(self.file["data"].attrs)
        hz = env.get("control_freq")
        return describe_arrays(
            observed,
            ACTIONS,
            origin="HDF5",
            key_of=lambda name: name.removeprefix("obs/"),
            control_hz=None if hz is None else float(hz),
            references=_references(env, int(np.prod(self.arrays[ACTIONS].shape))) if ACTIONS in self.arrays else None,
            notes=() if len(observed) > 1 else (NO_OBSERVATIONS,),
        )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The texts of the tasks; only flowchunk stores them in this format."""
        return tuple(map(str, self.file["data"].attrs.get("tasks", ()))) if TASK_INDEX in self.arrays else ()

    @cached_property
    def task_indices(self) -> np.ndarray | None:
        """(N,) the index of each row's task."""
        if not self.tasks:
            return None
        indices = self.read_array(TASK_INDEX, 0, self.num_frames)[:, 0].astype(np.int64)
        return self.require_tasks(indices, len(self.tasks))

    @property
    def validation_episodes(self) -> np.ndarray | None:
        """The episodes that ``mask/valid`` names."""
        if "mask" not in self.file or "valid" not in self.file["mask"]:
            return None
        places = {demo: index for index, demo in enumerate(self.demos)}
        names = [name.decode() if isinstance(name, bytes) else str(name) for name in self.file["mask"]["valid"][:]]
        if unknown := [name for name in names if name not in places]:
            raise DatasetError(f"mask/valid in {self.path} names {unknown[:5]}, which are not under data; correct it")
        return np.sort(np.array([places[name] for name in names], dtype=np.int64))

    def read_array(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start … stop - 1 of an array. Raises DamageError, with the episode, if they cannot be read."""
        info = self.arrays[name]
        parts = [np.empty((0, *info.shape), info.dtype)]
        for episode, first, last in self.parts_of(start, stop):
            offset = int(self.episode_starts[episode])
            try:
                rows = self.file["data"][self.demos[episode]][name][first - offset : last - offset]
            except Exception as error:  # of HDF5 or of a filter
                raise self.damage_error(name, f"episode {episode}, {self.demos[episode]}: {error}") from error
            parts.append(rows.reshape(len(rows), *info.shape))
        return np.concatenate(parts)  # in a type that holds the values of all of these episodes

    def files(self, name: str) -> tuple[Path, list[Path]]:
        """The file."""
        return self.path.parent, [self.path]

    @cached_property
    def _own(self) -> dict[str, Any]:
        return dict(json.loads(self.file["data"].attrs.get(ATTRIBUTE, "{}")))

    def _check_episodes(self) -> None:
        for index, demo in enumerate(self.demos):
            group = self.file["data"][demo]
            for name, info in self.arrays.items():
                shape = group[name].shape if name in group else None
                expected = (len(group[ACTIONS]), *info.shape)
                if shape is None or (*shape, 1)[: len(expected)] != expected:
                    raise DatasetError(
                        f"data/{demo}/{name} in {self.path} has shape {shape}, but {expected} is expected in "
                        f"episode {index}, by its actions and by the first episode; repair or delete that episode"
                    )


def _by_number(name: str) -> tuple[int, str]:
    match = re.search(r"(\d+)$", name)
    return (int(match[1]) if match else -1, name)


def _env_arguments(attributes: Any) -> dict[str, Any]:
    """The arguments of the environment, as robomimic or robosuite stored them; empty if they are not readable."""
    for name in ("env_args", "env_info"):
        try:
            value = json.loads(attributes[name])
            return dict(value.get("env_kwargs", value))
        except (KeyError, ValueError, AttributeError, TypeError):
            continue
    return {}


def _references(env: Mapping[str, Any], size: int) -> list[Reference] | None:
    """What the controller makes of each of the actions; None if it is not stored.

    A gripper, which follows the actions of each arm's controller, is opened or closed to an absolute width.
    """
    controller = env.get("controller_configs")
    if not isinstance(controller, Mapping) or (is_delta := controller.get("control_delta")) is None:
        return None
    found: list[Reference] = ["delta" if is_delta else "absolute"] * size
    arm = CONTROLLED.get(str(controller.get("type")))
    if arm is not None and size % (arm + 1) == 0:
        found[arm :: arm + 1] = ["absolute"] * (size // (arm + 1))
    return found
