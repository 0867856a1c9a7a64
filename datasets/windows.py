"""Training windows: for every frame k, the observations up to it and the actions from it on.

``observation[-1]`` and ``action[0]`` belong to the same frame k: action k is commanded after observation k was read.
(Diffusion Policy starts its chunk at the first observation.) Before an episode's start, the first observation is repeated.
After its end, absolute dimensions of the action repeat the last action and delta dimensions command no motion; ``mask`` is
false there. Images stay in the image cache; ``Windows.batch`` gathers those of a batch.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from flowchunk.datasets.episode_source import ACTION, EpisodeSource
from flowchunk.datasets.image_cache import DeviceMemory, ImageCache, ImageCacheOptions, Say, Write, load_image_cache
from flowchunk.datasets.shape_repr import shape_repr
from flowchunk.datasets.specs import ActionSpec, ObservationSpec
from flowchunk.datasets.symmetry import ImageTransform, Symmetry

IDENTITIES = {
    "rotation_6d": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "quaternion_xyzw": (0.0, 0.0, 0.0, 1.0),
    "quaternion_wxyz": (1.0, 0.0, 0.0, 0.0),
}
"""The identity in representations of rotations in which it is not zero."""


@dataclass(frozen=True)
class ImageTensors:
    """The images of a data set, shared by several ``Windows``; ``load_image_tensors`` creates them.

    tensors: {key: uint8 (N, H, W, 3)} over all frames. cache: their source; windows leave out its dropped episodes.
    """

    tensors: Mapping[str, Tensor]
    cache: ImageCache

    __repr__ = shape_repr

    @property
    def in_memory(self) -> tuple[Tensor, ...]:
        """The tensors that occupy memory: all, unless they are memory-mapped."""
        return () if self.cache.place == "disk" else tuple(self.tensors.values())

    def read(self, key: str, rows: Tensor, transform: ImageTransform | None = None) -> Tensor:
        """The images of frames ``rows`` (B, To), on the device of ``rows``: uint8 (B, To, H, W, 3).

        Row N + k is the transform of frame k.
        """
        tensor = self.tensors[key]
        wanted = rows.flatten().to(tensor.device)
        images = tensor.index_select(0, wanted % len(tensor))
        if transform is not None:
            places = (wanted >= len(tensor)).nonzero().flatten()
            images.index_copy_(0, places, transform_images(images.index_select(0, places), transform))
        self.cache.release_pages()
        images = images.view(*rows.shape, *tensor.shape[1:])
        if rows.is_cuda and not images.is_cuda:
            images = images.pin_memory()  # so that the copy overlaps with the previous step
        return images.to(rows.device, non_blocking=True)


@dataclass(frozen=True)
class Windows:
    """All windows of some episodes, cut from frames that lie on one device.

    observations: {key: (N, …)}, actions: (N, D), both over all frames. frames: (W,) the current frame k of each window.
    first, last: (W,) the first and last frame of its episode. images: those of the specification. image_transforms: applied
    to frames from N on. rest: (D,) the action after an episode's end; NaN (or None for all) repeats the last action.
    of_windows: {key: (W, …)} what belongs to the window as a whole, such as where its object is to end. latest_only: keys of
    observations of which the current frame's stands for all To, because of them nothing else will be known. images_every:
    only every k-th row of a batch has images, the first one and so on.
    """

    observations: Mapping[str, Tensor]
    actions: Tensor
    frames: Tensor
    first: Tensor
    last: Tensor
    observation_steps: int
    horizon: int
    images: ImageTensors | None = None
    image_transforms: Mapping[str, ImageTransform] = field(default_factory=dict)
    rest: Tensor | None = None
    of_windows: Mapping[str, Tensor] = field(default_factory=dict)
    latest_only: Collection[str] = ()
    images_every: int = 1

    __repr__ = shape_repr

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def nbytes(self) -> int:
        """Bytes of the frames in memory; memory-mapped images do not count."""
        return memory_bytes(self)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """The windows at ``indices`` (B,): ``observation.KEY`` (B, To, …), ``action`` (B, H, D), ``mask`` (B, H).

        Images are uint8 (B, To, H, W, 3), or of fewer rows, see ``images_every``. Each key of ``of_windows`` is among them,
        (B, …).
        """
        k = self.frames[indices][:, None]
        first, last = self.first[indices][:, None], self.last[indices][:, None]
        past = torch.arange(1 - self.observation_steps, 1, device=k.device)
        future = torch.arange(self.horizon, device=k.device)
        observed = torch.maximum(k + past, first)
        latest = k.expand_as(observed)
        batch = {
            f"observation.{key}": values[latest if key in self.latest_only else observed]
            for key, values in self.observations.items()
        }
        if self.images is not None:
            with_images = observed[:: self.images_every]
            for key in self.images.tensors:
                batch[f"observation.{key}"] = self.read_images(key, with_images)
        mask, actions = k + future <= last, self.actions[torch.minimum(k + future, last)]
        if self.rest is not None:
            actions = torch.where(mask[..., None] | self.rest.isnan(), actions, self.rest)
        return {
            **batch,
            "action": actions,
            "mask": mask,
            **{key: values[indices] for key, values in self.of_windows.items()},
        }

    def read_images(self, key: str, frames: Tensor) -> Tensor:
        """The images of frames (B, To), uint8 (B, To, H, W, 3), transformed from frame N on."""
        if self.images is None:
            raise AssertionError("these windows have no images")
        return self.images.read(key, frames, self.image_transforms.get(key))

    def batches(self, size: int) -> Iterator[dict[str, Tensor]]:
        """All windows in order, in batches of at most ``size``."""
        for indices in torch.split(torch.arange(len(self), device=self.frames.device), size):
            yield self.batch(indices)


def load_image_tensors(
    store: EpisodeSource,
    observation_spec: ObservationSpec,
    options: ImageCacheOptions,
    *,
    device: torch.device | str = "cpu",
    say: Say | None = print,
) -> ImageTensors | None:
    """The images of the specification, in the place that the options choose; None if it has no images.

    say: called with messages on where they are cached and why, and on what is left out; None for silence. Raises the errors
    of ``load_image_cache``.
    """
    if not observation_spec.images:
        return None
    tensors: dict[str, Tensor] = {}

    def allocate(key: str, shape: tuple[int, ...]) -> Write:
        tensor = tensors[key] = torch.empty(shape, dtype=torch.uint8, device=device)
        return lambda start, block: tensor[start : start + len(block)].copy_(torch.from_numpy(block))

    is_gpu = torch.device(device).type == "cuda"
    memory = DeviceMemory(torch.cuda.mem_get_info(device)[0], allocate) if is_gpu else None
    cache = load_image_cache(store, observation_spec.images, options, device=memory, say=say)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # these tensors are only read
        tensors |= {key: torch.from_numpy(array) for key, array in cache.arrays.items()}
    return ImageTensors(tensors, cache)


def load_windows(
    store: EpisodeSource,
    observation_spec: ObservationSpec,
    action_spec: ActionSpec,
    *,
    episodes: Sequence[int] | np.ndarray,
    observation_steps: int,
    horizon: int,
    symmetry: Symmetry | None = None,
    images: ImageTensors | None = None,
    latest_only: Collection[str] = (),
    device: torch.device | str = "cpu",
) -> Windows:
    """Read the spec's values into memory and cut ``episodes`` into windows.

    symmetry: appends the transform of every episode to the recorded ones. images: from ``load_image_tensors``, which several
    ``Windows`` may share; by default they are loaded with the default options. latest_only: see ``Windows``.
    Raises DatasetError if an array is missing, damaged, not finite, or not of the shape in the specs.
    """
    shapes = {key: field.shape for key, field in observation_spec.values.items()} | {ACTION: (action_spec.size,)}
    for key, shape in shapes.items():
        store.require_shape(key, shape)
    if images is None:
        images = load_image_tensors(store, observation_spec, ImageCacheOptions(), device=device)
    tensors = {key: _read_float32(store, key, symmetry).to(device) for key in shapes}
    chosen = np.asarray(episodes, dtype=np.int64)
    if images is not None:
        chosen = chosen[~np.isin(chosen, list(images.cache.dropped))]
    first, frames, last = (torch.as_tensor(rows, device=device) for rows in _cut(store, chosen, symmetry))
    return Windows(
        observations={key: tensors[key] for key in observation_spec.values},
        actions=tensors[ACTION],
        frames=frames,
        first=first,
        last=last,
        observation_steps=observation_steps,
        horizon=horizon,
        images=images,
        image_transforms={} if symmetry is None else symmetry.image_transforms,
        rest=_rest(action_spec, device),
        latest_only=frozenset(latest_only),
    )


def transform_images(images: Tensor, transform: ImageTransform) -> Tensor:
    """Images (B, H, W, …), transformed."""
    images = images.transpose(1, 2) if transform.transpose else images
    images = images.flip([1] * transform.flip_rows + [2] * transform.flip_columns)
    return images.contiguous()  # otherwise copying them into a batch is slow


def memory_bytes(*windows: Windows) -> int:
    """Bytes of memory that the frames of several ``Windows`` occupy together; shared tensors count once."""
    sizes: dict[int, int] = {}
    for part in windows:
        images = () if part.images is None else part.images.in_memory
        sizes |= {
            tensor.data_ptr(): tensor.nbytes
            for tensor in (*part.observations.values(), *part.of_windows.values(), part.actions, *images)
        }
    return sum(sizes.values())


def split_episodes(episodes: int, *, validation_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of training and validation episodes, split at random by the seed.

    Episodes are split as a whole, so that no frame leaks. The training split holds at least one episode; so does the
    validation split if the fraction is above 0 and there are at least two episodes.
    """
    order = np.random.default_rng(seed).permutation(episodes)
    validation = 0 if validation_fraction == 0 or episodes < 2 else max(1, round(episodes * validation_fraction))
    validation = min(validation, episodes - 1)
    return np.sort(order[validation:]), np.sort(order[:validation])


