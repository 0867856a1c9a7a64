"""How close generated samples are to data, and whether they are copies of the training data.

No distance is zero between two finite samples, not even of the same distribution: ``metric_floor`` measures data against
data, and every distance should be shown next to it. All take samples (n, d) and compute in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

BLOCK = 2048  # rows of the pairwise matrix that are in memory at a time
MIN_FLOOR_PAIRS = 8


def sliced_wasserstein(a: Tensor, b: Tensor, *, projections: int = 256, seed: int = 0) -> Tensor:
    """Root mean, over random directions, of the squared Wasserstein-2 distance along each (Rabin et al. 2011).

    a: (n, d), b: (m, d). Returns a scalar in their unit. The directions are determined by the seed; if n and m differ,
    quantiles are matched. Raises ValueError if the shapes do not fit.
    """
    _check(a, b)
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn((a.shape[1], projections), generator=generator, dtype=torch.float64).to(a.device)
    directions = directions / directions.norm(dim=0)
    along_a, along_b = (torch.sort(x.double() @ directions, dim=0).values for x in (a, b))  # (n, P), (m, P)
    n, m = len(a), len(b)
    # Both quantile functions are step functions, at multiples of 1/n and 1/m: integers in units of 1/(n·m).
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).sort().values.to(a.device)
    mass = torch.diff(ends, prepend=ends.new_zeros(1)).double() / (n * m)
    difference = along_a[(ends - 1) // m] - along_b[(ends - 1) // n]
    return (mass @ difference**2).mean().sqrt()


def energy_distance(a: Tensor, b: Tensor) -> Tensor:
    """2·E|X - Y| - E|X - X'| - E|Y - Y'| with Euclidean distances (Székely and Rizzo 2013), in the unit of a and b.

    a: (n, d), b: (m, d). This is the V-statistic, which also pairs each sample with itself: never negative, zero only for
    equal samples, and for samples of the same distribution E|X - X'|/n + E|Y - Y'|/m on average. Raises ValueError if the
    shapes do not fit.
    """
    return _energy(a, b, torch.cdist).clamp(min=0)  # rounding can give -1e-15


def angular_energy_distance(a: Tensor, b: Tensor, *, geodesic: bool = False) -> Tensor:
    """Energy distance between angles a (n, d) and b (m, d) in radians; full turns make no difference.

    Two angles are as far apart as the chord between them on the unit circle: an energy distance in the plane of cosine and
    sine, so it is zero only for equal samples. ``geodesic`` uses arcs instead, √Σ arc² over the d angles, only for
    comparison: arcs are not of strictly negative type, so the distance between two opposite directions and the uniform
    distribution is zero, and for d > 1 the result can be negative. Raises ValueError if the shapes do not fit.
    """
    _check(a, b)
    if geodesic:
        return _energy(a, b, _arc)
    return energy_distance(*(torch.cat([x.double().cos(), x.double().sin()], dim=1) for x in (a, b)))


def kernel_distance(
    features_a: Tensor, features_b: Tensor, *, classes_a: Tensor | None = None, classes_b: Tensor | None = None
) -> Tensor:
    """Squared maximum mean discrepancy under the kernel (x·y/d + 1)³ of KID (Bińkowski et al. 1801.01401).

    features_a: (n, d), features_b: (m, d). Unbiased (U-statistic), so about zero, and possibly negative, for samples of the
    same distribution. classes_a: (n,), classes_b: (m,) integers, for stratified samples, in which the fractions of the
    classes are fixed instead of random: pairs of the same class are rarer within such a sample than across two, and their
    weights correct for it, unless a class has only one member. Raises ValueError if the shapes do not fit, or for fewer
    than two samples on either side.
    """
    _check(features_a, features_b)
    a, b = features_a.double(), features_b.double()
    if min(len(a), len(b)) < 2:
        raise ValueError(
            f"an unbiased kernel distance needs at least 2 samples on each side, got {len(a)} and {len(b)}"
        )
    across = _sum_over_pairs(a, b, _kid_kernel) / (len(a) * len(b))
    return _kernel_within(a, classes_a) + _kernel_within(b, classes_b) - 2 * across


def metric_floor(metric: Callable[[Tensor, Tensor], Tensor], pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The value of a metric for data against data: its mean over pairs of independent samples of the same distribution.

    Use as many samples as in the comparison: the floor falls with their number. Raises ValueError for fewer than 8 pairs.
    """
    values = [float(metric(a, b)) for a, b in pairs]
    if len(values) < MIN_FLOOR_PAIRS:
        raise ValueError(f"a floor is the mean over at least {MIN_FLOOR_PAIRS} pairs, got {len(values)}")
    return math.fsum(values) / len(values)


