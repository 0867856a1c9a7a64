"""The plane as seen from an object: observations and actions in its frame, so that one push teaches all its copies.

Where a task looks the same from everywhere on a table, a policy that sees poses in the frame of the object, and acts in it,
needs to learn each manoeuvre only once instead of at each place and in each direction: it is equivariant under rotations and
translations of the plane by construction (canonicalization, 2211.06489). Only what stands still on the table, such as a
goal, differs from place to place; it is given as a landmark, and may be elsewhere than in training.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.observed_values import ObservedValue, find_observed_value
from flowchunk.datasets.specs import ActionSpec, ObservationField, ObservationSpec

if TYPE_CHECKING:
    from flowchunk.datasets.windows import Windows  # a policy that acts reads no data
    from flowchunk.policy.normalizer import Normalizer

FRAME = "policy.frame"  # its key in the normalizer
LANDMARKS = "policy.frame.landmarks"  # the key of landmarks (B, L, 3) that differ from window to window
OPTIONS = ("origin", "angle", "points", "angles", "landmarks", "hindsight", "actions", "fine")


class PlanarFrame(nn.Module):
    """The frame of an observed object in its plane; it has no weights.

    options: origin: its observed x and y, each as KEY.NAME. angle: its observed angle (rad, counter-clockwise from x to y).
    points, angles: other observed places [x, y] and angles in that plane. landmarks: {NAME: [x, y, angle]} of what stands
    still; ``flowchunk train`` replaces null by the pose that the environment has. hindsight: names of landmarks where the
    object is to end, which in training are where it did end in each demonstration. actions: pairs of names of action
    dimensions that are places, or displacements from ``relative_to``, in that plane. Other values of the same keys and other
    action dimensions stay as they are. fine: widths, as fractions of a standard deviation, of the zones around zero that are
    magnified: for each the network sees tanh(value / width), too, because from positions alone it hardly learns to act
    differently within the last millimetres.

    Raises ConfigurationError for options that do not fit the specifications. relative: for each action dimension, whether it
    is relative to an observed value.
    """

    points: Tensor  # (P, 2) columns of x and y, the origin first
    angles: Tensor  # (A,) columns, the frame's own first
    landmark_poses: Tensor  # (L, 3)
    kept: Tensor  # columns of other values
    kept_angles: Tensor  # and of other angles
    pairs: Tensor  # (K, 2) action dimensions
    is_place: Tensor  # (K, 1) 1 for places, 0 for displacements

    def __init__(
        self,
        options: Mapping[str, Any],
        observation_spec: ObservationSpec,
        action_spec: ActionSpec,
        *,
        relative: Sequence[bool],
        observation_steps: int,
    ) -> None:
        super().__init__()
        _require_options(options)
        fields = observation_spec.values
        points = [_point(options["origin"], fields, "origin")]
        points += [_point(point, fields, "points") for point in options.get("points") or ()]
        angles = [_find(name, fields) for name in [options["angle"], *(options.get("angles") or ())]]
        self.keys = sorted({value.key for value in [*sum(points, ()), *angles]})
        columns = _columns(self.keys, fields)
        named = {columns[value] for value in [*sum(points, ()), *angles]}
        others = {value: column for value, column in columns.items() if column not in named}
        kept = [column for value, column in others.items() if value.index not in fields[value.key].wraps]
        kept_angles = [column for column in others.values() if column not in kept]
        landmarks = dict(options.get("landmarks") or {})
        self.landmarks = {name: _landmark(name, pose) for name, pose in landmarks.items()}
        self.hindsight = _known_landmarks(options.get("hindsight") or (), self.landmarks)
        pairs = [_action_pair(pair, action_spec.names, relative) for pair in options.get("actions") or ()]
        if not pairs:
            raise ConfigurationError(
                f"policy.frame.actions: expected pairs of action dimensions, such as [[{', '.join(action_spec.names[:2])}]], "
                "got none; without them the policy would act in the world"
            )
        self._buffer("points", [[columns[x], columns[y]] for x, y in points], torch.long)
        self._buffer("angles", [columns[value] for value in angles], torch.long)
        self._buffer("landmark_poses", [list(pose) for pose in self.landmarks.values()] or np.empty((0, 3)))
        self._buffer("kept", kept, torch.long)
        self._buffer("kept_angles", kept_angles, torch.long)
        self._buffer("pairs", pairs, torch.long)
        self._buffer("is_place", [[0.0 if relative[x] else 1.0] for x, _ in pairs])
        self.fine = _fine(options.get("fine", ()))
        before, turned = observation_steps - 1, len(angles) - 1 + len(landmarks)
        placed, moved = len(points) - 1 + len(landmarks), before * (2 * len(points) + len(angles))
        self.magnified = (
            2 * placed + turned + moved
        )  # of the first features: those that are 0 where nothing is left to do
        self.size = self.magnified + turned + observation_steps * (len(kept) + 2 * len(kept_angles))

    def _buffer(self, name: str, values: Any, dtype: torch.dtype = torch.float32) -> None:
        self.register_buffer(name, torch.as_tensor(np.array(values), dtype=dtype), persistent=False)

    def features(self, observation: Mapping[str, Tensor]) -> Tensor:
        """(B, size): where everything is now, in the frame, and how it moved there in the steps before.

        observation: {key: (B, To, …)} in physical units. Places are in the frame of the latest step, angles are relative to
        it and given as cosine and sine. Of earlier steps the differences from the latest one are given, which are small.
        Landmarks (B, L, 3) under the key ``LANDMARKS`` stand in for the frame's own.
        """
        values = torch.cat([observation[key].flatten(1).view(*observation[key].shape[:2], -1) for key in self.keys], -1)
        points, angles = values[..., self.points], values[..., self.angles]  # (B, To, P, 2), (B, To, A)
        origin, angle = points[:, -1, :1], angles[:, -1, 0]
        given = observation.get(LANDMARKS)
        landmarks = self.landmark_poses.expand(len(values), -1, 3) if given is None else given
        placed = torch.cat([points[:, -1, 1:], landmarks[..., :2]], dim=1) - origin
        turned = torch.cat([angles[:, -1, 1:], landmarks[..., 2]], dim=1) - angle[:, None]
        moved = rotated((points[:, :-1] - points[:, -1:]).flatten(1, 2), -angle)
        rolled = angles[:, :-1] - angles[:, -1:]
        rolled = torch.atan2(rolled.sin(), rolled.cos())
        kept, others = values[..., self.kept], values[..., self.kept_angles]
        parts = [rotated(placed, -angle), turned.sin(), moved, rolled, turned.cos(), kept, others.cos(), others.sin()]
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    @property
    def condition_size(self) -> int:
        """The number of values that ``encode`` gives."""
        return self.size + len(self.fine) * self.magnified

    def encode(self, observation: Mapping[str, Tensor], normalizer: Normalizer) -> Tensor:
        """(B, condition_size): the features, normalized, and those around zero magnified."""
        features = self.features(observation)
        normalized = normalizer.normalize(FRAME, features)
        zero = normalizer.normalize(FRAME, torch.zeros_like(features[:1]))
        near = (normalized - zero)[:, : self.magnified]
        return torch.cat([normalized, *(torch.tanh(near / width) for width in self.fine)], dim=1)

    def into(self, actions: Tensor, observation: Mapping[str, Tensor]) -> Tensor:
        """Actions (B, h, D) of the world in the frame of the latest step."""
        origin, angle = self.pose(observation)
        pairs = actions[..., self.pairs] - self.is_place * origin
        return self._replaced(actions, rotated(pairs.flatten(1, 2), -angle))

    def out_of(self, actions: Tensor, observation: Mapping[str, Tensor]) -> Tensor:
        """The inverse of ``into``."""
        origin, angle = self.pose(observation)
        pairs = rotated(actions[..., self.pairs].flatten(1, 2), angle)
        return self._replaced(actions, pairs.view(*actions.shape[:2], len(self.pairs), 2) + self.is_place * origin)

    def pose(self, observation: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The frame's origin (B, 1, 1, 2) and angle (B,) in the latest step."""
        latest = torch.cat([observation[key][:, -1].flatten(1) for key in self.keys], dim=1)
        return latest[:, None, None, self.points[0]], latest[:, self.angles[0]]

    def _replaced(self, actions: Tensor, pairs: Tensor) -> Tensor:
        actions = actions.clone()
        actions[..., self.pairs.flatten()] = pairs.reshape(*actions.shape[:2], 2 * len(self.pairs))
        return actions


