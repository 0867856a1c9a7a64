"""Open-loop errors and their baselines, compared with numbers that are worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.image_cache import ImageCache
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from flowchunk.datasets.windows import ImageTensors, Windows
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.evaluation.open_loop import (
    OpenLoopError,
    action_std,
    evaluate_on,
    every_kth,
    open_loop_error,
    predict_chunks,
)
from flowchunk.policy.evaluation.open_loop_baselines import hold_chunks, mean_chunks, nearest_chunks
from flowchunk.policy.normalizer import Normalizer, Scaling
from flowchunk.policy.policy_config import PolicyConfig

ACTION = ActionSpec((ActionDimension("lift", "m", "world"), ActionDimension("grip", "mm", "world")), control_hz=10.0)
STATE = ObservationSpec({"state": ObservationField((2,), names=("height", "angle"), wraps=(1,))})
IMAGE = ObservationSpec({"image": ObservationField((16, 16, 3), camera="front")})


def make_windows(lengths: Sequence[int], actions: Any, *, horizon: int = 2, **options: Any) -> Windows:
    """All windows of episodes of these lengths; by default frame k's state is (k, 0)."""
    total = sum(lengths)
    first = torch.cat([torch.full((n,), sum(lengths[:i])) for i, n in enumerate(lengths)])
    last = torch.cat([torch.full((n,), sum(lengths[: i + 1]) - 1) for i, n in enumerate(lengths)])
    state = torch.stack([torch.arange(total).float(), torch.zeros(total)], dim=1)
    defaults: dict[str, Any] = {"observations": {"state": state}, "observation_steps": 1}
    rows = torch.as_tensor(np.asarray(actions, dtype=np.float32))
    return Windows(
        actions=rows, frames=torch.arange(total), first=first, last=last, horizon=horizon, **(defaults | options)
    )


def make_policy(
    observation_spec: ObservationSpec = STATE, *, scale: float = 1.0, horizon: int = 2, **config: Any
) -> ChunkPolicy:
    """A policy that does something; height is divided by ``scale``."""
    scalings = {"action": Scaling.fit("min_max", [np.array([[-1.0, -1.0], [1.0, 1.0]])])}
    if "state" in observation_spec.fields:
        ends = np.array([[-scale, 0.0], [scale, 1.0]])
        scalings["state"] = Scaling.fit("min_max", [ends], identity=(1,))
    options: dict[str, Any] = {
        "network_options": {"width": 16, "blocks": 1},
        "observation_steps": 1,
        "n_action_steps": 1,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = ChunkPolicy(
            PolicyConfig(**(options | config), horizon=horizon), observation_spec, ACTION, Normalizer(scalings)
        )
        for parameter in policy.parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape)
    return policy.eval()


def with_images(windows: Windows, images: Tensor) -> Windows:
    cache = ImageCache.__new__(ImageCache)  # of which only this is used
    object.__setattr__(cache, "release_pages", lambda: None)
    return replace(windows, observations={}, images=ImageTensors({"image": images}, cache))


# Errors


@pytest.fixture
def windows() -> Windows:
    """One episode of two frames: the window of the second is padded after one step."""
    return make_windows([2], [[1.0, 10.0], [2.0, 20.0]])


def errors_of(chunks: Any, windows: Windows, std: Sequence[float] = (1.0, 1.0)) -> OpenLoopError:
    scale = torch.tensor(std, dtype=torch.float64)
    return open_loop_error(torch.as_tensor(chunks), windows, every_kth(windows), std=scale, action_spec=ACTION)


def test_errors_are_those_worked_out_by_hand(windows: Windows) -> None:
    """Errors (1, 10), (2, 0) of the first window and (-3, 20) of the second, whose padding would count 97² and 80²."""
    chunks = [[[2.0, 20.0], [4.0, 20.0]], [[-1.0, 40.0], [99.0, 100.0]]]
    error = errors_of(chunks, windows, std=(2.0, 10.0))
    squares = {"lift": (0.25, 1.0, 2.25), "grip": (1.0, 0.0, 4.0)}
    assert error.normalized == pytest.approx(math.sqrt((3.5 + 5.0) / 6))
    assert error.per_step == pytest.approx((math.sqrt((0.25 + 1 + 2.25 + 4) / 4), math.sqrt((1 + 0) / 2)))
    lift, grip = error.dimensions
    assert (lift.name, lift.unit, grip.name, grip.unit) == ("lift", "m", "grip", "mm")
    assert lift.mean_absolute == pytest.approx(2.0)
    assert grip.mean_absolute == pytest.approx(10.0)
    assert lift.normalized == pytest.approx(math.sqrt(sum(squares["lift"]) / 3))
    assert grip.normalized == pytest.approx(math.sqrt(sum(squares["grip"]) / 3))
    assert error.worst is grip


def test_the_recorded_chunks_have_no_error(windows: Windows) -> None:
    error = errors_of(windows.batch(every_kth(windows))["action"], windows)
    assert (error.normalized, error.per_step) == (0.0, (0.0, 0.0))


