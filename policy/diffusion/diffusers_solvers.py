"""The schedulers of `diffusers` as solvers for networks trained here: the reference implementations of DDPM and DDIM."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowchunk.policy.diffusion.paths import GaussianPath
from flowchunk.policy.diffusion.schedules import discrete_betas
from flowchunk.policy.diffusion.solvers import Solver, VectorField

NUM_GRID_STEPS = 100
"""Steps of the discrete grid, as in Diffusion Policy (2303.04137)."""


def make_scheduler(kind: str, path: GaussianPath, num_steps: int) -> Any:
    """The scheduler of `diffusers` whose class is called ``kind``, for this path and ``num_steps`` steps.

    Their step k is at noise level (k + 1)/100, our t = 1 - (k + 1)/100. With fewer than 100 steps their default spacing
    ("leading") starts a little after the beginning of the grid, and treats pure noise as x_t of that time.
    """
    import diffusers  # slow to load

    limit = getattr(path.prediction, "clip_sample_range", None)
    scheduler = getattr(diffusers, kind)(
        num_train_timesteps=NUM_GRID_STEPS,
        trained_betas=discrete_betas(path.schedule, NUM_GRID_STEPS).tolist(),
        prediction_type=path.prediction.diffusers_name,
        clip_sample=limit is not None,
        **({} if limit is None else {"clip_sample_range": limit}),
    )
    scheduler.set_timesteps(num_steps)
    return scheduler


def time_grid(nfe: int, path: GaussianPath, *, kind: str) -> Tensor:
    """(nfe + 1,) the times of the scheduler's steps, then 1. Raises ValueError for more steps than its grid has."""
    if nfe > NUM_GRID_STEPS:
        raise ValueError(f"nfe={nfe}: the solvers of diffusers take from 1 to {NUM_GRID_STEPS} steps")
    timesteps = make_scheduler(kind, path, nfe).timesteps
    return torch.tensor([*(1 - (float(k) + 1) / NUM_GRID_STEPS for k in timesteps), 1.0])


def step(field: VectorField, x: Tensor, t: Tensor, t_end: Tensor, *, kind: str) -> Tensor:
    """One step of the scheduler. The noise that DDPM adds comes from the field's generator, or one generator per row."""
    if field.memory is None:
        scheduler = make_scheduler(kind, field.gaussian, field.num_steps)
        field.memory = scheduler, iter(scheduler.timesteps.tolist())
    scheduler, timesteps = field.memory
    output = field.network(x, t.expand(len(x)), field.condition)
    generator = list(field.generator) if isinstance(field.generator, Sequence) else field.generator
    x_end: Tensor = scheduler.step(output, next(timesteps), x, generator=generator).prev_sample
    return x_end


def _solver(kind: str) -> Solver:
    return Solver(
        partial(step, kind=kind),
        follows="endpoints",
        keeps_prefix=False,
        grid=partial(time_grid, kind=kind),
        diffusers_only=True,
    )


DIFFUSERS_DDPM = _solver("DDPMScheduler")
DIFFUSERS_DDIM = _solver("DDIMScheduler")
