"""The exponential moving average of the weights, which is what acts in the end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged(model: nn.Module, *, max_decay: float = 0.9999, every: int = 1) -> AveragedModel:
    """An EMA copy of ``model`` whose decay warms up as ``1 - (1 + k)^-0.75``, capped, for k steps.

    Call ``update_parameters(model)`` every so many steps: averaging costs a pass over all weights, and with the decay of
    so many steps at once the average is the same but for the weights in between.
    """

    def blend(averages: Sequence[Tensor], live: Sequence[Tensor], _: Tensor | int) -> None:
        count = int(average.n_averaged)  # on the CPU; the copy that is handed in would make us wait for the GPU
        decay = min(1.0 - (1.0 + count * every) ** -0.75, max_decay) ** every
        torch._foreach_lerp_(list(averages), list(live), 1.0 - decay)

    average = AveragedModel(model, multi_avg_fn=blend)
    return average
