"""Where a rigid object lies in images from above, found without labels: what it looks like is learned by aligning it.

The camera stands still and the object has one color. Its pixels differ from the background, the median of all images; they
are averaged in the object's own frame, and fitted again to what they became, in turn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from flowchunk.datasets.errors import DatasetError

DIFFERS = 60  # of the sum over RGB, from 0 to 765
MIXED = 120  # likewise, from a mixture of the object and the background; an outline may be of another shade
NOISE = 3.0  # times the median difference, which is noise, is not an object yet
ANGLES = 72  # tried for each image
STEPS, STEP = 8, (1.0, 1.0, 0.15)  # of Gauss-Newton, and the largest change in px, px and rad
ROUNDS = 5
POOR, SECTORS = 2.0, 8  # times the median error, from which more starts are tried, one in each sector of angles
FINENESS = 2  # pixels of the template per pixel of an image
SYMMETRIC = 0.05  # of the template's squares, by which its mirror image may differ
BATCH = 500
LEARNED_FROM = 600  # images


@dataclass(frozen=True, eq=False)
class PlanarObject:
    """An object as it looks from above, and the background that it lies on; ``learn`` finds both.

    background: (H, W, 3) RGB. color: (3,) RGB. template: (S, S) how much of each place is the object, from 0 to 1, in a
    frame of the object. reach: of the template from its center, in px.

    Poses are (x, y, angle): the centroid in px, (0, 0) at the center of the first pixel, and rad from x to y. If the template
    is its own mirror image, the angle is that of an axis of symmetry; otherwise it is that of an arbitrary direction of the
    object.
    """

    background: np.ndarray
    color: np.ndarray
    template: np.ndarray
    reach: float

    @classmethod
    def learn(cls, images: np.ndarray, *, covers: np.ndarray | None = None, radius: float = 0.0) -> PlanarObject:
        """From images (N, H, W, 3), uint8, in which the object lies in many places; of more than 600, evenly chosen ones.

        covers: (N, 2) x and y in px of what may cover it, such as the robot's tip, and radius of that. Raises DatasetError
        for other shapes and types, and if nothing moves in the images.
        """
        _check(images, covers)
        chosen = np.linspace(0, len(images) - 1, min(len(images), LEARNED_FROM)).round().astype(int)
        images, covers = images[chosen], None if covers is None else covers[chosen]
        background = np.median(images, axis=0).astype(np.float32)
        values = _as_bright(images, background)
        difference = np.abs(values - background).sum(-1)
        differs = difference > DIFFERS + NOISE * np.median(difference)
        visible = _visible(images.shape, covers, radius)
        if not (differs & visible).any():
            raise DatasetError("nothing moves in the images; give images in which the object lies in many places")
        color = np.median(values[differs & visible], axis=0).astype(np.float32)
        found = cls(background, color, np.zeros((1, 1), np.float32), 1.0)
        shares, weights = found._shares(images, visible)
        first = int((shares * weights).sum((1, 2)).argmax())  # nothing covers it, and it is within the image
        centroid = _centroids(shares[first : first + 1], weights[first : first + 1])
        far = (_grid(*images.shape[1:3]) - centroid[0]).norm(dim=-1)[(shares[first] * weights[first]) > 0.5]
        found = cls(background, color, found.template, float(far.max()) + 2.0)
        pose = torch.cat([centroid, torch.zeros(1, 1)], 1)
        found = found._averaged(shares[first : first + 1], weights[first : first + 1], pose)
        for _ in range(ROUNDS):
            poses, errors = found._fit(shares, weights)
            is_good = errors <= POOR * errors.median()
            found = found._averaged(shares[is_good], weights[is_good], poses[is_good])
        return found

    def poses(
        self, images: np.ndarray, *, covers: np.ndarray | None = None, radius: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Poses (N, 3) in images (N, H, W, 3), and the error of each: the sum of squares of what the template misses.

        covers, radius: as of ``learn``. Raises DatasetError for other shapes and types.
        """
        _check(images, covers)
        poses, errors = [], []
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            visible = _visible(part.shape, None if covers is None else covers[start : start + BATCH], radius)
            fitted, missed = self._fit(*self._shares(part, visible))
            poses.append(self._outward(fitted))
            errors.append(missed.numpy())
        return np.concatenate(poses), np.concatenate(errors)

    def drawn_pose(self) -> np.ndarray:
        """The pose (3,) of the object's outline that is drawn in the background, such as a goal.

        Raises DatasetError if nothing is drawn there.
        """
        paper = np.median(self.background.reshape(-1, 3), axis=0)
        differs = torch.from_numpy(np.abs(self.background - paper).sum(-1))
        edge = max(1, round(self.reach / 4))
        inside = torch.zeros_like(differs)
        inside[edge:-edge, edge:-edge] = 1.0  # without a frame at the border
        if not (differs * inside > DIFFERS).any():
            raise DatasetError("nothing is drawn in the background; give the pose of the goal, or images that show it")
        shares = (differs * inside / torch.quantile(differs * inside, 0.97).clamp(min=1.0)).clamp(0, 1)[None]
        return self._outward(self._fit(shares, torch.ones_like(shares))[0])[0]

    @cached_property
    def axis(self) -> float | None:
        """The angle in the template of an axis through the centroid about which the object is symmetric, if there is one."""
        template, (x, y) = torch.from_numpy(self.template), (self._places - self._centroid).unbind(-1)
        angles, misses = np.linspace(0, math.pi, 720, endpoint=False), []
        for angle in angles:
            cos, sin = math.cos(2 * angle), math.sin(2 * angle)
            mirrored = torch.stack([cos * x + sin * y, sin * x - cos * y], -1) + self._centroid
            misses.append(float((self._sampled(mirrored) - template).square().sum()))
        best = int(np.argmin(misses))
        return float(angles[best]) if misses[best] < SYMMETRIC * float(template.square().sum()) else None

    # -- fitting ------------------------------------------------------------------------------------------------------

    @property
    def _centroid(self) -> Tensor:
        """(2,) x and y in px of the template's frame."""
        template = torch.from_numpy(self.template)
        return (template[..., None] * self._places).sum((0, 1)) / template.sum()

    @property
    def _places(self) -> Tensor:
        """(S, S, 2) x and y of the template, in px of its frame."""
        line = torch.linspace(-self.reach, self.reach, len(self.template))
        return torch.stack([*torch.meshgrid(line, line, indexing="xy")], -1)

    def _sampled(self, places: Tensor) -> Tensor:
        """The template at places (…, 2) of its frame; 0 outside."""
        template = torch.from_numpy(self.template)[None, None]
        flat = (places / self.reach).reshape(1, 1, -1, 2)
        return grid_sample(template, flat, align_corners=True)[0, 0, 0].reshape(places.shape[:-1])

    def _shares(self, images: np.ndarray, visible: np.ndarray) -> tuple[Tensor, Tensor]:
        """(N, H, W) how much of each pixel is of the object's color rather than of the background, and its weight.

        visible: (N, H, W). Pixels that are not a mixture of both, such as those of the robot, have the weight 0.
        """
        background = torch.from_numpy(self.background)
        change = torch.from_numpy(self.color) - background
        seen = torch.from_numpy(_as_bright(images, self.background)) - background
        shares = ((seen * change).sum(-1) / change.square().sum(-1).clamp(min=1.0)).clamp(0, 1)
        is_mixture = (seen - shares[..., None] * change).abs().sum(-1) < MIXED
        return shares, torch.from_numpy(visible) * is_mixture.float()

    def _fit(self, shares: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Poses (N, 3) of the template's frame, and squared errors (N,)."""
        angles = torch.arange(ANGLES) * (2 * math.pi / ANGLES)
        poses, errors = self._fit_from(angles, shares, weights)
        poor = (errors > POOR * errors.median()).nonzero()[:, 0]  # most often covered, so that the centroid misleads
        for some in angles.chunk(SECTORS) if len(poor) else ():
            again, missed = self._fit_from(some, shares[poor], weights[poor])
            is_better = missed < errors[poor]
            poses[poor[is_better]], errors[poor[is_better]] = again[is_better], missed[is_better]
        return poses, errors

    def _fit_from(self, angles: Tensor, shares: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """From the centroid and the best of some angles."""
        centroids = _centroids(shares, weights)
        window = _Window(shares, weights, centroids, self.reach)
        best, poses = torch.full((len(shares),), math.inf), torch.cat([centroids, torch.zeros(len(shares), 1)], 1)
        for angle in angles:
            tried = torch.cat([centroids, angle.expand(len(shares), 1)], 1)
            errors = window.errors(self._rendered(tried, window))
            poses = torch.where((errors < best)[:, None], tried, poses)
            best = torch.minimum(errors, best)
        for _ in range(STEPS):
            poses = self._improved(poses, _Window(shares, weights, poses[:, :2], self.reach))
        window = _Window(shares, weights, poses[:, :2], self.reach)
        return poses, window.errors(self._rendered(poses, window))

    def _improved(self, poses: Tensor, window: _Window) -> Tensor:
        """A step of Gauss-Newton, with numerical derivatives."""
        slopes = []
        for index, step in enumerate((0.25, 0.25, 0.02)):
            change = torch.zeros(3)
            change[index] = step
            slopes.append(
                (self._rendered(poses + change, window) - self._rendered(poses - change, window)) / (2 * step)
            )
        slope = torch.stack(slopes, -1).flatten(1, 2)
        missed = (window.shares - self._rendered(poses, window)).flatten(1)
        weighted = slope * window.weights.flatten(1)[..., None]
        curvature = weighted.transpose(1, 2) @ slope + 1e-2 * torch.eye(3)
        step = torch.linalg.solve(curvature, (weighted * missed[..., None]).sum(1))
        limit = torch.tensor(STEP)
        return poses + step.clamp(-limit, limit)

    def _rendered(self, poses: Tensor, window: _Window) -> Tensor:
        """(N, W, W) the template in the window, at poses (N, 3)."""
        x, y = (window.places - poses[:, None, None, :2]).unbind(-1)
        cos, sin = poses[:, 2, None, None].cos(), poses[:, 2, None, None].sin()
        return self._sampled(torch.stack([cos * x + sin * y, cos * y - sin * x], -1))

    def _averaged(self, shares: Tensor, weights: Tensor, poses: Tensor) -> PlanarObject:
        """With the template that images at these poses show in the mean."""
        size = 2 * round(FINENESS * self.reach) + 1
        found = PlanarObject(self.background, self.color, np.zeros((size, size), np.float32), self.reach)
        x, y = found._places.unbind(-1)
        cos, sin = poses[:, 2, None, None].cos(), poses[:, 2, None, None].sin()
        places = torch.stack([cos * x - sin * y, sin * x + cos * y], -1) + poses[:, None, None, :2]
        scale = torch.tensor([2 / (shares.shape[2] - 1), 2 / (shares.shape[1] - 1)])
        seen = grid_sample(torch.stack([shares * weights, weights], 1), places * scale - 1, align_corners=True)
        template = seen[:, 0].sum(0) / seen[:, 1].sum(0).clamp(min=1e-3)
        return PlanarObject(self.background, self.color, template.numpy(), self.reach)

    def _outward(self, poses: Tensor) -> np.ndarray:
        """Poses (N, 3) of the template's frame, as poses of the centroid and the axis."""
        across, along = self._centroid
        cos, sin = poses[:, 2].cos(), poses[:, 2].sin()
        x, y = poses[:, 0] + cos * across - sin * along, poses[:, 1] + sin * across + cos * along
        return torch.stack([x, y, poses[:, 2] + (self.axis or 0.0)], -1).double().numpy()


class _Window:
    """A square of each image (N, H, W), around centers (N, 2), which the object fits into at any angle."""

    def __init__(self, shares: Tensor, weights: Tensor, centers: Tensor, reach: float) -> None:
        size = 2 * math.ceil(reach) + 2
        corner = centers.round().long() - size // 2
        both = pad(torch.stack([shares, weights], 1), (size, size, size, size))
        last = torch.tensor([both.shape[3], both.shape[2]]) - size  # a fit that went astray stays at the border
        start = torch.minimum((corner + size).clamp(min=0), last)
        steps = torch.arange(size)
        rows, columns = start[:, 1, None, None] + steps[:, None], start[:, 0, None, None] + steps
        found = both[torch.arange(len(shares))[:, None, None], :, rows, columns]
        self.shares, self.weights = found.unbind(-1)
        self.places = torch.stack([columns.expand(-1, size, size), rows.expand(-1, size, size)], -1).float() - size

    def errors(self, rendered: Tensor) -> Tensor:
        """(N,) the sum of squares of what a rendered template misses."""
        return (self.weights * (self.shares - rendered).square()).sum((1, 2))


def _check(images: np.ndarray, covers: np.ndarray | None) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise DatasetError(f"images: expected uint8 (N, H, W, 3), RGB from 0 to 255, got {images.dtype} {images.shape}")
    if covers is not None and np.shape(covers) != (len(images), 2):
        raise DatasetError(f"covers: expected (N, 2), x and y in px for each image, got {np.shape(covers)}")


def _as_bright(images: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Images (N, H, W, 3) as float32, each in the light of the background."""
    values = images.astype(np.float32)
    gains = np.median((background + 1) / (values + 1), axis=(1, 2), keepdims=True)
    return np.asarray(values * gains, dtype=np.float32)


def _visible(shape: tuple[int, ...], covers: np.ndarray | None, radius: float) -> np.ndarray:
    """(N, H, W) whether nothing else covers a pixel."""
    if covers is None:
        return np.ones(shape[:3], dtype=bool)
    distance = np.linalg.norm(_grid(*shape[1:3]).numpy()[None] - covers[:, None, None], axis=-1)
    return np.asarray(distance > radius)


def _centroids(shares: Tensor, weights: Tensor) -> Tensor:
    """(N, 2) x and y in px of what is more object than background."""
    mass = ((shares > 0.5) * weights)[..., None]
    return (mass * _grid(*shares.shape[1:])).sum((1, 2)) / mass.sum((1, 2)).clamp(min=1e-3)


def _grid(height: int, width: int) -> Tensor:
    """(H, W, 2) x and y of each pixel."""
    return torch.stack([*torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")], -1).float()
