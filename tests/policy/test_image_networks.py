"""What every network for images must do: keep shapes, start at zero, use time and condition, and learn."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowchunk.policy.flow import flow_matching_loss
from flowchunk.policy.networks.image_networks import IMAGE_NETWORKS
from flowchunk.policy.networks.local_conv import LocalConv
from flowchunk.policy.networks.patch_dit import PatchDiT, grid_positions
from flowchunk.policy.networks.unet2d import UNet2D, default_widths

SMALL: dict[str, dict[str, Any]] = {
    "unet2d": {"widths": (16, 16)},
    "patch_dit": {"width": 32, "blocks": 2},
    "local_conv": {"width": 32, "blocks": 3},
}
BATCH, CONDITION = 3, 7

each_network = pytest.mark.parametrize("name", IMAGE_NETWORKS)


def seeded(make: Callable[..., nn.Module], *, perturbed: bool = True) -> nn.Module:
    """A network; perturbed, so that what starts at zero does not hide what is broken behind it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make(condition_size=CONDITION)
        if perturbed:
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def small(name: str, *, channels: int = 1, size: int = 8, perturbed: bool = True) -> nn.Module:
    return seeded(partial(IMAGE_NETWORKS[name], channels=channels, size=size, **SMALL[name]), perturbed=perturbed)


def inputs(*, channels: int = 1, size: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """x (B, C, size, size), t (B,), condition (B, condition_size)."""
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(BATCH, channels, size, size, generator=generator),
        torch.rand(BATCH, generator=generator),
        torch.randn(BATCH, CONDITION, generator=generator),
    )


@each_network
@pytest.mark.parametrize(("size", "channels"), [(8, 1), (16, 3), (28, 1)])
def test_the_velocity_has_the_shape_of_the_image(name: str, size: int, channels: int) -> None:
    network = seeded(partial(IMAGE_NETWORKS[name], channels=channels, size=size))
    x, t, condition = inputs(channels=channels, size=size)
    with torch.no_grad():
        velocity = network(x, t, condition)
    assert velocity.shape == x.shape
    assert velocity.dtype == x.dtype
    assert velocity.isfinite().all()
    assert (velocity.std(0) > 0).all()


@each_network
def test_it_starts_as_the_zero_velocity(name: str) -> None:
    x, t, condition = inputs()
    assert torch.equal(small(name, perturbed=False)(x, t, condition), torch.zeros_like(x))


@each_network
def test_without_a_second_time_it_is_the_first(name: str) -> None:
    network, (x, t, condition) = small(name), inputs()
    torch.testing.assert_close(network(x, t, condition, t_end=t), network(x, t, condition))
    assert not torch.allclose(network(x, t, condition, t_end=t + 0.3), network(x, t, condition), atol=1e-3)


@each_network
def test_time_condition_and_image_change_the_velocity(name: str) -> None:
    network, (x, t, condition) = small(name), inputs()
    velocity = network(x, t, condition)
    assert not torch.allclose(network(x, 1 - t, condition), velocity, atol=1e-3)
    assert not torch.allclose(network(x, t, -condition), velocity, atol=1e-3)
    assert not torch.allclose(network(-x, t, condition), velocity, atol=1e-3)


@each_network
def test_rows_do_not_depend_on_each_other(name: str) -> None:
    network, (x, t, condition) = small(name), inputs()
    together = network(x, t, condition)
    torch.testing.assert_close(together[2:], network(x[2:], t[2:], condition[2:]), rtol=1e-4, atol=1e-5)


@each_network
def test_the_gradient_reaches_every_parameter(name: str) -> None:
    network, (x, t, condition) = small(name), inputs()
    loss = flow_matching_loss(lambda x_t, t, c: network(x_t, t, c, t_end=t + 0.1), x, t=t, condition=condition)
    loss.mean().backward()  # type: ignore[no-untyped-call]
    for label, parameter in network.named_parameters():
        assert parameter.grad is not None, label
        if not label.endswith("to_k.bias"):  # the softmax of attention ignores what is added to every key
            assert parameter.grad.abs().max() > 0, label


@each_network
def test_it_overfits_a_small_batch(name: str) -> None:
    network, (x_1, t, condition) = small(name, perturbed=False), inputs()
    x_0 = torch.randn(x_1.shape, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = flow_matching_loss(network, x_1, condition=condition, x_0=x_0, t=t).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(float(((x_1 - x_0) ** 2).mean()))
    assert losses[-1] < 0.3 * losses[0]


def influence(network: nn.Module, *, size: int) -> Tensor:
    """(size, size) booleans: which pixels of the input change the middle pixel of the output."""
    x, t, condition = inputs(size=size)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(network(x, t, condition)[:, :, size // 2, size // 2].sum(), x)
    return gradient.abs().sum((0, 1)) > 0


@pytest.mark.parametrize("name", ["unet2d", "patch_dit"])
def test_every_pixel_reaches_every_pixel(name: str) -> None:
    assert influence(small(name), size=8).all()


@pytest.mark.parametrize("receptive_field", [1, 3, 5, 7])
def test_a_local_network_depends_only_on_its_receptive_field(receptive_field: int) -> None:
    make = partial(LocalConv, channels=1, size=11, receptive_field=receptive_field, width=16)
    reach = receptive_field // 2
    seen = torch.zeros(11, 11, dtype=torch.bool)
    seen[5 - reach : 6 + reach, 5 - reach : 6 + reach] = True
    assert torch.equal(influence(seeded(make), size=11), seen)


def test_a_local_network_is_translation_equivariant_away_from_the_edge() -> None:
    network, (x, t, condition) = seeded(partial(LocalConv, channels=1, size=12, width=16)), inputs(size=12)
    moved = network(x.roll(1, dims=3), t, condition)
    torch.testing.assert_close(moved[..., 4:-3], network(x, t, condition)[..., 3:-4], rtol=1e-4, atol=1e-5)


def test_positions_distinguish_patches() -> None:
    positions = grid_positions(4, 32)
    assert positions.shape == (16, 32)
    assert (torch.cdist(positions, positions) + 10 * torch.eye(16)).min() > 0.5
    torch.testing.assert_close(positions[0, 16:], positions[4, 16:])  # the same column


@pytest.mark.parametrize(("size", "levels"), [(8, 2), (15, 1), (16, 3), (28, 3), (32, 4), (64, 4)])
def test_the_u_net_has_the_levels_that_the_size_admits(size: int, levels: int) -> None:
    assert len(default_widths(size)) == levels


def test_options_that_do_not_fit_are_refused_at_construction() -> None:
    shape: dict[str, int] = {"channels": 1, "size": 6, "condition_size": CONDITION}
    with pytest.raises(ValueError, match="multiple of 4 for 3 U-Net levels"):
        UNet2D(**shape, widths=(8, 8, 8))
    with pytest.raises(ValueError, match="multiples of groups=8"):
        UNet2D(**shape, widths=(12,))
    with pytest.raises(ValueError, match="patch=4 does not divide"):
        PatchDiT(**shape, patch=4)
    with pytest.raises(ValueError, match="multiple of 4 and of heads"):
        PatchDiT(**shape, width=30)
    with pytest.raises(ValueError, match="odd number from 1 to 9"):
        LocalConv(**shape, receptive_field=4)
    with pytest.raises(ValueError, match="odd number from 1 to 5"):
        LocalConv(**shape, receptive_field=7, blocks=2)


def test_diffusers_is_not_imported_before_it_is_needed() -> None:
    code = "import sys, flowchunk.policy.networks.image_networks; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