def test_a_step_that_no_window_has_is_not_a_number() -> None:
    windows = make_windows([1, 1], [[0.0, 0.0], [0.0, 0.0]])
    error = errors_of(torch.ones(2, 2, 2), windows)
    assert error.normalized == error.per_step[0] == 1.0
    assert math.isnan(error.per_step[1])


def test_the_scale_is_that_of_the_windows_actions_and_constant_dimensions_keep_theirs() -> None:
    windows = make_windows([4], [[0.0, 5.0], [2.0, 5.0], [0.0, 5.0], [2.0, 5.0]])
    assert action_std(windows).tolist() == [1.0, 1.0]
    wider = replace(windows, actions=windows.actions * torch.tensor([3.0, 1.0]))
    assert action_std(wider).tolist() == [3.0, 1.0]
    assert action_std(replace(wider, frames=torch.tensor([0, 2]))).tolist() == [1.0, 1.0]  # others are not its own


@pytest.mark.parametrize(("count", "at_most", "expected"), [(6, 6, range(6)), (7, 6, (0, 2, 4, 6)), (7, 2, (0, 4))])
def test_windows_are_evenly_spaced(count: int, at_most: int, expected: Sequence[int]) -> None:
    windows = make_windows([count], np.zeros((count, 2)))
    assert every_kth(windows, at_most=at_most).tolist() == list(expected)


def test_no_windows_are_refused(windows: Windows) -> None:
    with pytest.raises(ConfigurationError, match=r"no windows to measure on.*dataset\.validation_fraction"):
        every_kth(replace(windows, frames=windows.frames[:0]))


# Policies


@pytest.mark.parametrize("relative_to", [None, ("state.height", None)])
def test_chunks_are_those_that_the_policy_predicts(relative_to: Any) -> None:
    policy = make_policy(relative_to=relative_to)
    windows = make_windows([3, 2], np.zeros((5, 2)))
    indices = torch.tensor([0, 2, 3])
    chunks = predict_chunks(policy, windows, indices, nfe=2, seed=7)
    state = windows.batch(indices)["observation.state"].numpy()
    expected = policy.predict_chunk({"state": state}, nfe=2, seed=7)
    assert np.array_equal(chunks.numpy(), expected)
    assert not torch.equal(chunks, predict_chunks(policy, windows, indices, nfe=2, seed=8))
    default = predict_chunks(policy, windows, indices, seed=7)
    assert np.array_equal(default.numpy(), policy.predict_chunk({"state": state}, nfe=4, seed=7))


def test_batches_have_noise_of_their_own() -> None:
    policy, windows = make_policy(), make_windows([4], np.zeros((4, 2)))
    windows = replace(windows, observations={"state": torch.zeros(4, 2)})
    chunks = predict_chunks(policy, windows, torch.arange(4), batch_size=2)
    assert chunks.shape == (4, 2, 2)
    assert torch.equal(chunks, predict_chunks(policy, windows, torch.arange(4), batch_size=2))
    assert not torch.equal(chunks[:2], chunks[2:])


def test_chunks_from_images_are_those_that_the_policy_predicts() -> None:
    policy = make_policy(IMAGE, vision="small_conv")
    images = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    windows = with_images(make_windows([3], np.zeros((3, 2))), images)
    expected = policy.predict_chunk({"image": images[:, None].numpy()}, seed=0)
    assert np.array_equal(predict_chunks(policy, windows, torch.arange(3)).numpy(), expected)


def test_an_nfe_that_is_not_admitted_is_refused(windows: Windows) -> None:
    with pytest.raises(ConfigurationError, match="nfe=3"):
        predict_chunks(make_policy(objective="regression"), windows, every_kth(windows), nfe=3)


def test_the_score_is_the_negative_error_at_the_default_nfe() -> None:
    policy, training = make_policy(), make_windows([4], np.random.default_rng(0).normal(size=(4, 2)))
    validation = make_windows([600], np.random.default_rng(1).normal(size=(600, 2)))
    metrics = evaluate_on(validation, training)(policy)
    indices = torch.arange(0, 600, 2)
    chunks = predict_chunks(policy, validation, indices, nfe=4)
    error = open_loop_error(chunks, validation, indices, std=action_std(training), action_spec=ACTION)
    assert metrics == {"action_error": error.normalized, "score": -error.normalized}
    assert metrics == evaluate_on(validation, training)(policy)


# Baselines


def test_the_action_before_is_held() -> None:
    windows = make_windows([3, 2], [[0, 5], [1, 6], [2, 7], [3, 8], [4, 9]], horizon=3)
    chunks = hold_chunks(windows, torch.tensor([0, 1, 2, 3, 4]))
    assert chunks.shape == (5, 3, 2)
    assert chunks[:, 0].tolist() == [[0, 5], [0, 5], [1, 6], [3, 8], [3, 8]]  # at an episode's first frame, its own
    assert torch.equal(chunks, chunks[:, :1].expand(-1, 3, -1))