def _read_float32(store: EpisodeSource, key: str, symmetry: Symmetry | None) -> Tensor:
    recorded = np.concatenate([block.astype(np.float32) for block in store.blocks(key)])
    rows = recorded if symmetry is None else np.concatenate([recorded, symmetry.value_transforms[key](recorded)])
    return torch.as_tensor(rows)


def _rest(action_spec: ActionSpec, device: torch.device | str) -> Tensor | None:
    """(D,) no motion for each delta dimension, NaN for the others; None if there are no delta dimensions."""
    rest, place = [], 0  # place: within a rotation
    for dimension in action_spec.dimensions:
        is_delta = dimension.reference == "delta"
        identity = IDENTITIES.get(dimension.rotation or "") if is_delta else None
        rest.append(identity[place] if identity else 0.0 if is_delta else math.nan)
        place = (place + 1) % len(identity) if identity else 0
    return None if all(map(math.isnan, rest)) else torch.tensor(rest, device=device)


def _cut(
    store: EpisodeSource, episodes: np.ndarray, symmetry: Symmetry | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First frame of the episode, current frame, and last frame of the episode, for every window; (W,) each."""
    lengths, starts = store.episode_lengths[episodes], store.episode_starts[episodes]
    first = np.repeat(starts, lengths)
    frames = first + np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    last = np.repeat(starts + lengths - 1, lengths)
    if symmetry is not None:  # the transformed frames follow all recorded ones
        first, frames, last = (np.concatenate([rows, rows + store.num_frames]) for rows in (first, frames, last))
    return first, frames, last
