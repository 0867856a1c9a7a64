"""The baselines without a path: regression, and the minimal iterative policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from flowchunk.policy.diffusion.objectives.objective import Network, Objective
from flowchunk.policy.diffusion.paths import Generators
from flowchunk.policy.flow import Loss
from flowchunk.policy.sampling import SamplingOptions

MIP_TIME = 0.9


class Regression(Objective):
    """Plain regression: the network knows only the condition. It learns the mean, which may be unlike any datum."""

    valid_nfe = (1,)
    takes_prefix = False

    def loss(
        self,
        network: Network,
        x_1: Tensor,
        *,
        noise: Any,
        condition: Any = None,
        mask: Tensor | None = None,
        prefix_length: Tensor | None = None,
    ) -> Loss:
        return Loss.of((from_condition(network, x_1, condition) - x_1) ** 2, mask=mask, prefix_length=prefix_length)

    def sample(
        self,
        network: Network,
        x_0: Tensor,
        *,
        nfe: int,
        sampling: SamplingOptions,
        condition: Any = None,
        prefix: Tensor | None = None,
        generator: Generators | None = None,
        callback: Callable[[Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """One evaluation; x_0 gives only the shape."""
        self.times(nfe, sampling=sampling)
        return from_condition(network, x_0, condition)


class MinimalIterativePolicy(Objective):
    """The minimal iterative policy (2512.01809): predict x_1 from nothing, and again from x_1 with a tenth of noise."""

    valid_nfe = (2,)
    takes_prefix = False

    def loss(
        self,
        network: Network,
        x_1: Tensor,
        *,
        noise: Any,
        condition: Any = None,
        mask: Tensor | None = None,
        prefix_length: Tensor | None = None,
    ) -> Loss:
        t = x_1.new_full((len(x_1),), MIP_TIME)
        again = network(MIP_TIME * x_1 + (1 - MIP_TIME) * noise.x_0, t, condition)
        errors = (from_condition(network, x_1, condition) - x_1) ** 2 + (again - x_1) ** 2
        return Loss.of(errors, mask=mask, prefix_length=prefix_length)

    def sample(
        self,
        network: Network,
        x_0: Tensor,
        *,
        nfe: int,
        sampling: SamplingOptions,
        condition: Any = None,
        prefix: Tensor | None = None,
        generator: Generators | None = None,
        callback: Callable[[Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """Two evaluations: a first guess, and its refinement; x_0 gives only the shape."""
        self.times(nfe, sampling=sampling)
        guess = from_condition(network, x_0, condition)
        return network(MIP_TIME * guess, x_0.new_full((len(x_0),), MIP_TIME), condition)


def from_condition(network: Network, like: Tensor, condition: Any) -> Tensor:
    """The network's answer at time 0 without noise: all that it knows is the condition."""
    zeros = like.new_zeros(like.shape)
    return network(zeros, like.new_zeros(len(like)), condition)
