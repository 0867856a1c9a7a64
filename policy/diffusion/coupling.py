"""Which noise sample is paired with which datum."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def optimal_coupling(*, x_0: Tensor, x_1: Tensor) -> Tensor:
    """Noise x_0 (B, …) reordered to minimize the sum of squared distances to data x_1 (B, …): minibatch optimal transport.

    Tong et al. 2302.00482, Pooladian et al. 2304.14772. Only for unconditional data: the noise that a datum is paired with
    would otherwise depend on the condition, which it does not at inference.
    """
    cost = torch.cdist(x_0.flatten(1), x_1.flatten(1)).square()
    rows, columns = linear_sum_assignment(cost.cpu().numpy())
    order = torch.empty(len(x_1), dtype=torch.long)
    order[torch.as_tensor(columns)] = torch.as_tensor(rows)
    return x_0[order.to(x_0.device)]
