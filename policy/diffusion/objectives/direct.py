"""The baselines without a path: regression, and the minimal iterative policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from flowchunk.policy.diffusion.objectives.objective import Network, Objective
from flowchunk.policy.diffusion.paths import Generators
from flowchunk.policy.flow import Loss
from flowchunk.policy.sampling import SamplingOptions

MIP_TIME = 0.9  # of the second evaluation, whose input is 0.9·x_1 with a tenth of noise


class Regression(Objective):
    """Plain regression from the condition. It learns the conditional mean, which may be unlike any datum."""

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
        errors = (predict_from_condition(network, x_1, condition) - x_1) ** 2
        return Loss.from_errors(errors, mask=mask, prefix_length=prefix_length)

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
        """One evaluation; of x_0 only the shape matters."""
        self.times(nfe, sampling=sampling)
        return predict_from_condition(network, x_0, condition)


class MinimalIterativePolicy(Objective):
    """The minimal iterative policy (2512.01809): predict x_1 from the condition, then refine it.

    The second evaluation is trained on x_1 with a tenth of noise.
    """

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
        refined = network(MIP_TIME * x_1 + (1 - MIP_TIME) * noise.x_0, t, condition)
        errors = (predict_from_condition(network, x_1, condition) - x_1) ** 2 + (refined - x_1) ** 2
        return Loss.from_errors(errors, mask=mask, prefix_length=prefix_length)

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
        """Two evaluations: an estimate and its refinement; of x_0 only the shape matters."""
        self.times(nfe, sampling=sampling)
        estimate = predict_from_condition(network, x_0, condition)
        return network(MIP_TIME * estimate, x_0.new_full((len(x_0),), MIP_TIME), condition)


def predict_from_condition(network: Network, like: Tensor, condition: Any) -> Tensor:
    """The network's output (like ``like``) at time 0 for zeros in place of noise: it depends only on the condition."""
    zeros = like.new_zeros(like.shape)
    return network(zeros, like.new_zeros(len(like)), condition)
