"""What every writer requires of an episode, whatever the format: shapes, types and values as its specifications say."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flowchunk.datasets.episode_source import ACTION
from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.specs import ActionSpec, ObservationField, ObservationSpec

EXACT_INTEGERS = 2**24  # float32 represents all integers up to here


def check_episode(
    observations: Mapping[str, np.ndarray],
    actions: np.ndarray,
    *,
    observation_spec: ObservationSpec,
    action_spec: ActionSpec,
    episode: int,
) -> dict[str, np.ndarray]:
    """The arrays of an episode of T frames as they are stored, by key, with the actions under ``"action"``.

    observations: {key: (T, …)}; actions: (T, D). Images are uint8 and are not copied; all other values become float32 copies,
    whatever their type. episode: its number, for error messages.
    Raises DatasetError if keys, lengths or shapes differ from the specs, if images are not uint8, or if a value is not finite
    or not representable in float32.
    """
    _check_shapes(observations, actions, observation_spec, action_spec)
    images = observation_spec.images
    return {
        key: np.asarray(values) if key in images else _as_float32(key, values, episode)
        for key, values in (*observations.items(), (ACTION, actions))
    }


def _check_shapes(
    observations: Mapping[str, np.ndarray],
    actions: np.ndarray,
    observation_spec: ObservationSpec,
    action_spec: ActionSpec,
) -> None:
    length = len(actions)
    if length == 0:
        raise DatasetError("an episode has no actions: it is empty; leave it out")
    lengths = {len(values) for values in observations.values() if np.ndim(values)}
    if len(lengths) == 1 and lengths != {length}:
        raise DatasetError(
            f"an episode has {lengths.pop()} observations and {length} actions, but needs an action after each observation; "
            "leave out the last observation if it follows the last action"
        )
    for key, field in observation_spec.images.items():
        if key in observations:
            _require_image(key, field, observations[key], length)
    expected = {key: field.shape for key, field in observation_spec.fields.items()}
    got = {key: np.shape(values) for key, values in observations.items()}
    if got != {key: (length, *shape) for key, shape in expected.items()}:
        raise DatasetError(f"an episode of {length} actions needs observations {expected} per frame, but got {got}")
    if np.shape(actions) != (length, action_spec.size):
        raise DatasetError(f"actions must be (T, {action_spec.size}), but are {np.shape(actions)}")


def _require_image(key: str, field: ObservationField, values: np.ndarray, length: int) -> None:
    got = np.asarray(values)
    if got.dtype != np.uint8 or got.shape != (length, *field.shape):
        raise DatasetError(
            f"{key!r} needs images, uint8 {(length, *field.shape)} (frames, height, width, RGB) from 0 to 255, but got "
            f"{got.dtype} {got.shape}"
        )


def _as_float32(key: str, values: np.ndarray, episode: int) -> np.ndarray:
    """A copy of values (T, …). Raises DatasetError with key, episode and frame if one is not representable."""
    given = np.asarray(values)
    if given.dtype.kind not in "biuf":
        raise DatasetError(f"{key!r} needs numbers, but got {given.dtype}")
    with np.errstate(over="ignore"):
        converted = given.astype(np.float32)
    is_large = (given.dtype.kind in "iu") & ((given > EXACT_INTEGERS) | (given < -EXACT_INTEGERS))
    for is_bad, what in (
        (~np.isfinite(given), "NaN or infinity"),
        (~np.isfinite(converted), "a value outside the range of float32"),
        (is_large, f"integers beyond {EXACT_INTEGERS}, which float32 cannot represent exactly"),
    ):
        if is_bad.any():
            frame = int(np.argmax(is_bad.reshape(len(given), -1).any(axis=1)))
            raise DatasetError(
                f"{key!r} holds {what}, first in episode {episode}, frame {frame}; repair the values, or leave the "
                "episode out"
            )
    return converted
