"""From a store to what a policy is trained on: matching specifications, a split, windows, and the scaling of every key."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch

from flowchunk.datasets.derived_specs import DerivedSpecs
from flowchunk.datasets.episode_source import ACTION, EpisodeSource
from flowchunk.datasets.errors import ConfigurationError, SpecMismatchError
from flowchunk.datasets.image_cache import ImageCacheOptions, Say
from flowchunk.datasets.specs import ActionSpec, ObservationSpec, require_observations, require_same_actions
from flowchunk.datasets.symmetry import Symmetry
from flowchunk.datasets.windows import Windows, load_image_tensors, load_windows, memory_bytes, split_episodes
from flowchunk.policy.action_limits import ActionLimits
from flowchunk.policy.normalizer import Mode, Normalizer, Scaling
from flowchunk.policy.planar_frame import FRAME, frame_features
from flowchunk.policy.relative_actions import ActionCoordinates, encoded_chunks

Specs = tuple[ObservationSpec, ActionSpec]


@dataclass(frozen=True)
class DatasetOptions:
    """How a policy learns from a store.

    validation_fraction: of the episodes, in [0, 1), held out: loss and action error are measured on them. stored_split: use
    the validation episodes that the data set itself sets aside, if it does, instead of that fraction. normalizer: the mode
    of each key that is not scaled by min_max, see ``Scaling``. symmetry: a mirror under which demonstrations stay
    demonstrations, so that each is learned from twice. cache: where images are kept, and whether episodes with damaged ones
    are left out.
    """

    validation_fraction: float = 0.02
    stored_split: bool = True
    normalizer: Mapping[str, Mode] = field(default_factory=dict)
    symmetry: Symmetry | None = None
    cache: ImageCacheOptions = ImageCacheOptions()  # noqa: RUF009 -- frozen

    def __post_init__(self) -> None:
        if not 0 <= self.validation_fraction < 1:
            raise ConfigurationError(
                f"dataset.validation_fraction={self.validation_fraction} must be at least 0 and below 1"
            )


@dataclass(frozen=True)
class Demonstrations:
    """Windows to train on and to validate with; no episode is in both."""

    training: Windows
    validation: Windows

    @property
    def nbytes(self) -> int:
        """Bytes of memory that both fill together."""
        return memory_bytes(self.training, self.validation)

    def __str__(self) -> str:
        return f"{len(self.training):,} windows to train on and {len(self.validation):,} to validate"


def matching_specs(store: EpisodeSource, given: Specs | DerivedSpecs | None) -> Specs:
    """The given specifications, or else the stored ones. Derived ones may differ from the stored ones, as their user said.

    Raises SpecMismatchError if there are neither, or if the given ones are not what the store holds.
    """
    if isinstance(given, DerivedSpecs):
        _require_arrays(store, given.observation_spec, given.action_spec)
        return given.observation_spec, given.action_spec
    stored = None
    if store.observation_spec is not None and store.action_spec is not None:
        stored = store.observation_spec, store.action_spec
    specs = stored if given is None else given
    if specs is None:
        raise SpecMismatchError(
            f"{store.path} does not say what its numbers mean, and no specifications were given: give "
            "specs=(observation_spec, action_spec), those of the environment or the robot, or "
            "specs=derive_specs(source, SpecOptions(…)); StoreWriter stores them with data"
        )
    if given is not None and stored is not None:
        sides = {"expected_by": "the given specification", "got_from": str(store.path)}
        require_same_actions(given[1], stored[1], **sides)
        require_observations(given[0], stored[0], **sides)
    _require_arrays(store, *specs)
    return specs


def load_demonstrations(
    store: EpisodeSource,
    specs: Specs,
    options: DatasetOptions,
    *,
    observation_steps: int,
    horizon: int,
    seed: int,
    latest_only: Collection[str] = (),
    device: torch.device | str = "cpu",
    say: Say | None = print,
) -> Demonstrations:
    """Split the episodes by the seed, and cut them into windows.

    latest_only: see ``Windows``. say: is told where images are kept, and which episodes are left out; None for silence.
    Raises DatasetError for data that are damaged or not finite.
    """
    images = load_image_tensors(store, specs[0], options.cache, device=device, say=say)
    usable = np.delete(np.arange(len(store.episode_ends)), [] if images is None else list(images.cache.dropped))
    parts = _split(store, usable, options, seed)
    training, validation = (
        load_windows(
            store,
            *specs,
            episodes=episodes,
            observation_steps=observation_steps,
            horizon=horizon,
            symmetry=options.symmetry,
            images=images,
            latest_only=latest_only,
            device=device,
        )
        for episodes in parts
    )
    return Demonstrations(training, validation)


def _split(
    store: EpisodeSource, usable: np.ndarray, options: DatasetOptions, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation episodes among the usable ones."""
    stored = store.validation_episodes if options.stored_split else None
    if stored is not None and 0 < np.isin(usable, stored).sum() < len(usable):
        return usable[~np.isin(usable, stored)], usable[np.isin(usable, stored)]
    training, validation = split_episodes(len(usable), validation_fraction=options.validation_fraction, seed=seed)
    return usable[training], usable[validation]


