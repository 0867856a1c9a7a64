"""How a new chunk continues the old one, which is executed while the new one is computed ("prefix methods").

The new chunk starts at its observation. By the time that it is ready, the old chunk's next ``d`` actions have been executed:
the *prefix*, (B, d, D), which the new chunk must begin with. What the old chunk planned after them is its *tail*, (B, m, D).

    trained           the network was trained with prefixes: they enter clean, at time 1 (2512.05964)
    guided            every step pulls the estimated chunk to the old one, without a Jacobian
    guided_vjp        the same through the network's Jacobian, as published (2506.07339)
    noise_inversion   start from noise whose first tokens lead to the prefix (2606.19774)

All return unnormalized chunks (B, H, D). Only ``trained`` ends in the prefix exactly; policies set it after the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from flowchunk.datasets.errors import ConfigurationError, SpecMismatchError
from flowchunk.policy.diffusion.objectives import IntegratedObjective, Objective
from flowchunk.policy.diffusion.paths import GaussianPath, Generators, broadcast_time
from flowchunk.policy.diffusion.predictions import VelocityPrediction
from flowchunk.policy.diffusion.solvers import SOLVERS
from flowchunk.policy.flow import Velocity, integrate, uniform_times
from flowchunk.policy.generative_model import GenerativeModel
from flowchunk.policy.sampling import SamplingOptions
from flowchunk.policy.shapes import Chunk, Condition

if TYPE_CHECKING:
    from flowchunk.policy.chunk_policy import ChunkPolicy

TRAINED = "trained"


class PrefixMethod(Protocol):
    """Chunks (B, H, D) that continue a prefix (B, d, D) and, if the method uses it, a tail (B, m, D); all unnormalized."""

    def __call__(
        self,
        model: GenerativeModel,
        condition: Condition,
        *,
        prefix: Chunk,
        tail: Chunk,
        sampling: SamplingOptions,
        generator: Generators,
    ) -> Chunk: ...


def trained(
    model: GenerativeModel,
    condition: Condition,
    *,
    prefix: Chunk,
    tail: Chunk,
    sampling: SamplingOptions,
    generator: Generators,
) -> Chunk:
    """The prefix enters clean, at time 1, as in training (2512.05964); the tail is ignored."""
    known = prefix if prefix.shape[1] else None
    return model.sample(condition, sampling=sampling, generator=generator, prefix=known)


# -- guidance ---------------------------------------------------------------------------------------------------------


def guided(
    model: GenerativeModel,
    condition: Condition,
    *,
    prefix: Chunk,
    tail: Chunk,
    sampling: SamplingOptions,
    generator: Generators,
    pull: Callable[..., Velocity],
    gain: float | None = None,
) -> Chunk:
    """``pull`` the estimate of the chunk to the old one in every evaluation, by the weights of ``soft_mask``.

    gain: of the pull; by default the number of steps.
    """
    (horizon, _), committed, planned = model.shape, prefix.shape[1], tail.shape[1]
    old = model.normalize(torch.cat([prefix, tail], dim=1))
    target = torch.nn.functional.pad(old, (0, 0, 0, horizon - committed - planned))  # what is padded has weight 0
    weight = soft_mask(committed, planned, horizon).to(target)
    if gain is None:
        gain = len(model.objective.times(model.resolve_nfe(sampling), sampling=sampling)) - 1
    wrap = partial(pull, target=target, weight=weight, gain=gain)
    return model.sample(condition, sampling=sampling, generator=generator, wrap_velocity=wrap)


def soft_mask(committed: int, planned: int, horizon: int) -> Tensor:
    """(H, 1) weights W of the old chunk's actions: 1 for those committed, decaying over those planned, then 0 (2506.07339).

    With e = committed + planned: ``c_i = (e - i)/(planned + 1)``, ``W_i = c_i·(exp(c_i) - 1)/(exp(1) - 1)``.
    """
    end = committed + planned
    c = [1.0] * committed + [(end - i) / (planned + 1) for i in range(committed, end)] + [0.0] * (horizon - end)
    return torch.tensor([[c_i * math.expm1(c_i) / math.expm1(1)] for c_i in c])


def pull_directly(velocity: Velocity, *, target: Tensor, weight: Tensor, gain: float) -> Velocity:
    """``v + gain·W·(Y - x̂)`` with ``x̂ = x + (1 - t)·v``: the published guidance with the identity as its Jacobian.

    If the gain is the number of Euler steps, each moves x by W·(Y - x̂): where W is 1, the last one ends in Y.
    """

    def pulled(x_t: Tensor, t: Tensor, condition: Any, /) -> Tensor:
        v = velocity(x_t, t, condition)
        estimate = x_t + broadcast_time(1 - t, x_t) * v
        return v + gain * weight * (target - estimate)

    return pulled


PUBLISHED_GAIN = 5.0
"""The published limit of the guidance weight (2506.07339)."""


def pull_through_jacobian(velocity: Velocity, *, target: Tensor, weight: Tensor, gain: float) -> Velocity:
    """``v + gain·Jᵀ·W·(Y - x̂)`` with ``x̂ = x + (1 - t)·v`` and ``J = ∂x̂/∂x``: a backward pass per evaluation (2506.07339).

    The published gain is min(5, w(t)) with w = ((1 - t)² + s²t²)/(t·(1 - t)·s²), which is at least 2/s. Chunks vary little
    around the one that a robot continues: for s = 0.2 that is 10, so the limit always holds, and w is left out.
    """

    def pulled(x_t: Tensor, t: Tensor, condition: Any, /) -> Tensor:
        # cuDNN's recurrent layers have no gradients in evaluation mode.
        with torch.inference_mode(False), torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
            x, t, condition = x_t.clone().requires_grad_(), t.clone(), condition.clone()  # no inference tensors
            v = velocity(x, t, condition)
            estimate = x + broadcast_time(1 - t, x) * v
            error = weight * (target - estimate.detach())
            (pull,) = torch.autograd.grad(estimate, x, error)
        return v.detach() + gain * pull

    return pulled


# -- noise inversion --------------------------------------------------------------------------------------------------


def noise_inversion(
    model: GenerativeModel,
    condition: Condition,
    *,
    prefix: Chunk,
    tail: Chunk,
    sampling: SamplingOptions,
    generator: Generators,
) -> Chunk:
    """Start from noise whose first tokens lead to the prefix (PAINT, 2606.19774): three integrations, no gradients.

    A draft is completed to a target that begins with the prefix, and integrated back to its noise; of this noise the first
    tokens are kept, and the others sampled anew. The tail is ignored.
    """
    x_0, committed = model.starting_noise(len(condition), sampling=sampling, generator=generator), prefix.shape[1]
    if committed:
        draft = model.sample(condition, sampling=sampling, generator=generator)
        target = torch.cat([prefix, draft[:, committed:]], dim=1)
        nfe = model.resolve_nfe(sampling)
        inverted = invert(model.network, model.normalize(target), nfe=nfe, condition=condition)
        x_0 = torch.cat([inverted[:, :committed], x_0[:, committed:]], dim=1)
    return model.sample(condition, sampling=sampling, generator=generator, x_0=x_0)


def invert(velocity: Velocity, x_1: Tensor, *, nfe: int, condition: Any = None) -> Tensor:
    """The noise, like x_1, from which ``nfe`` steps of Euler's method lead to about x_1.

    Each step is undone with the velocity at its beginning, but at the x of its end: backward Euler with one fixed-point
    iteration. (The velocity at its end would be taken at t = 1 first, where the noise has left no trace.)
    """

    def velocity_before(x_t: Tensor, t: Tensor, condition: Any, /) -> Tensor:
        return velocity(x_t, (t - 1 / nfe).clamp(min=0), condition)

    return integrate(velocity_before, x_1, uniform_times(nfe).flip(0), condition=condition)


# -- by name ----------------------------------------------------------------------------------------------------------

PREFIX_METHODS: dict[str, PrefixMethod] = {
    TRAINED: trained,
    "guided": partial(guided, pull=pull_directly),
    "guided_vjp": partial(guided, pull=pull_through_jacobian, gain=PUBLISHED_GAIN),
    "noise_inversion": noise_inversion,
}
"""Name → method, as in ``SamplingOptions.prefix_method``."""


def objection(method: str, objective: Objective, sampling: SamplingOptions) -> str | None:
    """Why a policy with this objective cannot continue a chunk by this method; None if it can."""
    if method not in PREFIX_METHODS:
        return f"is unknown; there are {', '.join(PREFIX_METHODS)}"
    if method == TRAINED:
        return None if objective.takes_prefix else f"is impossible with objective={objective.name}"
    solver = objective.solver_name(sampling)
    has_velocity = isinstance(objective, IntegratedObjective) and (
        isinstance(objective.path, GaussianPath) and isinstance(objective.path.prediction, VelocityPrediction)
    )
    if has_velocity and SOLVERS[str(solver)].follows == "velocity":
        return None
    velocity_solvers = ", ".join(name for name in SOLVERS if SOLVERS[name].follows == "velocity")
    return (
        f"changes the velocity on a straight path, so it needs objective=flow and one of solver={velocity_solvers}, "
        f"not objective={objective.name}" + (f" with solver={solver}" if solver else "")
    )


def check_continuation(policy: ChunkPolicy, committed: int, planned: int) -> None:
    """Refuse lengths of prefix and tail that this policy does not take.

    Raises ConfigurationError for a prefix that is too long, SpecMismatchError if both together are longer than a chunk.
    """
    config, given = policy.config, f"a prefix of {committed} actions was given"
    if committed > policy.longest_prefix and policy.prefix_method != TRAINED:
        raise ConfigurationError(
            f"{given}, but prefix_method={policy.prefix_method} takes at most horizon - 1 = {config.horizon - 1}"
        )
    if committed >= config.horizon:
        raise ConfigurationError(f"{given}, but a chunk has {config.horizon}, and goes on after its prefix")
    if committed > policy.longest_prefix:
        others = " or ".join(f'prefix_method="{name}"' for name in policy.prefix_methods if name != TRAINED)
        raise ConfigurationError(
            f"{given}, but this policy was trained with prefix_max={config.prefix_max}; train with "
            f"policy.prefix_max={committed}" + (f", or use with_sampling({others})" if others else "")
        )
    if committed + planned > config.horizon:
        raise SpecMismatchError(
            f"a prefix of {committed} and a tail of {planned} actions were given, more than horizon={config.horizon}; give "
            "what is left of the old chunk"
        )
