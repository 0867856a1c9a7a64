"""Keep planned targets within a robot's limits: whole chunks, so that a limit is approached in time and not run into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

BOUNDS, VELOCITY, ACCELERATION, INFEASIBLE = "bounds", "velocity", "acceleration", "braking"
TOLERANCE = 1e-6  # of a limit: rounding in float32 is no violation


@dataclass(frozen=True)
class MotionLimits:
    """What targets must keep to; arrays (D,), infinite where there is no limit.

    low, high: of the targets. velocity, acceleration: of a position's differences; for other quantities the first bounds the
    value and the second its change. In units per second and per second². is_position: which dimensions are positions.
    """

    low: np.ndarray
    high: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    is_position: np.ndarray


@dataclass(frozen=True)
class LimitedPlan:
    """Targets (n, D) within the limits, and for each limit that changed them the dimensions, such as {"velocity": (0, 3)}."""

    targets: np.ndarray
    interventions: Mapping[str, tuple[int, ...]]


def limit_plan(plan: np.ndarray, previous: np.ndarray, limits: MotionLimits, *, hz: float) -> LimitedPlan:
    """The nearest targets (sum of absolute differences) to the plan (n, D) that keep to all limits.

    previous: (2, D), the last two targets, a period of 1/hz apart like those of the plan. Dimensions that already keep to
    their limits are returned unchanged; each of the others is a linear program. If braking in time is no longer possible,
    the limit of acceleration gives way first (intervention "braking").
    """
    plan = np.asarray(plan, np.float64)
    changed: dict[str, list[int]] = {}
    limited = plan.copy()
    for dimension in _violating(plan, previous, limits, hz):
        bounds = (float(limits.low[dimension]), float(limits.high[dimension]))
        reach = float(limits.velocity[dimension]) * (1 / hz if limits.is_position[dimension] else 1.0)
        change = float(limits.acceleration[dimension]) / hz * (1 / hz if limits.is_position[dimension] else 1.0)
        order = 1 if limits.is_position[dimension] else 0
        for name in _violated(plan[:, dimension], previous[:, dimension], order, bounds, reach, change):
            changed.setdefault(name, []).append(dimension)
        values = _nearest(plan[:, dimension], previous[:, dimension], order, bounds, reach, change)
        if values is None:
            changed.setdefault(INFEASIBLE, []).append(dimension)
            values = _approach(plan[:, dimension], float(previous[-1, dimension]), order, bounds, reach)
        limited[:, dimension] = values
    return LimitedPlan(limited, {name: tuple(dimensions) for name, dimensions in changed.items()})


def _violating(plan: np.ndarray, previous: np.ndarray, limits: MotionLimits, hz: float) -> list[int]:
    """The dimensions of the plan that break a limit, in one pass over all of them."""
    whole = np.concatenate([previous, plan])
    first = np.diff(whole, axis=0)
    moved = np.where(limits.is_position, first[1:] * hz, plan)
    changed = np.where(limits.is_position, np.diff(first, axis=0) * hz**2, first[1:] * hz)
    is_broken = (
        (plan < _lower(limits.low))
        | (plan > _upper(limits.high))
        | (np.abs(moved) > _upper(limits.velocity))
        | (np.abs(changed) > _upper(limits.acceleration))
    )
    return [int(dimension) for dimension in np.flatnonzero(is_broken.any(axis=0))]


def _violated(
    plan: np.ndarray, previous: np.ndarray, order: int, bounds: tuple[float, float], reach: float, change: float
) -> list[str]:
    whole = np.concatenate([previous, plan])
    moved = np.diff(whole)[1:] if order else plan
    changed = np.diff(whole, n=order + 1)[1 - order :]
    broken = {
        BOUNDS: bool((plan < _lower(bounds[0])).any() or (plan > _upper(bounds[1])).any()),
        VELOCITY: bool((np.abs(moved) > _upper(reach)).any()),
        ACCELERATION: bool((np.abs(changed) > _upper(change)).any()),
    }
    return [name for name, is_broken in broken.items() if is_broken]


def _nearest(
    plan: np.ndarray, previous: np.ndarray, order: int, bounds: tuple[float, float], reach: float, change: float
) -> np.ndarray | None:
    """The linear program of one dimension; None if no targets keep to all limits.

    Variables are the n targets x and their distances e >= |x - plan|; sum(e) is minimized.
    """
    n = len(plan)
    first = np.eye(n) - np.eye(n, k=-1)
    moved, moved_before = (first, _before(n, [-previous[1]])) if order else (np.eye(n), np.zeros(n))
    if order:
        changed = first - np.eye(n, k=-1) + np.eye(n, k=-2)
        changed_before = _before(n, [previous[0] - 2 * previous[1], previous[1]])
    else:
        changed, changed_before = first, _before(n, [-previous[1]])
    rows, limits = [], []
    for matrix, before, limit in ((moved, moved_before, reach), (changed, changed_before, change)):
        if np.isfinite(limit):
            rows += [matrix, -matrix]
            limits += [limit - before, limit + before]
    distances = np.eye(n)
    upper = np.block([[np.eye(n), -distances], [-np.eye(n), -distances], *([row, np.zeros((n, n))] for row in rows)])
    solution = linprog(
        np.concatenate([np.zeros(n), np.ones(n)]),
        A_ub=upper,
        b_ub=np.concatenate([plan, -plan, *limits]),
        bounds=[bounds] * n + [(0, None)] * n,
        method="highs",
    )
    return np.asarray(solution.x[:n]) if solution.status == 0 else None


def _approach(plan: np.ndarray, last: float, order: int, bounds: tuple[float, float], reach: float) -> np.ndarray:
    """Follow the plan as fast as the limit of velocity allows, within the bounds or towards them."""
    values = []
    for target in np.clip(plan, *bounds):
        last = last + float(np.clip(target - last, -reach, reach)) if order else float(np.clip(target, -reach, reach))
        values.append(last)
    return np.array(values)


def _before(n: int, values: list[float]) -> np.ndarray:
    """What the targets before the plan contribute to the first rows."""
    before = np.zeros(n)
    before[: min(n, len(values))] = values[:n]
    return before


def _upper(limit: np.ndarray | float) -> np.ndarray | float:
    return limit + TOLERANCE * np.maximum(1.0, np.abs(limit))


def _lower(limit: np.ndarray | float) -> np.ndarray | float:
    return limit - TOLERANCE * np.maximum(1.0, np.abs(limit))
