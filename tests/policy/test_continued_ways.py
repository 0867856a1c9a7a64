"""How a chunk continues the old one, where the answer is known: in closed form, and by networks trained on two ways."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.evaluation.gaussian_mixture import mixture_velocity, sample_mixture
from flowchunk.policy.flow import flow_matching_loss, integrate, uniform_times
from flowchunk.policy.networks import NETWORKS
from flowchunk.policy.real_time_chunking import (
    PREFIX_METHODS,
    PUBLISHED_GAIN,
    invert,
    pull_directly,
    pull_through_jacobian,
    soft_mask,
)
from flowchunk.policy.sampling import SamplingOptions
from tests.policy.small_policies import HORIZON, make_policy

each_untrained = pytest.mark.parametrize("method", ["guided", "guided_vjp", "noise_inversion"])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Two ways, known in closed form.

LENGTH, ROWS = 16, 1000
SIDE = 0.5
RIGHT = torch.stack([torch.full((LENGTH,), SIDE), torch.arange(LENGTH) / LENGTH], dim=-1)
WAYS = torch.stack([RIGHT, RIGHT * torch.tensor([-1.0, 1.0])])  # (2, H, D): past an obstacle, right or left
STD = 0.05


def two_ways(x_t: Tensor, t: Tensor, condition: Any = None) -> Tensor:
    return mixture_velocity(WAYS.flatten(1), STD)(x_t.flatten(1), t, None).view_as(x_t)


def wrong_ways(continued: Tensor, old: Tensor, committed: int) -> float:
    """The fraction of chunks that begin on one side and go on at the other."""
    return float((continued[:, committed:, 0].mean(1).sign() != old[:, :, 0].mean(1).sign()).double().mean())


@pytest.fixture(scope="module")
def old() -> Tensor:
    return sample_mixture(ROWS, WAYS.flatten(1), STD, seeded(0)).view(ROWS, LENGTH, 2)


def guide(pull: Callable[..., Any], old: Tensor, *, committed: int, gain: float, nfe: int = 5) -> Tensor:
    planned = LENGTH - 8 - committed
    target, weight = old.clone(), soft_mask(committed, planned, LENGTH)
    target[:, committed + planned :] = math.inf  # what was not planned has no weight
    target = torch.where(weight > 0, target, 0.0)
    velocity = pull(two_ways, target=target, weight=weight, gain=gain)
    x_0 = torch.randn(ROWS, LENGTH, 2, generator=seeded(1))
    return integrate(velocity, x_0, uniform_times(nfe), condition=torch.zeros(ROWS, 1))


@pytest.mark.parametrize("nfe", [5, 10])
def test_guidance_keeps_the_prefix_and_stays_on_its_way(old: Tensor, nfe: int) -> None:
    continued = guide(pull_directly, old, committed=4, gain=nfe, nfe=nfe)
    torch.testing.assert_close(continued[:, :4], old[:, :4], rtol=0, atol=1e-5)
    assert wrong_ways(continued, old, 4) <= 0.003
    side = SIDE * old[:, :1, 0].sign()
    assert (continued[:, 8:, 0] - side).abs().mean() < 2 * STD, "what was not planned goes on, too"


def test_guidance_through_the_jacobian_mostly_stays_on_its_way(old: Tensor) -> None:
    assert wrong_ways(guide(pull_through_jacobian, old, committed=4, gain=PUBLISHED_GAIN), old, 4) < 0.07


def test_noise_inversion_stays_on_its_way_more_often_than_not(old: Tensor) -> None:
    free = integrate(two_ways, torch.randn(ROWS, LENGTH, 2, generator=seeded(1)), uniform_times(5))
    target = torch.cat([old[:, :4], free[:, 4:]], dim=1)
    noise = invert(two_ways, target, nfe=5)
    other = torch.randn(ROWS, LENGTH, 2, generator=seeded(2))
    continued = integrate(two_ways, torch.cat([noise[:, :4], other[:, 4:]], dim=1), uniform_times(5))
    assert wrong_ways(free, old, 4) == pytest.approx(0.5, abs=0.05)
    assert wrong_ways(continued, old, 4) < 0.2


@pytest.mark.parametrize("t", [0.0, 0.5, 0.8])
def test_a_full_pull_in_a_single_step_is_the_exact_conditional_velocity(old: Tensor, t: float) -> None:
    """The velocity to a known end is (Y - x)/(1 - t)."""
    x = torch.randn(ROWS, LENGTH, 2, generator=seeded(3))
    pulled = pull_directly(two_ways, target=old, weight=torch.ones(LENGTH, 1), gain=1 / (1 - t))
    torch.testing.assert_close(pulled(x, torch.full((ROWS,), t), None), (old - x) / (1 - t), rtol=1e-4, atol=1e-4)


def test_the_pull_through_the_jacobian_of_a_linear_velocity() -> None:
    matrix, generator = torch.randn(2, 2, generator=seeded(0)), seeded(1)
    x, target = torch.randn(2, 5, LENGTH, 2, generator=generator)
    t, weight = torch.rand(5, generator=generator), soft_mask(2, 5, LENGTH)
    weights_of_network = matrix.clone().requires_grad_()
    velocity = pull_through_jacobian(
        lambda x, t, condition: condition[:, :1, None] * x @ weights_of_network, target=target, weight=weight, gain=3.0
    )
    with torch.inference_mode():
        pulled = velocity(x.clone(), t.clone(), torch.ones(5, 1))
    left = (1 - t)[:, None, None]
    error = weight * (target - (x + left * (x @ matrix)))
    torch.testing.assert_close(pulled, x @ matrix + 3 * (error + left * (error @ matrix.T)))
    assert not velocity(x, t, torch.ones(5, 1)).requires_grad, "no graph grows along the integration"
    assert weights_of_network.grad is None


def test_inversion_is_better_with_more_steps() -> None:
    def wide(x_t: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        return mixture_velocity(WAYS.flatten(1), 0.5)(x_t.flatten(1), t, None).view_as(x_t)

    target = sample_mixture(200, WAYS.flatten(1), 0.5, seeded(0)).view(200, LENGTH, 2)
    errors = {
        nfe: float((integrate(wide, invert(wide, target, nfe=nfe), uniform_times(nfe)) - target).abs().mean())
        for nfe in (8, 16, 32)
    }
    assert errors[32] < 0.65 * errors[16] < 0.65**2 * errors[8], errors
    assert errors[32] < 0.03


def test_inversion_of_straight_lines_is_exact_and_never_asks_at_the_end() -> None:
    asked = []

    def straight(x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        asked.append(float(t[0]))
        return torch.full_like(x_t, condition)

    x_1 = torch.randn(3, 4, 2, generator=seeded(0))
    torch.testing.assert_close(invert(straight, x_1, nfe=4, condition=2.0), x_1 - 2)
    assert asked == pytest.approx([0.75, 0.5, 0.25, 0])


# The mask.


def test_the_mask_is_full_on_the_prefix_fades_along_the_tail_and_ends() -> None:
    mask = soft_mask(2, 3, 8)
    faded = [c * (math.exp(c) - 1) / (math.e - 1) for c in (3 / 4, 2 / 4, 1 / 4)]
    torch.testing.assert_close(mask, torch.tensor([1, 1, *faded, 0, 0, 0])[:, None])


@pytest.mark.parametrize(("committed", "planned"), [(0, 0), (0, 8), (8, 0), (3, 5)])
def test_masks_of_any_lengths(committed: int, planned: int) -> None:
    mask = soft_mask(committed, planned, 8).flatten()
    assert mask.shape == (8,)
    assert (mask[:committed] == 1).all()
    assert (mask[committed + planned :] == 0).all()
    between = mask[committed : committed + planned]
    assert ((between > 0) & (between < 1)).all()
    assert (between.diff() < 0).all()


# Trained networks.


@pytest.fixture(scope="module", params=list(NETWORKS))
def trained_policy(request: pytest.FixtureRequest) -> ChunkPolicy:
    """A policy of each network that has learned to go one of two ways."""
    small = {"channels": (8, 16), "width": 32} if request.param == "unet1d" else {"width": 32, "blocks": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = make_policy(network=request.param, network_options=small, perturbed=False)
    ways, generator = 0.7 * torch.tensor([1.0, -1.0])[:, None, None].expand(2, HORIZON, 2), seeded(0)
    optimizer = torch.optim.Adam(policy.network.parameters(), lr=5e-3)
    condition = torch.zeros(64, policy.encoder.condition_size)
    for _ in range(120):
        x_1 = sample_mixture(64, ways.flatten(1), 0.1, generator).view(64, HORIZON, 2)
        x_0, t = torch.randn(x_1.shape, generator=generator), torch.rand(64, generator=generator)
        loss = flow_matching_loss(policy.network, x_1, condition=condition, x_0=x_0, t=t).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return policy


@each_untrained
def test_trained_networks_continue_the_way_of_the_prefix(method: str, trained_policy: ChunkPolicy) -> None:
    """Above all, that the prefix of the noise moves the prefix of the chunk, which noise inversion relies on."""
    rows, committed, model = 200, 3, trained_policy.model
    side = torch.tensor([1.0, -1.0]).repeat(rows // 2)[:, None, None].expand(rows, HORIZON, 2)
    condition = torch.zeros(rows, trained_policy.encoder.condition_size)
    old, sampling = model.denormalize(0.7 * side), SamplingOptions(nfe=5)

    @torch.inference_mode()
    def chunks(name: str | None) -> Tensor:
        given: dict[str, Any] = {"sampling": sampling, "generator": seeded(0)}
        if name is None:
            return model.normalize(model.sample(condition, **given))
        prefix, tail = old[:, :committed], old[:, committed : committed + 2]
        return model.normalize(PREFIX_METHODS[name](model, condition, prefix=prefix, tail=tail, **given))

    def share_beside(x: Tensor) -> float:
        return float((x[:, :committed].mean((1, 2)).sign() != side[:, 0, 0]).double().mean())

    def share_wrong(x: Tensor) -> float:
        return float((x[:, committed:].mean((1, 2)).sign() != side[:, 0, 0]).double().mean())

    free, continued = chunks(None), chunks(method)
    assert share_beside(free) == pytest.approx(0.5, abs=0.12)
    assert share_beside(continued) < 0.2
    assert share_wrong(continued) < 0.25
