"""Conditional flow matching: the loss and the sampler that every domain shares.

The clock runs from noise at t = 0 to data at t = 1: ``x_t = (1 - t)·x_0 + t·x_1``, with velocity ``x_1 - x_0``
(Lipman et al. 2210.02747, Liu et al. 2209.03003). Training regresses the velocity; sampling integrates it upward. Other
ways from noise to data, and other questions to the network on the way, are values of ``path`` (see paths.py).

A *velocity* is any callable ``velocity(x_t, t, condition) -> like x_t``. x is ``(B, …)``; t is ``(B,)``, or ``(B, H)``
where tokens along x's second axis have times of their own. Nothing here knows a network.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from flowchunk.policy.paths import END, FLOW, GaussianPath, Path
from flowchunk.policy.solvers import OPEN_ENDED, Field, Generators, solver
from flowchunk.policy.time_densities import TimeDensity, uniform_time


class Velocity(Protocol):
    """The direction in which x_t moves at time t, given what is known."""

    def __call__(self, x_t: Tensor, t: Tensor, condition: Any, /) -> Tensor: ...


def flow_matching_errors(
    velocity: Velocity,
    x_1: Tensor,
    *,
    condition: Any = None,
    x_0: Tensor | None = None,
    t: Tensor | None = None,
    prefix_length: Tensor | None = None,
    path: Path = FLOW,
    time_density: TimeDensity = uniform_time,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Squared error of the velocity at random points of the path from noise to data, like ``x_1``.

    x_1: data (B, …). x_0, t: noise like x_1 and times (B,), drawn where they are not given. prefix_length: (B,) whole
    numbers; the first so many tokens of x_1 (B, H, D) are known, so they enter clean and at time 1 (2512.05964).
    path: on another path the network is asked for, and weighed by, what that path says.
    """
    batch = x_1.shape[0]
    x_0 = path.noise(tuple(x_1.shape), generator=generator).to(x_1) if x_0 is None else x_0
    t = time_density((batch,), generator=generator).to(x_1) if t is None else t
    if prefix_length is not None:
        t = with_prefix_time(t, prefix_length, x_1.shape[1])
    x_t, target = path.sample(x_0, x_1, t)
    return path.loss(velocity(x_t, t, condition), target, t)


def flow_matching_loss(
    velocity: Velocity,
    x_1: Tensor,
    *,
    mask: Tensor | None = None,
    prefix_length: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Mean squared error of the velocity: the whole of training, as one number.

    mask: (B,) or (B, H), False (or 0) where x_1 is padding. prefix_length: see ``flow_matching_errors``, which takes
    the other options; prefixes are given, so they do not count. Raises ValueError where nothing is left to learn from.
    """
    errors = flow_matching_errors(velocity, x_1, prefix_length=prefix_length, **options)
    weight = torch.ones(x_1.shape[:1], device=x_1.device) if mask is None else mask.to(errors.dtype)
    if prefix_length is not None:
        weight = weight.reshape(len(weight), -1) * ~prefix_mask(prefix_length, x_1.shape[1])
    if not (total := weight.sum()):
        raise ValueError("the mask and the prefix leave no token to learn from")
    return (errors.flatten(weight.ndim).mean(-1) * weight).sum() / total


def prefix_mask(prefix_length: Tensor, horizon: int) -> Tensor:
    """(B, H) booleans, True on the first ``prefix_length[b]`` tokens of row b."""
    return torch.arange(horizon, device=prefix_length.device) < prefix_length[:, None]


def with_prefix_time(t: Tensor, prefix_length: Tensor, horizon: int) -> Tensor:
    """(B, H) times: 1 on the known tokens, t (B,) on the others."""
    return torch.where(prefix_mask(prefix_length, horizon), 1.0, t[:, None])


def uniform_times(nfe: int, *, method: str = "euler", path: Path = FLOW) -> Tensor:
    """The grid of equal steps, 0 … 1, that costs ``nfe`` network calls with this solver.

    A prediction of the noise (or of the posterior) says nothing of the data while alpha is about 0: its estimate of the
    data is its error divided by alpha, and a first step of 1/nfe would carry that along. Such grids begin where alpha
    reaches ``MIN_ALPHA``; x is noise until there. Solvers on the velocity begin there too on curved schedules, whose
    slopes may be infinite at an end, and stay 1e-3 away from t = 1. Raises ValueError if nfe < 1, or if the solver's
    evaluations per step do not divide it.
    """
    stages = solver(method)[1]
    if nfe < 1 or nfe % stages:
        raise ValueError(f"nfe={nfe}: {method} needs a positive multiple of {stages} evaluations")
    start, end = 0.0, 1.0
    if isinstance(path, GaussianPath):
        needs_slopes = method not in OPEN_ENDED and not path.schedule.is_straight
        start = path.first_informative_time if needs_slopes or not path.predicts_from_start else start
        end = 1 - END if needs_slopes else end
    return torch.linspace(start, end, nfe // stages + 1)


def integrate(
    velocity: Velocity,
    x_0: Tensor,
    times: Tensor,
    *,
    condition: Any = None,
    method: str = "euler",
    path: Path = FLOW,
    prefix: Tensor | None = None,
    eta: float = 1.0,
    generator: Generators | None = None,
    callback: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Carry x_0 along the velocity through ``times`` and return it like x_0; keeps no state.

    times: (N + 1,) instants, usually 0 … 1, best on the CPU. path: what the network was trained on. prefix: (B, d, D)
    known first tokens of x (B, H, D); they are set, at time 1, before every step and after the last, so they come back
    exactly. eta, generator: for the ancestral sampler, the only one that draws. callback: called with (t, x) at every
    instant.
    """
    step, _ = solver(method)
    field = Field(velocity, path, condition, prefix, eta=eta, generator=generator)
    reaches_data = float(times[-1]) > 1 - 2 * END
    times = times.to(x_0)
    x = field.with_prefix(x_0)
    for number, (t, t_end) in enumerate(pairwise(times), start=2):
        if callback is not None:
            callback(t, x)
        field.is_last = reaches_data and number == len(times)
        x = field.with_prefix(step(field, x, t, t_end))
    if callback is not None:
        callback(times[-1], x)
    return x


def guided(velocity: Velocity, *, guidance: float, without: Any) -> Velocity:
    """Classifier-free guidance (Ho and Salimans 2207.12598): away from what the network says ``without`` the condition.

    Two network calls for each; guidance 1 is the condition alone, 0 is none. Linear, so right for every reading.
    """

    def away(x_t: Tensor, t: Tensor, condition: Any, **t_end: Tensor) -> Tensor:
        base = velocity(x_t, t, without, **t_end)
        return base + guidance * (velocity(x_t, t, condition, **t_end) - base)

    return away


def reverse_clock(velocity: Velocity) -> Velocity:
    """Turn a velocity of the opposite clock (data at 0, noise at 1: openpi, SD3, diffusers) into one of ours, or back.

    With t' = 1 - t the velocity changes its sign: v(x, t) = -v'(x, 1 - t). Applied twice it is the identity.
    """
    return lambda x_t, t, condition: -velocity(x_t, 1 - t, condition)
