"""The schedulers of `diffusers` as solvers, for networks trained here: the baselines as others know them."""

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
    """The scheduler of that class of `diffusers` for this path, set to so many steps.

    Their step k stands at noise level (k + 1)/100, our t = 1 - (k + 1)/100. With fewer than 100 steps their default
    spacing ("leading") begins a little way into the grid, and takes the noise for what it finds there.
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
    """(nfe + 1,) the times of the scheduler's steps, and 1."""
    if nfe > NUM_GRID_STEPS:
        raise ValueError(f"nfe={nfe}: the solvers of diffusers take from 1 to {NUM_GRID_STEPS} steps")
    numbers = make_scheduler(kind, path, nfe).timesteps
    return torch.tensor([*(1 - (float(number) + 1) / NUM_GRID_STEPS for number in numbers), 1.0])


def step(field: VectorField, x: Tensor, t: Tensor, t_end: Tensor, *, kind: str) -> Tensor:
    """One step of the scheduler; one generator, or one per row, makes the noise that DDPM adds."""
    if field.memory is None:
        scheduler = make_scheduler(kind, field.gaussian, field.num_steps)
        field.memory = scheduler, iter(scheduler.timesteps.tolist())
    scheduler, numbers = field.memory
    output = field.network(x, t.expand(len(x)), field.condition)
    generator = list(field.generator) if isinstance(field.generator, Sequence) else field.generator
    moved: Tensor = scheduler.step(output, next(numbers), x, generator=generator).prev_sample
    return moved


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
