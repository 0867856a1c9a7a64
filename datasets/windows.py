"""Training windows: for every frame k, the observations up to it and the actions from it.

``observation[-1]`` and ``action[0]`` share frame k: action k is commanded after observation k was read. (Diffusion Policy
starts its chunk at the first observation.) At an episode's start the first observation is repeated; behind its end the last
action is held, or, where a dimension is a step from the target before, there is no motion; ``mask`` tells which those are.
Pictures stay where the frame cache keeps them; a batch gathers its own.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from flowchunk.datasets.frame_cache import DeviceMemory, FrameCacheOptions, Frames, Say, Write, load_frames
from flowchunk.datasets.specs import ActionSpec, ObservationSpec
from flowchunk.datasets.store import ACTION, Store
from flowchunk.datasets.symmetry import PictureMirror, Symmetry

IDENTITY_6D = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # no turn, as ``rotation_6d_from_matrix`` writes it


@dataclass(frozen=True)
class Pictures:
    """The pictures of a data set, for several ``Windows`` to share; ``load_pictures`` makes them.

    tensors: {key: uint8 (N, H, W, 3)} over all frames. frames: where they came from; windows leave its dropped episodes out.
    """

    tensors: Mapping[str, Tensor]
    frames: Frames

    @property
    def held(self) -> tuple[Tensor, ...]:
        """Those that fill memory: all, unless they are memory-mapped."""
        return () if self.frames.place == "disk" else tuple(self.tensors.values())

    def read(self, key: str, rows: Tensor, mirror: PictureMirror | None = None) -> Tensor:
        """The frames ``rows`` (B, To), on their device, uint8 (B, To, H, W, 3); from N on, the images in the mirror."""
        tensor = self.tensors[key]
        wanted = rows.flatten().to(tensor.device)
        pictures = tensor.index_select(0, wanted % len(tensor))
        if mirror is not None:
            images = (wanted >= len(tensor)).nonzero().flatten()
            pictures.index_copy_(0, images, mirrored(pictures.index_select(0, images), mirror))
        self.frames.release_pages()
        pictures = pictures.view(*rows.shape, *tensor.shape[1:])
        if rows.is_cuda and not pictures.is_cuda:
            pictures = pictures.pin_memory()  # so that the copy runs beside the step before
        return pictures.to(rows.device, non_blocking=True)


@dataclass(frozen=True)
class Windows:
    """All windows of some episodes, cut from frames held on one device.

    observations: {key: (N, …)}, actions: (N, D), both over all frames. frames: (W,) the current frame k of each window;
    first, last: (W,) the first and last frame of its episode. pictures: those of the specification, and mirrors: their
    images, for frames from N on. rest: (D,) what stands behind an episode's end, NaN or None where the last action is held.
    """

    observations: Mapping[str, Tensor]
    actions: Tensor
    frames: Tensor
    first: Tensor
    last: Tensor
    observation_steps: int
    horizon: int
    pictures: Pictures | None = None
    mirrors: Mapping[str, PictureMirror] = field(default_factory=dict)
    rest: Tensor | None = None

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def nbytes(self) -> int:
        """Bytes of the frames held in memory; memory-mapped ones are not."""
        return held_bytes(self)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """The windows at ``indices`` (B,): ``observation.KEY`` (B, To, …), ``action`` (B, H, D), ``mask`` (B, H).

        Pictures are uint8 (B, To, H, W, 3).
        """
        k = self.frames[indices][:, None]
        first, last = self.first[indices][:, None], self.last[indices][:, None]
        past = torch.arange(1 - self.observation_steps, 1, device=k.device)
        future = torch.arange(self.horizon, device=k.device)
        seen = torch.maximum(k + past, first)
        batch = {f"observation.{key}": values[seen] for key, values in self.observations.items()}
        if self.pictures is not None:
            for key in self.pictures.tensors:
                batch[f"observation.{key}"] = self.pictures.read(key, seen, self.mirrors.get(key))
        mask, actions = k + future <= last, self.actions[torch.minimum(k + future, last)]
        if self.rest is not None:
            actions = torch.where(mask[..., None] | self.rest.isnan(), actions, self.rest)
        return {**batch, "action": actions, "mask": mask}


def load_pictures(
    store: Store,
    observation_spec: ObservationSpec,
    options: FrameCacheOptions,
    *,
    device: torch.device | str = "cpu",
    say: Say | None = print,
) -> Pictures | None:
    """The pictures of the specification, where the options want them; None where it has none.

    say: is told where they are kept and why, and what is left out; None for silence. Raises the errors of ``load_frames``.
    """
    if not observation_spec.pictures:
        return None
    tensors: dict[str, Tensor] = {}

    def allocate(key: str, shape: tuple[int, ...]) -> Write:
        tensor = tensors[key] = torch.empty(shape, dtype=torch.uint8, device=device)
        return lambda start, block: tensor[start : start + len(block)].copy_(torch.from_numpy(block))

    is_gpu = torch.device(device).type == "cuda"
    memory = DeviceMemory(torch.cuda.mem_get_info(device)[0], allocate) if is_gpu else None
    frames = load_frames(store, observation_spec.pictures, options, device=memory, say=say)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # these tensors are only read
        tensors |= {key: torch.from_numpy(array) for key, array in frames.arrays.items()}
    return Pictures(tensors, frames)


def load_windows(
    store: Store,
    observation_spec: ObservationSpec,
    action_spec: ActionSpec,
    *,
    episodes: Sequence[int] | np.ndarray,
    observation_steps: int,
    horizon: int,
    symmetry: Symmetry | None = None,
    pictures: Pictures | None = None,
    device: torch.device | str = "cpu",
) -> Windows:
    """Read the spec's values into memory and cut ``episodes`` into windows.

    symmetry: adds the image of every episode behind the recorded ones. pictures: of ``load_pictures``, for several windows
    to share; by default they are loaded with its defaults.
    Raises DatasetError where an array is missing, damaged, not finite, or not of the shape that the specs say.
    """
    shapes = {key: field.shape for key, field in observation_spec.values.items()} | {ACTION: (action_spec.size,)}
    for key, shape in shapes.items():
        store.require_shape(key, shape)
    if pictures is None:
        pictures = load_pictures(store, observation_spec, FrameCacheOptions(), device=device)
    tensors = {key: _read_float32(store, key, symmetry).to(device) for key in shapes}
    chosen = np.asarray(episodes, dtype=np.int64)
    if pictures is not None:
        chosen = chosen[~np.isin(chosen, list(pictures.frames.dropped))]
    first, frames, last = (torch.as_tensor(rows, device=device) for rows in _cut(store, chosen, symmetry))
    return Windows(
        observations={key: tensors[key] for key in observation_spec.values},
        actions=tensors[ACTION],
        frames=frames,
        first=first,
        last=last,
        observation_steps=observation_steps,
        horizon=horizon,
        pictures=pictures,
        mirrors={} if symmetry is None else symmetry.pictures,
        rest=_rest(action_spec, device),
    )


def mirrored(pictures: Tensor, mirror: PictureMirror) -> Tensor:
    """The images of pictures (B, H, W, …) in the mirror."""
    pictures = pictures.transpose(1, 2) if mirror.transpose else pictures
    pictures = pictures.flip([1] * mirror.flip_rows + [2] * mirror.flip_columns)
    return pictures.contiguous()  # copying them to where they belong is slow otherwise


def held_bytes(*windows: Windows) -> int:
    """Bytes of memory that the frames of several windows fill together; what they share counts once."""
    held: dict[int, int] = {}
    for one in windows:
        pictures = () if one.pictures is None else one.pictures.held
        held |= {tensor.data_ptr(): tensor.nbytes for tensor in (*one.observations.values(), one.actions, *pictures)}
    return sum(held.values())


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


def _rest(action_spec: ActionSpec, device: torch.device | str) -> Tensor | None:
    """(D,) no motion for each dimension that is a step from the target before, NaN for the others; None without steps."""
    rest, sixth = [], 0
    for dimension in action_spec.dimensions:
        is_step = dimension.reference == "delta"
        is_rotation = is_step and dimension.rotation == "rotation_6d"
        rest.append(IDENTITY_6D[sixth] if is_rotation else 0.0 if is_step else math.nan)
        sixth = (sixth + 1) % len(IDENTITY_6D) if is_rotation else 0
    return None if all(map(math.isnan, rest)) else torch.tensor(rest, device=device)


def _cut(store: Store, episodes: np.ndarray, symmetry: Symmetry | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First frame of the episode, current frame, last frame of the episode, of every window, (W,) each."""
    lengths, starts = store.episode_lengths[episodes], store.episode_starts[episodes]
    first = np.repeat(starts, lengths)
    frames = first + np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    last = np.repeat(starts + lengths - 1, lengths)
    if symmetry is not None:  # the images stand behind all recorded frames
        first, frames, last = (np.concatenate([rows, rows + store.frames]) for rows in (first, frames, last))
    return first, frames, last
