"""How far the values that a policy estimates from images are from the recorded ones, on episodes that were not trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from flowchunk.datasets.windows import Windows
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.evaluation.open_loop import every_kth

ESTIMATION_ERROR = "estimation_error"
Metrics = Callable[[ChunkPolicy], Mapping[str, float]]


def with_estimation_errors(evaluate: Metrics, validation: Windows) -> Metrics:
    """``evaluate``, which also measures estimates on held-out windows: ``estimation_error.KEY.NAME``, in the value's unit.

    Raises ConfigurationError if there are no held-out windows.
    """
    indices = every_kth(validation)

    def evaluate_estimates_too(policy: ChunkPolicy) -> dict[str, float]:
        errors = median_estimation_errors(policy, validation, indices)
        return {**evaluate(policy), **{f"{ESTIMATION_ERROR}.{name}": error for name, error in errors.items()}}

    return evaluate_estimates_too


@torch.inference_mode()
def median_estimation_errors(
    policy: ChunkPolicy, windows: Windows, indices: Tensor, *, batch_size: int = 64
) -> dict[str, float]:
    """{KEY.NAME: median absolute error} of each value that the policy estimates, in its unit; of angles the shorter way.

    windows: whose images are estimated from, at ``indices`` (n,); they may be on another device than the policy. Values
    without a name are numbered. Empty for a policy that estimates nothing.
    """
    fields = policy.estimated_spec.fields
    found: dict[str, list[Tensor]] = {key: [] for key in fields}
    for rows in torch.split(indices, batch_size) if fields else ():
        batch = windows.batch(rows)
        images = {key: batch[f"observation.{key}"].to(policy.model.device) for key in policy.observation_spec.images}
        estimates = policy.with_estimates(images)
        for key, field in fields.items():
            error = estimates[key][:, -1].cpu() - batch[f"observation.{key}"][:, -1].cpu()
            error = error.reshape(len(error), -1)
            wraps = list(field.wraps)
            error[:, wraps] = torch.atan2(error[:, wraps].sin(), error[:, wraps].cos())
            found[key].append(error.abs())
    return {
        f"{key}.{name}": float(error)
        for key, field in fields.items()
        for name, error in zip(
            field.names or range(field.size), torch.cat(found[key]).quantile(0.5, dim=0), strict=True
        )
    }
