"""Write episodes as an HDF5 file of robomimic."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from flowchunk.datasets.episode_checks import check_episode
from flowchunk.datasets.episode_source import ACTION
from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.formats.hdf5_file import HDF5File
from flowchunk.datasets.formats.zarr_store import ATTRIBUTE
from flowchunk.datasets.partial_output import PartialOutput
from flowchunk.datasets.specs import ActionSpec, ObservationSpec
from flowchunk.datasets.tasks import NO_TASK, EpisodeTask, TaskTable

FORMAT_VERSION = 1
GYM_TYPE = 2  # robomimic's number of Gymnasium's environments
GZIP_LEVEL = 1


@dataclass(frozen=True)
class SimulatedEpisode:
    """What restores an episode of T time steps in simulation.

    states: (T, n) time, positions and velocities before each action. rewards: (T,) after each action. next_observations:
    {key: (T, …)} after each action. model: MuJoCo's XML.
    """

    states: np.ndarray
    rewards: np.ndarray
    next_observations: Mapping[str, np.ndarray]
    model: str


class RobomimicWriter:
    """Write episodes to the file ``path``; use it as a context manager.

    ``data/demo_i`` holds ``obs/KEY``, ``actions`` and ``dones``, which is 1 in an episode's last frame; of simulated episodes
    also ``states``, ``rewards``, ``next_obs/KEY`` and the attribute ``model_file``. Of others, rewards and next observations
    are left out: train with ``hdf5_load_next_obs=False``, and with a cache if ``rewards`` is among the ``dataset_keys``.
    Images are compressed one by one. Tasks, if any, are the attribute ``tasks`` of ``data`` and ``data/demo_i/task_index``;
    the specifications are its attribute ``flowchunk``. The file appears under its name when the ``with`` block ends
    normally; after an exception, nothing is left.

    env_args: what robomimic makes the environment with; without them it cannot, so train without rollouts. env_name: stored
    instead of them. masks: {name: indices of episodes}, robomimic's filter keys, usually "train" and "valid".
    Raises DatasetError if ``path`` exists, if a key has a "/", or at the end, if a mask names an episode that there is not.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        observation_spec: ObservationSpec,
        action_spec: ActionSpec,
        env_name: str = "unknown",
        env_args: Mapping[str, Any] | None = None,
        masks: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        if with_slash := [key for key in observation_spec.fields if "/" in key]:
            raise DatasetError(f"robomimic's keys have no '/', but {with_slash[0]!r} has; rename the observation")
        self._output = PartialOutput(path)
        self.path, self.partial = self._output.path, self._output.partial
        self.observation_spec, self.action_spec = observation_spec, action_spec
        unknown = {"env_name": env_name, "type": GYM_TYPE, "env_kwargs": {"control_freq": action_spec.control_hz}}
        self._env_args, self._masks = dict(env_args or unknown), dict(masks or {})
        self._tasks = TaskTable()
        self._num_frames, self.num_episodes = 0, 0

    def __enter__(self) -> Self:
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        self._file = HDF5File(self.partial)
        self._data = self._file.root.create_group("data")
        return self

    def add_episode(
        self,
        observations: Mapping[str, np.ndarray],
        actions: np.ndarray,
        *,
        task: EpisodeTask = None,
        simulation: SimulatedEpisode | None = None,
    ) -> None:
        """Append one episode of T frames: observations {key: (T, …)}, actions (T, D); action k follows observation k.

        task: a text for the episode, a sequence of T texts, or None. simulation: what restores it. Values are stored as
        float32.
        Raises DatasetError as ``check_episode`` does, and for a task of another kind: such an episode is left out, and more
        episodes can be added. Raises OSError if the file cannot be written, now and from then on.
        """
        episode = check_episode(
            observations,
            actions,
            observation_spec=self.observation_spec,
            action_spec=self.action_spec,
            episode=self.num_episodes,
        )
        task_indices = self._tasks.add(task, len(actions))
        name = f"demo_{self.num_episodes}"
        try:
            self._write(name, episode, task_indices)
            if simulation is not None:
                self._write_simulation(name, simulation)
            self._file.flush()
        except BaseException:
            with suppress(KeyError, OSError, RuntimeError):
                del self._data[name]
            raise
        self._num_frames += len(actions)
        self.num_episodes += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            if self.partial.exists():
                self._file.abandon()
                self._output.remove()

    def _write(self, name: str, episode: Mapping[str, np.ndarray], task_indices: np.ndarray) -> None:
        length = len(task_indices)
        demo = self._data.create_group(name)
        demo.attrs["num_samples"] = length
        self._write_observations(demo.create_group("obs"), episode)
        demo["actions"] = episode[ACTION]
        demo["dones"] = (np.arange(length) == length - 1).astype(np.int64)
        if self._tasks.texts != [NO_TASK]:
            demo["task_index"] = task_indices

    def _write_observations(self, group: Any, observations: Mapping[str, np.ndarray]) -> None:
        for key, field in self.observation_spec.fields.items():
            options = {"chunks": (1, *field.shape), "compression": "gzip", "compression_opts": GZIP_LEVEL}
            group.create_dataset(key, data=observations[key], **(options if field.is_image else {}))

    def _write_simulation(self, name: str, simulation: SimulatedEpisode) -> None:
        demo = self._data[name]
        demo.attrs["model_file"] = simulation.model
        demo.create_dataset("states", data=simulation.states, compression="gzip", compression_opts=GZIP_LEVEL)
        demo["rewards"] = np.asarray(simulation.rewards, np.float64)
        self._write_observations(demo.create_group("next_obs"), simulation.next_observations)

    def _finish(self) -> None:
        if self.num_episodes == 0:
            raise DatasetError(f"nothing was recorded, so {self.path} was not written")
        for name, episodes in self._masks.items():
            self._write_mask(name, episodes)
        if self._tasks.texts != [NO_TASK]:
            self._data.attrs["tasks"] = self._tasks.texts
            for demo in self._data.values():
                if "task_index" not in demo:  # an episode before the first that has a task
                    demo["task_index"] = np.zeros(demo.attrs["num_samples"], np.int64)
        self._data.attrs["total"] = self._num_frames
        self._data.attrs["env_args"] = json.dumps(self._env_args)
        self._data.attrs[ATTRIBUTE] = json.dumps(
            {
                "format_version": FORMAT_VERSION,
                "observation_spec": self.observation_spec.to_json(),
                "action_spec": self.action_spec.to_json(),
            }
        )
        self._file.close()
        self._output.publish()

    def _write_mask(self, name: str, episodes: Sequence[int]) -> None:
        if unknown := [episode for episode in episodes if not 0 <= episode < self.num_episodes]:
            raise DatasetError(
                f"the mask {name!r} names episode {unknown[0]}, but there are {self.num_episodes}, from 0 on"
            )
        self._file.root[f"mask/{name}"] = np.array([f"demo_{episode}" for episode in episodes], dtype="S")