def test_delta_dimensions_do_not_move_when_held() -> None:
    windows = make_windows([2], [[1, 5], [2, 6]], rest=torch.tensor([math.nan, 0.0]))
    assert hold_chunks(windows, torch.tensor([1])).tolist() == [[[1, 0], [1, 0]]]


@pytest.mark.parametrize("block", [1, 2, 100])
def test_the_nearest_chunk_is_that_of_the_nearest_observation(block: int) -> None:
    """Heights 0, 9, 1 and 3 of training; the chunk at the episode's end is padded with its last action."""
    training = make_windows([4], [[0, 0], [1, 1], [2, 2], [3, 3]])
    training = replace(training, observations={"state": torch.tensor([[0.0, 0], [9, 0], [1, 0], [3, 0]])})
    validation = make_windows([4], np.zeros((4, 2)))
    validation = replace(validation, observations={"state": torch.tensor([[0.2, 0], [7, 0], [50, 0], [2.9, 0]])})
    chunks = nearest_chunks(make_policy(), validation, torch.tensor([0, 1, 3]), training, block=block)
    assert chunks[..., 0].tolist() == [[0, 1], [1, 2], [3, 3]]


def test_nearness_is_that_of_normalized_values() -> None:
    """An angle of 1.5 rad is far from one of 0, unless heights that differ by 3 are farther."""
    training = make_windows([2], [[0, 0], [1, 1]], horizon=1)
    training = replace(training, observations={"state": torch.tensor([[0.0, 0.0], [3.0, 1.5]])})
    validation = replace(training, observations={"state": torch.tensor([[0.0, 1.5], [0.0, 1.5]])})
    for scale, expected in ((1.0, 0), (10.0, 1)):
        policy = make_policy(scale=scale, horizon=1)
        assert nearest_chunks(policy, validation, torch.tensor([0]), training)[..., 0].tolist() == [[expected]]


def test_angles_are_near_across_their_jump() -> None:
    training = make_windows([2], [[0, 0], [1, 1]], horizon=1)
    training = replace(training, observations={"state": torch.tensor([[0.0, 1.0], [0.0, 3.1]])})
    validation = replace(training, observations={"state": torch.tensor([[0.0, -3.1], [0.0, 0.0]])})
    policy = make_policy(horizon=1)
    assert nearest_chunks(policy, validation, torch.tensor([0]), training)[..., 0].tolist() == [[1]]


def test_all_observed_steps_are_compared() -> None:
    """Two episodes that meet at height 1, from below and from above."""
    training = make_windows([2, 2], [[0, 0], [1, 1], [2, 2], [3, 3]], horizon=1, observation_steps=2)
    training = replace(training, observations={"state": torch.tensor([[0.0, 0], [1, 0], [2, 0], [1, 0]])})
    policy = make_policy(horizon=1, observation_steps=2)
    assert nearest_chunks(policy, training, torch.tensor([1, 3]), training)[..., 0].tolist() == [[1], [3]]


def test_without_values_images_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half an image is bright: the left, the right, and in validation nearly the right."""
    images = torch.zeros(3, 16, 16, 3, dtype=torch.uint8)
    images[0, :, :8], images[1, :, 8:], images[2, :, 9:, 0] = 200, 200, 255
    training = with_images(make_windows([2], [[0, 0], [1, 1]], horizon=1), images[:2])
    validation = with_images(make_windows([1], [[9, 9]], horizon=1), images[2:])
    policy = make_policy(IMAGE, horizon=1, vision="small_conv")
    assert nearest_chunks(policy, validation, torch.tensor([0]), training)[..., 0].tolist() == [[1]]
    monkeypatch.setattr("flowchunk.policy.evaluation.open_loop_baselines.MAX_IMAGE_CANDIDATES", 1)
    assert nearest_chunks(policy, validation, torch.tensor([0]), training)[..., 0].tolist() == [[0]]


@pytest.mark.parametrize("block", [1, 2, 100])
def test_the_mean_chunk_is_that_of_all_training_windows(block: int) -> None:
    training = make_windows([3], [[0, 0], [3, 30], [6, 60]])
    validation = make_windows([2], np.zeros((2, 2)))
    chunks = mean_chunks(make_policy(), validation, torch.arange(2), training, block=block)
    assert chunks.tolist() == [[[3, 30], [5, 50]]] * 2


def test_the_mean_of_relative_actions_starts_at_what_is_observed() -> None:
    """The lift is 0, 2, 4 above the heights 0, 1, 2."""
    training = make_windows([3], [[0, 0], [3, 30], [6, 60]], horizon=1)
    validation = replace(training, observations={"state": torch.tensor([[10.0, 0], [20, 0], [30, 0]])})
    policy = make_policy(horizon=1, relative_to=("state.height", None))
    chunks = mean_chunks(policy, validation, torch.tensor([0, 2]), training)
    assert chunks.tolist() == [[[12, 30]], [[32, 30]]]
