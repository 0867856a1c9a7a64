"""Whether a data set, or an ``EpisodeSource`` of your own, can be trained on."""

from __future__ import annotations

import numpy as np

from flowchunk.datasets.episode_source import ACTION, EpisodeSource
from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.image_reader import ImageReader
from flowchunk.datasets.specs import ActionSpec, ObservationField, ObservationSpec

SLICE = 7  # rows that are read by themselves, and compared with the same rows among others
TOLERANCE = 1e-3  # of a bound's range


def check_dataset(source: EpisodeSource, specs: tuple[ObservationSpec, ActionSpec] | None = None) -> None:
    """Raise DatasetError with the first thing that is wrong; silence means that it can be trained on.

    specs: what it should hold; by default what it says itself. Reads every value once, and of every episode the first and the
    last image: lengths, shapes, values that are finite, images of uint8, actions within their bounds, and that any rows are
    the same whether they are read alone or with others.
    """
    _check_lengths(source)
    observation_spec, action_spec = specs or (source.observation_spec, source.action_spec)
    if observation_spec is None or action_spec is None:
        raise DatasetError(
            f"{source.path} does not say what its numbers mean; give specs=derive_specs(source, SpecOptions(…))"
        )
    shapes = {key: field.shape for key, field in observation_spec.fields.items()} | {ACTION: (action_spec.size,)}
    for key, shape in shapes.items():
        if key not in source.keys:
            raise DatasetError(f"{source.path} has no {key!r}, which the specification names, only {list(source.keys)}")
        source.require_shape(key, shape)
        _check_slices(source, key)
        if key in observation_spec.images:
            _check_images(source, key, observation_spec.fields[key])
        elif key != ACTION:
            for _ in source.blocks(key):  # raises where a value is not finite
                pass
    _check_actions(source, action_spec)


def _check_lengths(source: EpisodeSource) -> None:
    lengths = np.asarray(source.episode_lengths)
    if not len(lengths) or (lengths < 1).any():
        raise DatasetError(
            f"{source.path} must hold episodes of at least one time step, but their lengths are {lengths}"
        )
    validation = source.validation_episodes
    if validation is not None and not np.isin(validation, np.arange(len(lengths))).all():
        raise DatasetError(
            f"{source.path} has {len(lengths)} episodes, but sets {list(validation)} aside for validation"
        )
    indices = source.task_indices
    if indices is not None and (
        len(indices) != source.num_frames or not np.isin(indices, np.arange(len(source.tasks))).all()
    ):
        raise DatasetError(
            f"{source.path}: each of the {source.num_frames} rows must have one of {len(source.tasks)} tasks"
        )


def _check_slices(source: EpisodeSource, key: str) -> None:
    for end in (min(SLICE, source.num_frames), source.num_frames):
        start = max(0, end - SLICE)
        whole = source.read(key, start, end)
        if len(whole) != end - start:
            raise DatasetError(f"{source.label(key)} in {source.path}: rows {start} to {end - 1} are {len(whole)} rows")
        alone = np.concatenate([source.read(key, row, row + 1) for row in range(start, end)])
        if not np.array_equal(whole, alone):
            raise DatasetError(
                f"{source.label(key)} in {source.path}: rows {start} to {end - 1} differ from the same rows read one by one"
            )


def _check_images(source: EpisodeSource, key: str, field: ObservationField) -> None:
    reader = ImageReader.find(source, key, field)
    for start, end in zip(source.episode_starts.tolist(), source.episode_ends.tolist(), strict=True):
        for row in {start, end - 1}:
            reader.read(row, row + 1)  # raises where an image is damaged, or not from 0 to 255


def _check_actions(source: EpisodeSource, spec: ActionSpec) -> None:
    low = np.array([-np.inf if one.low is None else one.low for one in spec.dimensions])
    high = np.array([np.inf if one.high is None else one.high for one in spec.dimensions])
    span = np.where(np.isfinite(high - low), high - low, 0.0)
    start = 0
    for block in source.blocks(ACTION):
        outside = (block < low - TOLERANCE * span) | (block > high + TOLERANCE * span)
        if outside.any():
            row, dimension = (int(index) for index in np.argwhere(outside)[0])
            episode, frame = source.place_of(start + row)
            one = spec.dimensions[dimension]
            raise DatasetError(
                f"action {one.name!r} in {source.path} is {block[row, dimension]:g} in episode {episode}, frame {frame}, but "
                f"its bounds are {one.low} to {one.high} {one.unit}; correct the specification or the data"
            )
        start += len(block)
