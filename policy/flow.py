"""Conditional flow matching: the loss and the sampler that every domain shares.

The clock runs from noise at t = 0 to data at t = 1: ``x_t = (1 - t)·x_0 + t·x_1``, with velocity ``x_1 - x_0``
(Lipman et al. 2210.02747, Liu et al. 2209.03003). Training regresses the velocity; sampling integrates it from
t = 0 to t = 1. Other paths from noise to data, and other predictions on them, are values of ``path`` (see paths.py).

A *velocity* is any callable ``velocity(x_t, t, condition) -> like x_t``. x is ``(B, …)``; t is ``(B,)``, or ``(B, H)``
where each token along x's second axis has its own time. Networks are in networks/.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from flowchunk.policy.diffusion.paths import FLOW, Generators, ProbabilityPath
from flowchunk.policy.diffusion.schedules import TIME_EPSILON
from flowchunk.policy.diffusion.solvers import SOLVERS, VectorField
from flowchunk.policy.diffusion.time_densities import TimeDensity, uniform_time
from flowchunk.policy.shapes import Data, Mask, Times


@runtime_checkable
class Velocity(Protocol):
    """dx/dt at x_t (B, …) and t, (B,) or (B, H), given the condition; like x_t."""

    def __call__(self, x_t: Tensor, t: Tensor, condition: Any, /) -> Tensor: ...


class Loss(NamedTuple):
    """Squared errors (B,) or (B, H), the mean of each sample or token, and their weights, of the same shape.

    Both are kept, because a batch may be split between processes and micro-batches.
    """

    errors: Tensor
    weight: Tensor

    @classmethod
    def from_errors(cls, errors: Tensor, *, mask: Tensor | None = None, prefix_length: Tensor | None = None) -> Loss:
        """From squared errors (B, …).

        mask: (B,) or (B, H), False (or 0) where the data are padding. prefix_length: (B,) integers, how many of the first
        tokens are known and therefore do not count.
        """
        weight = torch.ones(errors.shape[:1], device=errors.device) if mask is None else mask.to(errors.dtype)
        if prefix_length is not None:
            weight = weight.reshape(len(weight), -1) * ~prefix_mask(prefix_length, errors.shape[1])
        return cls(errors.flatten(weight.ndim).mean(-1), weight)

    def sums(self) -> tuple[Tensor, Tensor]:
        """The weighted sum of the errors, and the sum of the weights."""
        return (self.errors * self.weight).sum(), self.weight.sum()

    def mean(self) -> Tensor:
        """The weighted mean, a scalar. Raises ValueError if all weights are zero."""
        total, weight = self.sums()
        if not weight:
            raise ValueError("the mask and the prefix leave no token to learn from")
        return total / weight


def flow_matching_loss(
    velocity: Velocity,
    x_1: Data,
    *,
    condition: Any = None,
    x_0: Data | None = None,
    t: Times | None = None,
    mask: Mask | None = None,
    prefix_length: Tensor | None = None,
    path: ProbabilityPath = FLOW,
    time_density: TimeDensity = uniform_time,
    generator: torch.Generator | None = None,
) -> Loss:
    """Squared error of the velocity at random points of the path from noise to data: all that training minimizes.

    x_1: data (B, …). x_0, t: noise like x_1 and times (B,), sampled if absent. mask, prefix_length: see
    ``Loss.from_errors``; the known tokens of x_1 (B, H, D) enter clean and at time 1 (2512.05964). path: what the network is
    asked for, and how its errors are weighted.
    """
    batch = x_1.shape[0]
    x_0 = path.sample_noise(tuple(x_1.shape), generator=generator).to(x_1) if x_0 is None else x_0
    t = time_density((batch,), generator=generator).to(x_1) if t is None else t
    if prefix_length is not None:
        t = with_prefix_time(t, prefix_length, x_1.shape[1])
    x_t, target = path.sample(x_0=x_0, x_1=x_1, t=t)
    errors = path.errors(velocity(x_t, t, condition), target, t)
    return Loss.from_errors(errors, mask=mask, prefix_length=prefix_length)


def prefix_mask(prefix_length: Tensor, horizon: int) -> Tensor:
    """(B, H) booleans, True on the first ``prefix_length[b]`` tokens of row b."""
    return torch.arange(horizon, device=prefix_length.device) < prefix_length[:, None]


def with_prefix_time(t: Tensor, prefix_length: Tensor, horizon: int) -> Tensor:
    """(B, H) times: 1 for the known tokens, t (B,) for the others."""
    return torch.where(prefix_mask(prefix_length, horizon), 1.0, t[:, None])


def uniform_times(nfe: int, *, method: str = "euler", path: ProbabilityPath = FLOW) -> Tensor:
    """The time grid of equal steps, 0 … 1, that takes ``nfe`` network evaluations with this solver; see ``Solver.times``.

    Raises ValueError if nfe < 1, or if it is no multiple of the solver's evaluations per step.
    """
    return SOLVERS[method].times(nfe, path, name=method)


def integrate(
    velocity: Velocity,
    x_0: Data,
    times: Tensor,
    *,
    condition: Any = None,
    method: str = "euler",
    path: ProbabilityPath = FLOW,
    prefix: Tensor | None = None,
    eta: float = 1.0,
    generator: Generators | None = None,
    callback: Callable[[Tensor, Tensor], None] | None = None,
) -> Data:
    """Integrate the velocity from noise x_0 (B, …) through ``times``; returns x at the last of them, like x_0.

    times: (N + 1,), usually 0 … 1, preferably on the CPU; if they decrease, from data x_0 to noise,
    with a solver that follows the velocity. path: what the network was trained on. prefix:
    (B, d, D) known first tokens of x (B, H, D); they are set, at time 1, before every step and after the last, so they
    are returned exactly. eta, generator: for solvers that add noise. callback: called with (t, x) at every time. Raises
    ValueError if the solver does not fit the path, or cannot keep a prefix.
    """
    solver = SOLVERS[method]
    if prefix is not None and not solver.keeps_prefix:
        raise ValueError(f"solver={method} cannot keep a prefix; use ddim or ancestral")
    field = VectorField(velocity, path, condition, prefix, eta=eta, generator=generator, num_steps=len(times) - 1)
    reaches_data = float(times[-1]) > 1 - 2 * TIME_EPSILON
    times = times.to(x_0)
    x = field.with_prefix(x_0)
    for number, (t, t_end) in enumerate(pairwise(times), start=1):
        if callback is not None:
            callback(t, x)
        field.is_last_step = reaches_data and number == field.num_steps
        x = field.with_prefix(solver.step(field, x, t, t_end))
    if callback is not None:
        callback(times[-1], x)
    return x


def with_guidance(velocity: Velocity, *, guidance: float, unconditional: Any) -> Velocity:
    """Classifier-free guidance (Ho and Salimans 2207.12598): extrapolates away from the unconditional prediction.

    unconditional: in place of the condition, the one that stands for "none". Two network evaluations per call; with
    guidance 1 only the condition counts, with 0 it is ignored. Linear, so it is right for every prediction.
    """

    def guided(x_t: Tensor, t: Tensor, condition: Any, **t_end: Tensor) -> Tensor:
        base = velocity(x_t, t, unconditional, **t_end)
        return base + guidance * (velocity(x_t, t, condition, **t_end) - base)

    return guided


def reverse_clock(velocity: Velocity) -> Velocity:
    """Turn a velocity of the opposite clock (data at 0, noise at 1: openpi, SD3, diffusers) into one of ours, or back.

    With t' = 1 - t the velocity changes its sign: v(x, t) = -v'(x, 1 - t). Applied twice it is the identity.
    """
    return lambda x_t, t, condition: -velocity(x_t, 1 - t, condition)