def rotated(vectors: Tensor, angle: Tensor) -> Tensor:
    """Vectors (B, N, 2), turned by angles (B,) in rad; not a matrix product, which autocast would round to bfloat16."""
    x, y = vectors.unbind(-1)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    return torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1)


def frame_features(windows: Windows, frame: PlanarFrame, *, block: int = 8192) -> Iterator[np.ndarray]:
    """The features of all windows in blocks (N, size): what their normalizer is fitted to."""
    for batch in replace(windows, images=None).batches(block):
        yield frame.features(seen_in_training(batch, frame.keys)).cpu().numpy()


def seen_in_training(batch: Mapping[str, Tensor], keys: Iterable[str]) -> dict[str, Tensor]:
    """The observations of these keys in a batch of windows, and their landmarks if these differ from window to window."""
    landmarks = {LANDMARKS: batch[LANDMARKS]} if LANDMARKS in batch else {}
    return {key: batch[f"observation.{key}"] for key in keys} | landmarks


def outside_the_frame(spec: ObservationSpec, frame: PlanarFrame | None) -> ObservationSpec:
    """What the encoder of observations still has to encode."""
    if frame is None:
        return spec
    return spec.without(frame.keys)


def moved_landmarks(options: Mapping[str, Any] | None, poses: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The options of a frame with landmarks elsewhere. Raises ConfigurationError for landmarks that it has not."""
    known = dict((options or {}).get("landmarks") or {})
    _known_landmarks(poses, known)
    return {**(options or {}), "landmarks": {**known, **{name: list(pose) for name, pose in poses.items()}}}


def _known_landmarks(names: Iterable[str], known: Mapping[str, object]) -> tuple[str, ...]:
    """The names. Raises ConfigurationError for one that is not known."""
    if unknown := [name for name in names if name not in known]:
        raise ConfigurationError(
            f"the policy's frame has no landmark {', '.join(map(str, unknown))}; it has {', '.join(known) or 'none'}"
        )
    return tuple(names)


def _require_options(options: Mapping[str, Any]) -> None:
    if unknown := options.keys() - set(OPTIONS):
        raise ConfigurationError(f"policy.frame has no {', '.join(sorted(unknown))}; it has {', '.join(OPTIONS)}")
    if missing := [name for name in ("origin", "angle") if options.get(name) is None]:
        raise ConfigurationError(
            f"policy.frame needs {' and '.join(missing)}, observed values of an object as KEY.NAME"
        )


def _find(entry: object, fields: Mapping[str, ObservationField]) -> ObservedValue:
    return find_observed_value(str(entry), fields, option="policy.frame")


def _point(names: object, fields: Mapping[str, ObservationField], option: str) -> tuple[ObservedValue, ObservedValue]:
    x, y = _pair(names, option, "observed values [KEY.X, KEY.Y]")
    return _find(x, fields), _find(y, fields)


def _pair(given: object, option: str, expected: str) -> tuple[Any, Any]:
    if isinstance(given, str) or not isinstance(given, Sequence) or len(given) != 2:
        raise ConfigurationError(f"policy.frame.{option}: expected {expected}, got {given!r}")
    return given[0], given[1]


def _fine(widths: object) -> tuple[float, ...]:
    try:
        found = tuple(float(width) for width in widths)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        found = (0.0,)
    if not all(0 < width < math.inf for width in found):
        raise ConfigurationError(f"policy.frame.fine: expected widths above 0, such as [0.1, 0.4], got {widths!r}")
    return found


def _landmark(name: str, pose: object) -> tuple[float, float, float]:
    numbers = np.asarray(pose, dtype=object).reshape(-1)
    try:
        values = numbers.astype(np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (3,) or not np.isfinite(values).all():
        raise ConfigurationError(
            f"policy.frame.landmarks.{name}: expected [x, y, angle], three finite numbers, got {pose!r}"
        )
    return float(values[0]), float(values[1]), float(values[2])


def _action_pair(given: object, names: Sequence[str], relative: Sequence[bool]) -> list[int]:
    pair = _pair(given, "actions", "two names of action dimensions")
    if unknown := [name for name in pair if name not in names]:
        raise ConfigurationError(f"policy.frame.actions: there is no {unknown[0]!r} among {', '.join(names)}")
    x, y = (list(names).index(name) for name in pair)
    if relative[x] != relative[y]:
        raise ConfigurationError(
            f"policy.frame.actions: of {list(pair)} only one is relative to an observed value; give both or neither in "
            "policy.relative_to"
        )
    return [x, y]


def _columns(keys: Sequence[str], fields: Mapping[str, ObservationField]) -> dict[ObservedValue, int]:
    """The place of each value among those of all keys, one after the other."""
    values = [ObservedValue(key, index) for key in keys for index in range(fields[key].size)]
    return {value: column for column, value in enumerate(values)}