def fit_normalizer(
    store: EpisodeSource,
    specs: Specs,
    options: DatasetOptions,
    windows: Windows,
    *,
    coordinates: ActionCoordinates | None = None,
) -> Normalizer:
    """Fit every key in one pass over the store and over its mirror image.

    coordinates: of the actions; if they are not absolute, actions are fitted to the windows' chunks, and so is what is seen
    in a frame. Raises ConfigurationError if ``options.normalizer`` names what is not there.
    """
    wraps = {key: one.wraps for key, one in specs[0].values.items()} | {ACTION: ()}
    modes, symmetry = options.normalizer, options.symmetry
    if unknown := modes.keys() - wraps.keys():
        raise ConfigurationError(f"dataset.normalizer names {sorted(unknown)}, but the keys are {sorted(wraps)}")

    def fit(key: str) -> Scaling:
        blocks = store.blocks(key) if symmetry is None else symmetry.augment(key, store.blocks(key))
        return Scaling.fit(modes.get(key, "min_max"), blocks, identity=wraps[key])

    normalizer = Normalizer({key: fit(key) for key in wraps})
    if coordinates is None or coordinates.are_absolute:
        return normalizer
    if coordinates.frame is not None:
        features = Scaling.fit("gaussian", frame_features(windows, coordinates.frame))
        normalizer = normalizer.with_scaling(FRAME, features)
    return normalizer.with_scaling(ACTION, Scaling.fit("gaussian", encoded_chunks(windows, coordinates)))


def demonstrated_limits(
    store: EpisodeSource, action_spec: ActionSpec, symmetry: Symmetry | None = None
) -> ActionLimits:
    """How fast the demonstrations moved, and their mirror images if a policy is trained on those, too."""
    episodes = (store.read(ACTION, int(start), int(end)) for start, end in pairwise([0, *store.episode_ends]))
    return ActionLimits.of_episodes(episodes if symmetry is None else symmetry.augment(ACTION, episodes), action_spec)


def _require_arrays(store: EpisodeSource, observation_spec: ObservationSpec, action_spec: ActionSpec) -> None:
    shapes = {key: one.shape for key, one in observation_spec.fields.items()} | {ACTION: (action_spec.size,)}
    for key, shape in shapes.items():
        if key not in store.keys:
            raise SpecMismatchError(
                f"{store.path} has no array data/{key}, which the specification names; it has {list(store.keys)}: give the "
                f"specification of these data, or say which array it is: dataset.sources.{key}=ARRAY, or open_dataset(path, "
                f"sources={{{key!r}: ARRAY}}) in Python"
            )
        if key not in observation_spec.images and (got := store.shape(key)) != shape:
            raise SpecMismatchError(
                f"data/{key} in {store.path} has frames of shape {got}, but the specification expects {shape}; use the one "
                "that the data were recorded with"
            )
