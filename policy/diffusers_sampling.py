"""Sampling through the schedulers of `diffusers`, for networks trained here: the rivals as others know them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flowchunk.policy.paths import GaussianPath
from flowchunk.policy.schedules import discrete_betas
from flowchunk.policy.solvers import Generators

GRID_STEPS = 100
"""Steps of the discrete grid, as in Diffusion Policy (2303.04137)."""

DIFFUSERS_SOLVERS = {"diffusers_ddpm": "DDPMScheduler", "diffusers_ddim": "DDIMScheduler"}
PREDICTION_TYPE = {"noise": "epsilon", "x": "sample", "v": "v_prediction"}


def diffusers_generate(
    network: Callable[..., Tensor],
    x_0: Tensor,
    steps: int,
    *,
    path: GaussianPath,
    solver: str,
    condition: Any = None,
    generator: Generators | None = None,
    prefix: Tensor | None = None,
    callback: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Data like x_0 by ``steps`` steps of a scheduler of `diffusers` over a grid of 100.

    Their step k stands at noise level (k + 1)/100, our t = 1 - (k + 1)/100. With fewer than 100 steps their default
    spacing ("leading") begins a little way into the grid, and takes the noise for what it finds there. generator: of the
    noise that DDPM adds. Raises ValueError for a prefix, which their schedulers know nothing of.
    """
    import diffusers  # slow to load

    if prefix is not None:
        raise ValueError(f"solver={solver} cannot keep a prefix; use ddim or ancestral")
    limit = {} if path.x_1_limit is None else {"clip_sample_range": path.x_1_limit}
    scheduler = getattr(diffusers, DIFFUSERS_SOLVERS[solver])(
        num_train_timesteps=GRID_STEPS,
        trained_betas=discrete_betas(path.schedule, GRID_STEPS).tolist(),
        prediction_type=PREDICTION_TYPE[path.reading],
        clip_sample=path.x_1_limit is not None,
        **limit,
    )
    scheduler.set_timesteps(steps)
    listed = list(generator) if isinstance(generator, Sequence) else generator
    x = x_0
    for number in scheduler.timesteps:
        t = torch.as_tensor(1 - (float(number) + 1) / GRID_STEPS).to(x)
        if callback is not None:
            callback(t, x)
        output = network(x, t.expand(len(x)), condition)
        x = scheduler.step(output, int(number), x, generator=listed).prev_sample
    if callback is not None:
        callback(torch.ones(()).to(x), x)
    return x
