"""Training windows: for every frame k, the observations up to it and the actions from it.

``observation[-1]`` and ``action[0]`` share frame k: action k is commanded after observation k was read. (Diffusion Policy
starts its chunk at the first observation.) At an episode's start the first observation is repeated; at its end the last
action is held, and ``mask`` tells the held ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.specs import ActionSpec, ObservationSpec
from flowchunk.datasets.store import ACTION, Store
from flowchunk.datasets.symmetry import Symmetry


@dataclass(frozen=True)
class Windows:
    """All windows of some episodes, cut from frames held on one device.

    observations: {key: (N, …)}, actions: (N, D), both over all frames. frames: (W,) the current frame k of each window;
    first, last: (W,) the first and last frame of its episode.
    """

    observations: Mapping[str, Tensor]
    actions: Tensor
    frames: Tensor
    first: Tensor
    last: Tensor
    observation_steps: int
    horizon: int

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def nbytes(self) -> int:
        """Bytes of the frames held."""
        return sum(tensor.nbytes for tensor in (*self.observations.values(), self.actions))

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """The windows at ``indices`` (B,): ``observation.KEY`` (B, To, …), ``action`` (B, H, D), ``mask`` (B, H)."""
        k = self.frames[indices][:, None]
        first, last = self.first[indices][:, None], self.last[indices][:, None]
        past = torch.arange(1 - self.observation_steps, 1, device=k.device)
        future = torch.arange(self.horizon, device=k.device)
        seen = torch.maximum(k + past, first)
        batch = {f"observation.{key}": values[seen] for key, values in self.observations.items()}
        return {**batch, "action": self.actions[torch.minimum(k + future, last)], "mask": k + future <= last}


def load_windows(
    store: Store,
    observation_spec: ObservationSpec,
    action_spec: ActionSpec,
    *,
    episodes: Sequence[int] | np.ndarray,
    observation_steps: int,
    horizon: int,
    symmetry: Symmetry | None = None,
    device: torch.device | str = "cpu",
) -> Windows:
    """Read the spec's keys into memory and cut ``episodes`` into windows.

    symmetry: adds the image of every episode behind the recorded ones.
    Raises DatasetError where an array is missing, damaged, not finite, or not of the shape that the specs say.
    """
    shapes = {key: field.shape for key, field in observation_spec.fields.items()} | {ACTION: (action_spec.size,)}
    for key, shape in shapes.items():
        if store.shape(key) != shape:
            raise DatasetError(
                f"data/{key} in {store.path} has frames of shape {store.shape(key)}, but the task expects {shape}; "
                "use the task that the data was recorded with"
            )
    tensors = {key: _read_float32(store, key, symmetry).to(device) for key in shapes}
    chosen = np.asarray(episodes, dtype=np.int64)
    lengths, starts = store.episode_lengths[chosen], store.episode_starts[chosen]
    first = np.repeat(starts, lengths)
    frames = first + np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    last = np.repeat(starts + lengths - 1, lengths)
    if symmetry is not None:  # the images stand behind all recorded frames
        first, frames, last = (np.concatenate([rows, rows + store.frames]) for rows in (first, frames, last))
    return Windows(
        observations={key: tensors[key] for key in observation_spec.fields},
        actions=tensors[ACTION],
        frames=torch.as_tensor(frames, device=device),
        first=torch.as_tensor(first, device=device),
        last=torch.as_tensor(last, device=device),
        observation_steps=observation_steps,
        horizon=horizon,
    )


def split_episodes(episodes: int, *, validation_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation episodes (sorted), drawn by the seed: whole episodes, so that no frame leaks.

    At least one episode trains; with a fraction above 0 and two episodes or more, at least one validates.
    """
    order = np.random.default_rng(seed).permutation(episodes)
    validation = 0 if validation_fraction == 0 or episodes < 2 else max(1, round(episodes * validation_fraction))
    validation = min(validation, episodes - 1)
    return np.sort(order[validation:]), np.sort(order[:validation])


def _read_float32(store: Store, key: str, symmetry: Symmetry | None) -> Tensor:
    recorded = np.concatenate([block.astype(np.float32) for block in store.blocks(key)])
    rows = recorded if symmetry is None else np.concatenate([recorded, symmetry.mirrors[key](recorded)])
    return torch.as_tensor(rows)
