"""Conditional flow matching: the loss and the sampler that every domain shares.

The clock runs from noise at t = 0 to data at t = 1: ``x_t = (1 - t)·x_0 + t·x_1``, with velocity ``x_1 - x_0``
(Lipman et al. 2210.02747, Liu et al. 2209.03003). Training regresses the velocity; sampling integrates it upward.

A *velocity* is any callable ``velocity(x_t, t, condition) -> like x_t``. x is ``(B, …)``; t is ``(B,)``, or ``(B, H)``
where tokens along x's second axis have times of their own. Nothing here knows a network.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

TimeDensity = Callable[..., Tensor]


class Velocity(Protocol):
    """The direction in which x_t moves at time t, given what is known."""

    def __call__(self, x_t: Tensor, t: Tensor, condition: Any, /) -> Tensor: ...


def uniform_time(size: tuple[int, ...], *, generator: torch.Generator | None = None) -> Tensor:
    """Times spread evenly over [0, 1)."""
    return torch.rand(size, generator=generator)


def beta_time(size: tuple[int, ...], *, generator: torch.Generator | None = None) -> Tensor:
    """Times ``0.999·(1 - Beta(1.5, 1))``, biased to noise (Black et al. 2410.24164): the observation settles the rest."""
    return 0.999 * (1.0 - torch.rand(size, generator=generator) ** (2.0 / 3.0))


TIME_DENSITIES: dict[str, TimeDensity] = {"uniform": uniform_time, "beta": beta_time}


def flow_matching_errors(
    velocity: Velocity,
    x_1: Tensor,
    *,
    condition: Any = None,
    x_0: Tensor | None = None,
    t: Tensor | None = None,
    prefix_length: Tensor | None = None,
    time_density: TimeDensity = uniform_time,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Squared error of the velocity at random points of the path from noise to data, like ``x_1``.

    x_1: data (B, …). x_0, t: noise like x_1 and times (B,), drawn where they are not given. prefix_length: (B,) whole
    numbers; the first so many tokens of x_1 (B, H, D) are known, so they enter clean and at time 1 (2512.05964).
    """
    batch = x_1.shape[0]
    x_0 = torch.randn(x_1.shape, generator=generator, dtype=x_1.dtype).to(x_1.device) if x_0 is None else x_0
    t = time_density((batch,), generator=generator).to(x_1) if t is None else t
    if prefix_length is not None:
        t = torch.where(prefix_mask(prefix_length, x_1.shape[1]), 1.0, t[:, None])  # (B, H)
    s = broadcast_time(t, x_1)
    x_t = (1 - s) * x_0 + s * x_1
    return (velocity(x_t, t, condition) - (x_1 - x_0)) ** 2


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


def broadcast_time(t: Tensor, x: Tensor) -> Tensor:
    """View t, (B,) or (B, H), with as many axes as x."""
    return t.reshape(*t.shape, *(1,) * (x.ndim - t.ndim))


def prefix_mask(prefix_length: Tensor, horizon: int) -> Tensor:
    """(B, H) booleans, True on the first ``prefix_length[b]`` tokens of row b."""
    return torch.arange(horizon, device=prefix_length.device) < prefix_length[:, None]


# ---------------------------------------------------------------------------------------------------------------------
# Sampling: one function a solver of dx/dt = velocity(x, t); ``field`` takes x and a scalar time.

Field = Callable[[Tensor, Tensor], Tensor]


def euler_step(field: Field, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """First order, one evaluation."""
    return x + (t_end - t) * field(x, t)


def midpoint_step(field: Field, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """Second order, two evaluations."""
    h = t_end - t
    return x + h * field(x + h / 2 * field(x, t), t + h / 2)


def heun_step(field: Field, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """Second order, two evaluations: the mean of the slopes at both ends."""
    h = t_end - t
    slope = field(x, t)
    return x + h / 2 * (slope + field(x + h * slope, t_end))


def rk4_step(field: Field, x: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """Fourth order, four evaluations: the classical Runge-Kutta step."""
    h = t_end - t
    k1 = field(x, t)
    k2 = field(x + h / 2 * k1, t + h / 2)
    k3 = field(x + h / 2 * k2, t + h / 2)
    k4 = field(x + h * k3, t_end)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


SOLVERS: dict[str, tuple[Callable[[Field, Tensor, Tensor, Tensor], Tensor], int]] = {
    "euler": (euler_step, 1),
    "midpoint": (midpoint_step, 2),
    "heun": (heun_step, 2),
    "rk4": (rk4_step, 4),
}
"""Name → (step, evaluations a step)."""


def uniform_times(nfe: int, *, method: str = "euler") -> Tensor:
    """The grid 0 … 1 of equal steps that costs ``nfe`` network calls with this solver.

    Raises ValueError where nfe < 1 or where the solver's evaluations a step do not divide it.
    """
    stages = _solver(method)[1]
    if nfe < 1 or nfe % stages:
        raise ValueError(f"nfe={nfe}: {method} needs a positive multiple of {stages} evaluations")
    return torch.linspace(0.0, 1.0, nfe // stages + 1)


def integrate(
    velocity: Velocity,
    x_0: Tensor,
    times: Tensor,
    *,
    condition: Any = None,
    method: str = "euler",
    prefix: Tensor | None = None,
    callback: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Carry x_0 along the velocity through ``times`` and return it like x_0; draws nothing, keeps no state.

    times: (N + 1,) instants, usually 0 … 1. prefix: (B, d, D) known first tokens of x (B, H, D); they are set, at time
    1, before every step and after the last, so they come back exactly. callback: called with (t, x) at every instant.
    """
    step, _ = _solver(method)
    known = 0 if prefix is None else prefix.shape[1]

    def with_prefix(x: Tensor) -> Tensor:
        return x if prefix is None else torch.cat([prefix, x[:, known:]], dim=1)

    def field(x: Tensor, t: Tensor) -> Tensor:
        if prefix is None:
            return velocity(x, t.expand(x.shape[0]), condition)
        token_times = torch.cat([t.new_ones(known), t.expand(x.shape[1] - known)])
        return velocity(with_prefix(x), token_times.expand(x.shape[0], -1), condition)

    times = times.to(x_0)
    x = with_prefix(x_0)
    for t, t_end in pairwise(times):
        if callback is not None:
            callback(t, x)
        x = with_prefix(step(field, x, t, t_end))
    if callback is not None:
        callback(times[-1], x)
    return x


def reverse_clock(velocity: Velocity) -> Velocity:
    """Turn a velocity of the opposite clock (data at 0, noise at 1: openpi, SD3, diffusers) into one of ours, or back.

    With t' = 1 - t the velocity changes its sign: v(x, t) = -v'(x, 1 - t). Applied twice it is the identity.
    """
    return lambda x_t, t, condition: -velocity(x_t, 1 - t, condition)


def _solver(method: str) -> tuple[Callable[[Field, Tensor, Tensor, Tensor], Tensor], int]:
    if method not in SOLVERS:
        raise ValueError(f"unknown solver {method!r}; there are {', '.join(SOLVERS)}")
    return SOLVERS[method]
