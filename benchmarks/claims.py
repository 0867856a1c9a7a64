"""Common claims about diffusion and flow matching, tested on a ring of eight Gaussians.

usage: python benchmarks/claims.py [--steps 3000]

1. The sign of the velocity and 2. the number of steps: with the exact velocity, so independent of training. 3. Squared or
absolute error and 4. whether the velocity depends on time: with small networks trained here on the package's loss, and on
the same with the absolute error. Distances are sliced Wasserstein, in units of the floor (data against data, 8 pairs).
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from torch import Tensor

from flowchunk.policy.diffusion.paths import FLOW
from flowchunk.policy.evaluation.field import straightness
from flowchunk.policy.evaluation.gaussian_mixture import mixture_velocity, sample_mixture
from flowchunk.policy.evaluation.generative_metrics import metric_floor, sliced_wasserstein
from flowchunk.policy.flow import integrate, uniform_times
from flowchunk.policy.networks import MLP

POINTS, STD = 10_000, 0.15
ANGLES = torch.arange(8) * math.tau / 8
CENTERS = 2.0 * torch.stack([ANGLES.cos(), ANGLES.sin()], dim=-1)
EXACT = mixture_velocity(CENTERS, STD)


def ring(seed: int, n: int = POINTS) -> Tensor:
    """(n, 2) samples of the data."""
    return sample_mixture(n, CENTERS, STD, torch.Generator().manual_seed(seed))


FLOOR = metric_floor(sliced_wasserstein, ((ring(100 + pair), ring(200 + pair)) for pair in range(8)))


def distance(velocity: Any, nfe: int, method: str = "euler") -> float:
    """Distance between generated samples and data, in units of the floor."""
    x_0 = torch.randn(POINTS, 2, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        x_1 = integrate(velocity, x_0, uniform_times(nfe, method=method), method=method)
    return float(sliced_wasserstein(x_1, ring(2))) / FLOOR


def train_velocity(power: int, steps: int) -> Any:
    """The velocity of a network after training it for ``steps`` on |error|^power."""
    torch.manual_seed(0)
    network = MLP(action_size=2, horizon=1, condition_size=1, width=128, blocks=3)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def velocity(x: Tensor, t: Tensor, condition: Any) -> Tensor:
        return network(x[:, None], t, x.new_zeros(len(x), 1))[:, 0]

    for step in range(steps):
        generator, x_1 = torch.Generator().manual_seed(step), ring(1000 + step, 512)
        x_0, t = torch.randn(x_1.shape, generator=generator), torch.rand(len(x_1), generator=generator)
        x_t, target = FLOW.sample(x_0=x_0, x_1=x_1, t=t)
        loss = (velocity(x_t, t, None) - target).abs().pow(power).mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return velocity


def trajectory(velocity: Any, nfe: int = 64) -> Tensor:
    """(nfe + 1, 2000, 2) positions of 2000 points at every time."""
    points: list[Tensor] = []
    x_0 = torch.randn(2000, 2, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        integrate(velocity, x_0, uniform_times(nfe), callback=lambda t, x: points.append(x))
    return torch.stack(points)


def main(steps: int) -> None:
    """Print the measurements for each claim."""
    print(f"floor {FLOOR:.4f}; all distances in its units")
    print(
        f"sign: data - noise {distance(EXACT, 10):.2f}, noise - data {distance(lambda *a: -EXACT(*a), 10):.1f} (10 steps)"
    )
    for method in ("euler", "midpoint"):
        row = ", ".join(f"{nfe}: {distance(EXACT, nfe, method):.2f}" for nfe in (2, 4, 8, 16, 32))
        print(
            f"{method} by network evaluations: {row}" + (f", 1: {distance(EXACT, 1):.1f}" if method == "euler" else "")
        )
    squared, absolute = train_velocity(2, steps), train_velocity(1, steps)
    print(
        f"trained on squared error {distance(squared, 16):.2f}, on absolute error {distance(absolute, 16):.2f} (16 steps)"
    )
    exact, trained = (straightness(trajectory(velocity)) for velocity in (EXACT, squared))
    print(f"curvature (0: velocity constant in time): exact {exact:.2f}, trained {trained:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    main(parser.parse_args().steps)
