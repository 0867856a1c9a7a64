"""What every network must do: keep shapes, start at zero, use each token's time, and learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowchunk.policy.flow import flow_matching_loss
from flowchunk.policy.networks import NETWORKS
from flowchunk.policy.networks.conditioning import (
    TimeAndCondition,
    embedded_once,
    geometric_frequencies,
    sinusoidal_embedding,
    time_per_sample,
)

SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"width": 32, "blocks": 2},
    "mixer": {"width": 32, "blocks": 2},
    "dit": {"width": 32, "blocks": 2},
    "unet1d": {"channels": (8, 16), "width": 16, "kernel": 3},
    "gru": {"width": 32, "blocks": 1},
}
BATCH, CONDITION = 5, 7

each_network = pytest.mark.parametrize("name", NETWORKS)


def make(name: str, *, horizon: int = 8, action_size: int = 2, perturbed: bool = True) -> nn.Module:
    """A small network; perturbed, so that what starts at zero does not hide what is broken behind it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = NETWORKS[name](
            horizon=horizon, action_size=action_size, condition_size=CONDITION, **SMALL.get(name, {})
        )
        if perturbed:
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def inputs(*, horizon: int = 8, action_size: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """x (B, H, D), t (B,), condition (B, C)."""
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(BATCH, horizon, action_size, generator=generator),
        torch.rand(BATCH, generator=generator),
        torch.randn(BATCH, CONDITION, generator=generator),
    )


@each_network
@pytest.mark.parametrize(("horizon", "action_size"), [(4, 1), (8, 3), (16, 10)])
def test_the_velocity_is_like_the_chunk(name: str, horizon: int, action_size: int) -> None:
    network = make(name, horizon=horizon, action_size=action_size)
    x, t, condition = inputs(horizon=horizon, action_size=action_size)
    velocity = network(x, t, condition)
    assert velocity.shape == x.shape
    assert velocity.dtype == x.dtype
    assert velocity.isfinite().all()
    assert (velocity.std(0) > 0).all()


@each_network
def test_it_starts_as_the_zero_velocity(name: str) -> None:
    x, t, condition = inputs()
    assert torch.equal(make(name, perturbed=False)(x, t, condition), torch.zeros_like(x))


@each_network
def test_a_time_per_sample_is_the_same_time_for_each_token(name: str) -> None:
    network, (x, t, condition) = make(name), inputs()
    per_token = t[:, None].expand(-1, x.shape[1])
    torch.testing.assert_close(network(x, per_token, condition), network(x, t, condition), rtol=1e-4, atol=1e-5)


@each_network
@pytest.mark.parametrize("tokens", [False, True])
def test_without_a_second_time_it_is_the_first(name: str, tokens: bool) -> None:
    network, (x, t, condition) = make(name), inputs()
    t = t[:, None].repeat(1, x.shape[1]) if tokens else t
    torch.testing.assert_close(network(x, t, condition, t_end=t), network(x, t, condition))
    assert not torch.allclose(network(x, t, condition, t_end=t + 0.3), network(x, t, condition), atol=1e-3)


@each_network
def test_time_and_condition_change_the_velocity(name: str) -> None:
    network, (x, t, condition) = make(name), inputs()
    velocity = network(x, t, condition)
    assert not torch.allclose(network(x, 1 - t, condition), velocity, atol=1e-3)
    assert not torch.allclose(network(x, t, -condition), velocity, atol=1e-3)
    assert not torch.allclose(network(-x, t, condition), velocity, atol=1e-3)


@each_network
def test_a_prefix_at_time_one_changes_the_velocity_of_the_rest(name: str) -> None:
    network, (x, t, condition) = make(name), inputs()
    times = t[:, None].repeat(1, x.shape[1])
    times[:, :3] = 1.0
    assert not torch.allclose(network(x, times, condition)[:, 3:], network(x, t, condition)[:, 3:], atol=1e-4)


@each_network
def test_every_token_reaches_every_token(name: str) -> None:
    network, (x, t, condition) = make(name), inputs()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(network(x, t, condition)[:, -1].sum(), x)
    assert (gradient.abs().sum((0, 2)) > 0).all()


