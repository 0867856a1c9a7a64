"""Open-loop error: how far predicted chunks are from the recorded ones, on episodes that were not trained on.

It needs no simulator. It says how well a policy imitates from what was recorded; it does not say how well the policy copes
with the situations that its own actions lead to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.specs import ActionSpec
from flowchunk.datasets.windows import Windows
from flowchunk.policy.chunk_policy import ChunkPolicy

MAX_WINDOWS = 512


@dataclass(frozen=True)
class DimensionError:
    """The error of one action dimension.

    mean_absolute: in its unit. normalized: root mean square, as a multiple of the dimension's standard deviation.
    """

    name: str
    unit: str
    mean_absolute: float
    normalized: float


@dataclass(frozen=True)
class OpenLoopError:
    """The error of chunks against recorded ones; padding after an episode's end does not count.

    normalized: root mean square over windows, steps and dimensions of the error divided by the dimension's standard
    deviation: 0 is perfect, and about 1 what a constant action would get. per_step: the same for each of the H steps of the
    chunk; NaN for steps that no window has.
    """

    normalized: float
    per_step: tuple[float, ...]
    dimensions: tuple[DimensionError, ...]

    @property
    def worst(self) -> DimensionError:
        """The dimension with the largest normalized error."""
        return max(self.dimensions, key=lambda dimension: dimension.normalized)


def evaluate_on(validation: Windows, training: Windows) -> Callable[[ChunkPolicy], dict[str, float]]:
    """A function that measures a policy on held-out windows, for ``fit(…, evaluate=…)``.

    It gives ``action_error``, the normalized error at the policy's default number of evaluations, and ``score``, its
    negative. training: windows whose actions give the scale. Raises ConfigurationError if there are no held-out windows.
    """
    std, indices = action_std(training), every_kth(validation)

    def evaluate(policy: ChunkPolicy) -> dict[str, float]:
        chunks = predict_chunks(policy, validation, indices)
        error = open_loop_error(chunks, validation, indices, std=std, action_spec=policy.action_spec)
        return {"action_error": error.normalized, "score": -error.normalized}

    return evaluate


def every_kth(windows: Windows, *, at_most: int = MAX_WINDOWS) -> Tensor:
    """Indices of every k-th window, with the smallest k that gives no more than ``at_most``.

    Raises ConfigurationError if there are no windows.
    """
    if not len(windows):
        raise ConfigurationError("there are no windows to measure on; hold episodes out by dataset.validation_fraction")
    return torch.arange(0, len(windows), math.ceil(len(windows) / at_most), device=windows.frames.device)


def action_std(windows: Windows) -> Tensor:
    """(D,) the standard deviation of the windows' recorded actions, on the CPU; 1 for constant dimensions."""
    actions = windows.actions[windows.frames].cpu().double()
    std, mean = actions.std(0, correction=0), actions.mean(0)
    return torch.where(std <= 1e-6 * mean.abs().clamp(min=1.0), 1.0, std)


@torch.inference_mode()
def predict_chunks(
    policy: ChunkPolicy,
    windows: Windows,
    indices: Tensor,
    *,
    nfe: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> Tensor:
    """The policy's chunks for the windows at ``indices`` (n,), in physical units: (n, H, D) on the CPU.

    The windows may be on another device than the policy. nfe: by default the policy's own. seed: of the noise; the same seed
    and batch size give the same chunks. Raises ConfigurationError for an nfe that the policy does not admit.
    """
    sampling = policy.config.sampling.with_given(nfe=nfe)
    generator = torch.Generator().manual_seed(seed)
    chunks = []
    for rows in torch.split(indices, batch_size):
        batch = windows.batch(rows)
        observation = {
            key: batch[f"observation.{key}"].to(policy.model.device) for key in policy.observation_spec.fields
        }
        chunks.append(policy.sample_chunks(observation, sampling=sampling, generator=generator).cpu())
    return torch.cat(chunks)


def open_loop_error(
    chunks: Tensor, windows: Windows, indices: Tensor, *, std: Tensor, action_spec: ActionSpec
) -> OpenLoopError:
    """The error of chunks (n, H, D), in physical units, against the recorded ones of the windows at ``indices`` (n,).

    std: (D,) from ``action_std`` of the training windows.
    """
    recorded = replace(windows, images=None).batch(indices)
    mask = recorded["mask"].cpu()
    error = chunks.cpu().double() - recorded["action"].cpu().double()
    squares = (error / std) ** 2
    of_dimension = squares[mask].mean(0)  # (D,)
    absolute = error[mask].abs().mean(0)
    of_step = torch.where(mask, squares.mean(-1), 0.0).sum(0) / mask.sum(0)  # (H,)
    dimensions = zip(action_spec.dimensions, absolute.tolist(), of_dimension.sqrt().tolist(), strict=True)
    return OpenLoopError(
        normalized=float(of_dimension.mean().sqrt()),
        per_step=tuple(of_step.sqrt().tolist()),
        dimensions=tuple(DimensionError(d.name, d.unit, mean, normalized) for d, mean, normalized in dimensions),
    )
