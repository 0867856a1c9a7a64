"""Metrics of generated samples: closed forms, invariants, and the difference between copies and new samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flowchunk.policy.evaluation import generative_metrics
from flowchunk.policy.evaluation.generative_metrics import (
    angular_energy_distance,
    copied_fraction,
    energy_distance,
    kernel_distance,
    metric_floor,
    nearest_neighbor_ratio,
    sliced_wasserstein,
)

Metric = Callable[[Tensor, Tensor], Tensor]
METRICS: list[Metric] = [sliced_wasserstein, energy_distance, angular_energy_distance, kernel_distance]
each_metric = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.__name__)


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn((n, d), generator=torch.Generator().manual_seed(seed))


def uniform(n: int, d: int, seed: int) -> Tensor:
    return torch.rand((n, d), generator=torch.Generator().manual_seed(seed))


# What holds for all.


@each_metric
@pytest.mark.parametrize(("n", "m"), [(300, 300), (300, 170)])
def test_metrics_are_symmetric_and_independent_of_order(metric: Metric, n: int, m: int) -> None:
    a, b = normal(n, 3, 0), normal(m, 3, 1) + 0.5
    shuffled = a[torch.randperm(n, generator=torch.Generator().manual_seed(2))]
    assert float(metric(a, b)) > 0.01
    torch.testing.assert_close(metric(a, b), metric(b, a))
    torch.testing.assert_close(metric(shuffled, b), metric(a, b))


@pytest.mark.parametrize("metric", [sliced_wasserstein, energy_distance, angular_energy_distance])
def test_metrics_are_zero_for_equal_samples(metric: Metric) -> None:
    a = normal(200, 30, 0)
    assert float(metric(a, a.flip(0))) == pytest.approx(0, abs=1e-7)
    assert float(metric(a, a.flip(0))) >= 0


@each_metric
def test_metrics_grow_with_distance(metric: Metric) -> None:
    a, b = normal(500, 2, 0), normal(500, 2, 1)
    values = [float(metric(a, b + shift)) for shift in (0.0, 0.3, 0.6, 1.2)]
    assert values == sorted(values)


@each_metric
def test_blocks_do_not_change_the_result(metric: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = normal(300, 3, 0), normal(170, 3, 1)
    whole = metric(a, b)
    monkeypatch.setattr(generative_metrics, "BLOCK", 64)
    torch.testing.assert_close(metric(a, b), whole)


@each_metric
@pytest.mark.parametrize("shapes", [((5, 2), (5, 3)), ((5,), (5,)), ((0, 2), (5, 2)), ((5, 2, 1), (5, 2, 1))])
def test_samples_whose_shapes_do_not_fit_are_refused(metric: Metric, shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match=r"expected samples \(n, d\) and \(m, d\), not empty, got \("):
        metric(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


# Sliced Wasserstein.


@pytest.mark.parametrize("d", [1, 2, 8])
def test_a_shift_counts_in_every_direction(d: int) -> None:
    """Along a unit vector w it is (w·shift)², on average |shift|²/d."""
    a, shift = normal(100, d, 0), torch.full((d,), 3.0)  # |shift| = 3·√d
    assert float(sliced_wasserstein(a, a + shift, projections=4096)) == pytest.approx(3, rel=0.03)


def test_sliced_wasserstein_of_two_gaussians() -> None:
    """W² = (mean difference)² + (difference of standard deviations)² along each direction."""
    a, b = normal(20_000, 1, 0), 1 + 3 * normal(20_000, 1, 1)
    assert float(sliced_wasserstein(a, b, projections=1)) == pytest.approx(math.sqrt(1 + 4), rel=0.02)


def test_quantiles_of_samples_of_unequal_size_are_matched() -> None:
    two, three = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [0.0], [1.0]])
    assert float(sliced_wasserstein(two, three)) == pytest.approx(math.sqrt(1 / 6))  # a sixth of the mass moves by 1
    assert float(sliced_wasserstein(two, two.repeat(5, 1))) == 0


def test_directions_are_fixed_by_the_seed() -> None:
    a, b = normal(100, 4, 0), normal(100, 4, 1)
    assert sliced_wasserstein(a, b) == sliced_wasserstein(a, b)
    assert sliced_wasserstein(a, b) != sliced_wasserstein(a, b, seed=1)


# Energy distance.


def test_energy_distance_of_two_points() -> None:
    assert float(energy_distance(torch.zeros(3, 2), torch.tensor([[3.0, 4.0]]))) == pytest.approx(10)


def test_energy_distance_of_two_gaussians() -> None:
    """E|N(m, s²)| = s·√(2/π)·exp(-m²/2s²) + m·erf(m/s√2), here with s² = 2."""
    shift = 1.5
    across = 2 / math.sqrt(math.pi) * math.exp(-(shift**2) / 4) + shift * math.erf(shift / 2)
    expected = 2 * across - 4 / math.sqrt(math.pi)
    assert float(energy_distance(normal(5000, 1, 0), normal(5000, 1, 1) + shift)) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("geodesic", [False, True])
def test_full_turns_make_no_difference(geodesic: bool) -> None:
    a, b = 2 * normal(200, 3, 0), normal(200, 3, 1)
    turned = b + 2 * math.pi * torch.tensor([1.0, -2.0, 0.0])
    direct, around = (angular_energy_distance(a, x, geodesic=geodesic) for x in (b, turned))
    torch.testing.assert_close(direct, around, atol=1e-5, rtol=0)


def test_angles_on_both_sides_of_the_wrap_are_close() -> None:
    a, b = torch.full((4, 1), math.pi - 0.1), torch.full((4, 1), -math.pi + 0.1)
    assert float(angular_energy_distance(a, b)) == pytest.approx(2 * 2 * math.sin(0.1), rel=1e-5)  # twice the chord
    assert float(angular_energy_distance(a, b, geodesic=True)) == pytest.approx(2 * 0.2, rel=1e-5)  # twice the arc
    assert float(energy_distance(a, b)) > 12


def test_arcs_are_not_of_strictly_negative_type() -> None:
    """Two opposite directions against all directions: by arcs the distance is zero, and negative for two angles."""
    everywhere = torch.linspace(-math.pi, math.pi, 401)[:-1, None]
    opposite = torch.tensor([[0.0], [math.pi]])
    assert float(angular_energy_distance(everywhere, opposite, geodesic=True)) == pytest.approx(0, abs=1e-4)
    assert float(angular_energy_distance(everywhere, opposite)) > 0.2
    both = torch.cartesian_prod(everywhere[::10, 0], everywhere[::10, 0])
    lines = torch.cartesian_prod(opposite[:, 0], everywhere[::10, 0])
    assert float(angular_energy_distance(both, lines, geodesic=True)) < -0.01
    assert float(angular_energy_distance(both, lines)) > 0.05


# Kernel distance.


def test_kernel_distance_by_hand() -> None:
    """In one dimension the kernel is (x·y + 1)³."""
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [-1.0]])
    within_a, within_b = 1.0, (-2 + 1) ** 3
    across = (1 + 1 + (2 + 1) ** 3 + 0) / 4
    assert float(kernel_distance(a, b)) == pytest.approx(within_a + within_b - 2 * across)


def test_kernel_distance_is_unbiased() -> None:
    values = torch.stack([kernel_distance(normal(50, 4, 2 * i), normal(50, 4, 2 * i + 1)) for i in range(200)])
    assert float(values.min()) < 0
    assert abs(float(values.mean())) < 3 * float(values.std()) / math.sqrt(200)


def test_kernel_distance_needs_two_samples() -> None:
    with pytest.raises(ValueError, match="at least 2 samples on each side, got 1 and 5"):
        kernel_distance(torch.zeros(1, 2), torch.zeros(5, 2))


def stratified(seed: int) -> tuple[Tensor, Tensor]:
    """30 samples of each of two classes that lie apart, and their classes."""
    classes = torch.arange(2).repeat(30)
    return normal(60, 4, seed) + 3.0 * classes[:, None], classes


def test_the_kernel_distance_of_stratified_samples_is_unbiased() -> None:
    pairs = [(stratified(2 * i), stratified(2 * i + 1)) for i in range(100)]
    weighed = torch.stack([kernel_distance(a, b, classes_a=p, classes_b=q) for (a, p), (b, q) in pairs])
    assert abs(float(weighed.mean())) < 3 * float(weighed.std()) / math.sqrt(100)
    as_by_chance = torch.stack([kernel_distance(a, b) for (a, _), (b, _) in pairs])
    assert float(as_by_chance.mean()) < -10 * float(as_by_chance.std()) / math.sqrt(100)


def test_one_class_is_the_same_as_no_classes() -> None:
    a, b = normal(20, 3, 0), normal(30, 3, 1)
    classes = [torch.full((len(x),), 7) for x in (a, b)]
    expected = float(kernel_distance(a, b))
    assert float(kernel_distance(a, b, classes_a=classes[0], classes_b=classes[1])) == pytest.approx(expected)
    singles = float(kernel_distance(a, b, classes_a=torch.arange(20), classes_b=torch.arange(30)))
    assert singles == pytest.approx(expected), "a class of one has no pair to weigh up"


# The floor.


def test_the_floor_is_the_mean_over_pairs_and_falls_with_their_size() -> None:
    floors = []
    for n in (100, 900):
        pairs = [(normal(n, 2, 2 * i), normal(n, 2, 2 * i + 1)) for i in range(8)]
        floors.append(metric_floor(sliced_wasserstein, iter(pairs)))
        assert floors[-1] == pytest.approx(sum(float(sliced_wasserstein(a, b)) for a, b in pairs) / 8)
    assert floors[1] < floors[0] / 2


def test_a_floor_needs_enough_pairs() -> None:
    with pytest.raises(ValueError, match="at least 8 pairs, got 7"):
        metric_floor(energy_distance, [(torch.zeros(2, 1), torch.ones(2, 1))] * 7)


# Copies.


def test_copies_are_closer_to_the_training_points() -> None:
    train, held_out, fresh = (uniform(1000, 16, seed) for seed in range(3))
    copies = train[:500] + 0.01 * normal(500, 16, 3)
    assert nearest_neighbor_ratio(copies, train=train, held_out=held_out) == 1
    assert nearest_neighbor_ratio(copies, train=held_out, held_out=train) == 0
    assert nearest_neighbor_ratio(fresh, train=train, held_out=held_out) == pytest.approx(0.5, abs=0.06)
    half = torch.cat([copies, fresh[:500]])
    assert nearest_neighbor_ratio(half, train=train, held_out=held_out) == pytest.approx(0.75, abs=0.04)


def test_ties_count_one_half() -> None:
    train = uniform(50, 3, 0)
    assert nearest_neighbor_ratio(uniform(20, 3, 1), train=train, held_out=train) == 0.5


def test_copied_fraction_counts_only_copies() -> None:
    train, fresh = uniform(1000, 16, 0), uniform(1000, 16, 1)
    copies = train[:300] + 0.01 * normal(300, 16, 2)
    assert copied_fraction(copies, train=train) == 1
    assert copied_fraction(fresh, train=train) == 0
    assert copied_fraction(torch.cat([copies, fresh[:700]]), train=train) == pytest.approx(0.3)
    assert copied_fraction(fresh, train=train, ratio=1) == 1


def test_in_few_dimensions_samples_count_as_copies_by_chance() -> None:
    assert copied_fraction(uniform(4000, 2, 0), train=uniform(4000, 2, 1)) == pytest.approx(1 / 9, abs=0.03)


def test_too_few_points_to_compare_with_are_refused() -> None:
    with pytest.raises(
        ValueError, match="train and held_out must be equally many points, or one is closer by chance: 4, 5"
    ):
        nearest_neighbor_ratio(torch.zeros(3, 2), train=torch.zeros(4, 2), held_out=torch.zeros(5, 2))
    with pytest.raises(ValueError, match="needs at least 2 of them, got 1"):
        copied_fraction(torch.zeros(3, 2), train=torch.zeros(1, 2))
    with pytest.raises(ValueError, match="expected samples"):
        copied_fraction(torch.zeros(3, 2), train=torch.zeros(4, 3))
