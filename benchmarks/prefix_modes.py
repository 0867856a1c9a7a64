"""How often a chunk that begins on one side of an obstacle goes on at the other, by prefix method, in closed form.

usage: python benchmarks/prefix_modes.py [--chunks 10000]

Chunks of 16 actions pass right or left, with a spread of 0.05: along parallel lines 1 apart, or along lines that part from 1
to 3. Their velocity is known exactly. The prefix has 1, 2 or 4 actions, of 8 that are executed per chunk, so prefix and tail
have 8 together. Without a method half of the chunks change sides.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from flowchunk.policy.evaluation.gaussian_mixture import mixture_velocity, sample_mixture
from flowchunk.policy.flow import Velocity, integrate, uniform_times
from flowchunk.policy.real_time_chunking import (
    PUBLISHED_GAIN,
    invert,
    pull_directly,
    pull_through_jacobian,
    soft_mask,
)

HORIZON, EXECUTED, STD = 16, 8, 0.05
PROGRESS = torch.arange(HORIZON) / HORIZON
SIDES = {"parallel": torch.full((HORIZON,), 0.5), "parting": 0.5 + PROGRESS}
CONDITION = torch.zeros(1, 1)


def continued(velocity: Velocity, old: Tensor, *, committed: int, nfe: int) -> dict[str, Tensor]:
    """Chunks like ``old`` (B, H, D) that continue its first actions, by method."""
    times, generator = uniform_times(nfe), torch.Generator().manual_seed(1)
    x_0, draft_noise = (torch.randn(old.shape, generator=generator) for _ in range(2))
    weight = soft_mask(committed, HORIZON - EXECUTED - committed, HORIZON)
    direct = pull_directly(velocity, target=old, weight=weight, gain=nfe)
    through_jacobian = pull_through_jacobian(velocity, target=old, weight=weight, gain=PUBLISHED_GAIN)
    draft = integrate(velocity, draft_noise, times)
    noise = invert(velocity, torch.cat([old[:, :committed], draft[:, committed:]], dim=1), nfe=nfe)
    mixed = torch.cat([noise[:, :committed], x_0[:, committed:]], dim=1)
    return {
        "guided": integrate(direct, x_0, times),
        "guided_vjp": integrate(through_jacobian, x_0, times, condition=CONDITION),
        "noise_inversion": integrate(velocity, mixed, times),
    }


def main(chunks: int) -> None:
    """Print the percentages."""
    for name, side in SIDES.items():
        right, left = torch.stack([side, PROGRESS], dim=-1), torch.stack([-side, PROGRESS], dim=-1)
        centers = torch.stack([right, left]).flatten(1)
        exact = mixture_velocity(centers, STD)

        def velocity(x_t: Tensor, t: Tensor, condition: Any, /, exact: Velocity = exact) -> Tensor:
            return exact(x_t.flatten(1), t, condition).view_as(x_t)

        old = sample_mixture(chunks, centers, STD, torch.Generator().manual_seed(0)).view(chunks, HORIZON, 2)
        sides = old[:, :, 0].mean(1).sign()
        for committed in (1, 2, 4):
            for nfe in (4, 5, 10):
                shares = {
                    method: 100 * float((x[:, committed:, 0].mean(1).sign() != sides).double().mean())
                    for method, x in continued(velocity, old, committed=committed, nfe=nfe).items()
                }
                listed = ", ".join(f"{method} {share:.1f} %" for method, share in shares.items())
                print(f"{name}, prefix of {committed}, {nfe} evaluations: {listed}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=10_000)
    main(parser.parse_args().chunks)