def nearest_neighbor_ratio(samples: Tensor, *, train: Tensor, held_out: Tensor) -> float:
    """Fraction of samples that are closer to a training point than to any held-out point; ties count one half.

    samples: (n, d). train, held_out: (m, d), equally many points of the same distribution. About 0.5 if the model learned
    only the distribution of the training points, 1 if all samples are copies of them (Platzer and Reutterer 2104.00635,
    there by "distance to closest record"). Raises ValueError if the shapes do not fit or the sets differ in size.
    """
    if len(train) != len(held_out):
        raise ValueError(
            f"train and held_out must be equally many points, or one is closer by chance: {len(train)}, {len(held_out)}"
        )
    to_train, to_held_out = (_nearest(samples, points, 1)[:, 0] for points in (train, held_out))
    is_closer = (to_train < to_held_out).double() + 0.5 * (to_train == to_held_out).double()
    return float(is_closer.mean())


def copied_fraction(samples: Tensor, *, train: Tensor, ratio: float = 1 / 3) -> float:
    """Fraction of samples much closer to one training point than to the next: nearest < ratio · second nearest.

    samples: (n, d), train: (m, d) with m >= 2 (Yoon et al. 2023, "Diffusion probabilistic models generalize when they
    fail to memorize"). Independent samples rarely count in high dimensions, but do by chance in low ones, with probability
    ratio^d: show the fraction of held-out data next to it. Copies of a training point that occurs twice are not found.
    Raises ValueError if the shapes do not fit or train has fewer than 2 points.
    """
    if len(train) < 2:
        raise ValueError(
            f"the distance to the second nearest training point needs at least 2 of them, got {len(train)}"
        )
    nearest, second = _nearest(samples, train, 2).unbind(dim=1)
    return float((nearest < ratio * second).double().mean())


PairValues = Callable[[Tensor, Tensor], Tensor]
"""A value for each pair of rows of (n, d) and (m, d): (n, m)."""


def _energy(a: Tensor, b: Tensor, distance: PairValues) -> Tensor:
    _check(a, b)
    a, b = a.double(), b.double()
    across, within_a, within_b = (
        _sum_over_pairs(x, y, distance) / (len(x) * len(y)) for x, y in ((a, b), (a, a), (b, b))
    )
    return 2 * across - within_a - within_b


def _arc(x: Tensor, y: Tensor) -> Tensor:
    """Geodesic distances on the torus, of angles (n, d) and (m, d): (n, m)."""
    arcs = (torch.remainder(p[:, None] - q + math.pi, 2 * math.pi) - math.pi for p, q in zip(x.T, y.T, strict=True))
    return sum((arc.square() for arc in arcs), start=x.new_zeros(())).sqrt()


def _kernel_within(x: Tensor, classes: Tensor | None) -> Tensor:
    """The mean kernel of two different samples, each class with its fraction of x (n, d)."""
    if classes is None or torch.unique(classes, return_counts=True)[1].min() < 2:
        n = len(x)
        return (_sum_over_pairs(x, x, _kid_kernel) - _kernel_with_itself(x)) / (n * (n - 1))
    total = _sum_over_pairs(x, x, _kid_kernel)
    for label in torch.unique(classes):
        members = x[classes == label]
        pairs, n = _sum_over_pairs(members, members, _kid_kernel), len(members)
        total = total - pairs + (pairs - _kernel_with_itself(members)) * n / (n - 1)
    return total / len(x) ** 2


def _kernel_with_itself(x: Tensor) -> Tensor:
    return ((x.square().mean(dim=1) + 1) ** 3).sum()


def _kid_kernel(x: Tensor, y: Tensor) -> Tensor:
    base = x @ y.T / x.shape[1] + 1
    return base * base * base  # several times faster than a power


def _sum_over_pairs(x: Tensor, y: Tensor, value: PairValues) -> Tensor:
    """The sum of a value over all pairs of rows, block by block."""
    blocks = [value(rows, columns).sum() for rows in _blocks(x) for columns in _blocks(y)]
    return torch.stack(blocks).sum()


def _nearest(samples: Tensor, points: Tensor, k: int) -> Tensor:
    """Distances from samples (n, d) to the k nearest of points (m, d), in ascending order: (n, k)."""
    _check(samples, points)
    points = points.double()
    return torch.cat([torch.cdist(r, points).topk(k, largest=False).values for r in _blocks(samples.double())])


def _blocks(x: Tensor) -> Iterator[Tensor]:
    return (x[start : start + BLOCK] for start in range(0, len(x), BLOCK))


def _check(a: Tensor, b: Tensor) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not len(a) or not len(b):
        raise ValueError(f"expected samples (n, d) and (m, d), not empty, got {tuple(a.shape)} and {tuple(b.shape)}")