@each_network
def test_rows_do_not_depend_on_each_other(name: str) -> None:
    network, (x, t, condition) = make(name), inputs()
    together = network(x, t, condition)
    torch.testing.assert_close(together[2:3], network(x[2:3], t[2:3], condition[2:3]), rtol=1e-4, atol=1e-5)


@each_network
def test_the_gradient_reaches_every_parameter(name: str) -> None:
    network, (x, t, condition) = make(name), inputs()
    loss = flow_matching_loss(lambda x_t, t, c: network(x_t, t, c, t_end=t + 0.1), x, t=t, condition=condition)
    loss.mean().backward()  # type: ignore[no-untyped-call]
    for label, parameter in network.named_parameters():
        assert parameter.grad is not None, label
        assert parameter.grad.abs().max() > 0, label


@each_network
def test_it_overfits_a_small_batch(name: str) -> None:
    network, (x_1, t, condition) = make(name, perturbed=False), inputs()
    x_0 = torch.randn(x_1.shape, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(100):
        loss = flow_matching_loss(network, x_1, condition=condition, x_0=x_0, t=t).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(float(((x_1 - x_0) ** 2).mean()))
    assert losses[-1] < 0.05 * losses[0]


def test_the_time_of_a_sample_is_that_of_its_unknown_tokens() -> None:
    times = torch.tensor([[1.0, 1.0, 0.3, 0.3], [0.8, 0.8, 0.8, 0.8]])
    torch.testing.assert_close(time_per_sample(times), torch.tensor([0.3, 0.8]))
    assert time_per_sample(None) is None


def test_the_embedding_distinguishes_times() -> None:
    t = torch.linspace(0, 1, 101)
    features = sinusoidal_embedding(t, geometric_frequencies(32))
    assert features.shape == (101, 32)
    distances = torch.cdist(features, features) + 10 * torch.eye(101)
    assert distances.min() > 0.1
    torch.testing.assert_close(features[:, :16] ** 2 + features[:, 16:] ** 2, torch.ones(101, 16))


@pytest.mark.parametrize("skip", [False, True])
def test_chunks_of_more_values_than_the_width_need_the_skip(skip: bool) -> None:
    """Data at 0, so the velocity is the noise: 64 numbers, of which 8 pass through the network."""
    torch.manual_seed(0)
    network = NETWORKS["mlp"](horizon=16, action_size=4, condition_size=1, width=8, blocks=1, skip=skip)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    condition = torch.zeros(64, 1)
    for _ in range(300):
        loss = flow_matching_loss(network, torch.zeros(64, 16, 4), condition=condition).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss < 0.3 if skip else loss > 0.7


@each_network
def test_a_held_condition_is_embedded_once_and_the_same(name: str) -> None:
    network = make(name)
    x, t, condition = inputs()
    times = torch.linspace(0.0, 0.9, 4)[:, None].expand(-1, len(x))
    embedding: TimeAndCondition = network.embedding  # type: ignore[assignment]
    embedded: list[int] = []
    embedding.condition.register_forward_hook(lambda *_: embedded.append(1))
    with torch.no_grad():
        expected = [network(x, t, condition) for t in times]
        other = network(x, t, condition + 1)
        assert len(embedded) == 5
        with embedded_once(network, condition):
            found = [network(x, t, condition) for t in times]
            assert len(embedded) == 6
            assert torch.equal(network(x, t, condition + 1), other), "another condition is embedded as ever"
        assert embedding.held is None
    assert all(map(torch.equal, found, expected))


class Projecting(nn.Module):
    """Of a plug-in: it embeds something else than the condition that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.embedding = nn.Linear(CONDITION, 16), TimeAndCondition(16, 16)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, *, t_end: Tensor | None = None) -> Tensor:
        return x * self.embedding(t, self.project(condition)).sum()


def test_other_networks_are_let_alone() -> None:
    x, t, condition = inputs()
    network = Projecting()
    with torch.no_grad():
        expected = network(x, t, condition)
        with embedded_once(network, condition):
            assert torch.equal(network(x, t, condition), expected)
        with embedded_once(nn.Linear(2, 2), torch.zeros(1, 2)):
            pass
