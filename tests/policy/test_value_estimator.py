"""Policies that estimate from images what their demonstrations recorded, and act on the estimates."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowchunk.datasets.errors import ConfigurationError, SpecMismatchError
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from flowchunk.datasets.windows import Windows
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.encoders.value_estimator import HUBER_DELTA, ValueEstimator, split_estimated
from flowchunk.policy.evaluation.estimation_error import median_estimation_errors
from flowchunk.policy.normalizer import Normalizer, Scaling
from flowchunk.policy.planar_frame import FRAME
from flowchunk.policy.policy_config import PolicyConfig

BOX = ObservationField((4,), ("angle", "x", "y", "width"), wraps=(0,))
HEIGHT = ObservationField(())
FIELDS = {"box": BOX, "image": ObservationField((20, 20, 3), camera="top"), "hand": ObservationField((2,), ("x", "y"))}
DATA = ObservationSpec({**FIELDS, "height": HEIGHT})
ACTION = ActionSpec(tuple(ActionDimension(name, "m", "world") for name in "xy"), control_hz=10.0)
ESTIMATED = ("box", "height")
FRAME_OPTIONS = {
    "origin": ["box.x", "box.y"],
    "angle": "box.angle",
    "points": [["hand.x", "hand.y"]],
    "actions": [["x", "y"]],
}
HORIZON, STEPS, ROWS = 4, 2, 6


def make_normalizer() -> Normalizer:
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"box": (4,), "hand": (2,), "height": (), "action": (2,), FRAME: (9,)}
    return Normalizer(
        {
            key: Scaling.fit(
                "min_max", [3 + 2 * random.normal(size=(50, *shape))], identity=(0,) if key == "box" else ()
            )
            for key, shape in shapes.items()
        }
    )


def make_policy(crop: tuple[int, int] | None = None, **changes: Any) -> ChunkPolicy:
    defaults: dict[str, Any] = {
        "network_options": {"width": 16, "blocks": 1},
        "horizon": HORIZON,
        "n_action_steps": 2,
        "vision": "small_conv",
        "vision_options": {"widths": [8, 8], "keypoints": 3},
        "estimated": ESTIMATED,
    }
    torch.manual_seed(1)
    policy = ChunkPolicy(PolicyConfig(**(defaults | changes)), DATA.cropped(crop), ACTION, make_normalizer())
    for parameter in policy.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return policy


def make_batch(rows: int = ROWS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = {key: field.shape for key, field in DATA.values.items()}
    images = torch.randint(0, 256, (rows, STEPS, 20, 20, 3), generator=generator, dtype=torch.uint8)
    observed = {key: 3 + torch.randn(rows, STEPS, *shape, generator=generator) for key, shape in values.items()}
    for key in ESTIMATED:  # as ``Windows.latest_only`` makes them
        observed[key] = observed[key][:, -1:].repeat_interleave(STEPS, dim=1)
    return {f"observation.{key}": rows for key, rows in {**observed, "image": images}.items()} | {
        "action": torch.randn(rows, HORIZON, 2, generator=generator),
        "mask": torch.arange(HORIZON) < 1 + torch.arange(rows)[:, None] % HORIZON,
    }


def observed(batch: dict[str, Tensor], *keys: str) -> dict[str, np.ndarray]:
    return {key: batch[f"observation.{key}"].numpy() for key in keys}


class Known(nn.Module):
    """A perfect network: it knows what is to be estimated."""

    def __init__(self, targets: Tensor) -> None:
        super().__init__()
        self.values = targets

    def forward(self, features: Tensor) -> Tensor:
        return self.values


def know(policy: ChunkPolicy, batch: dict[str, Tensor]) -> None:
    """Let the policy estimate the batch's true values."""
    estimator = policy.encoder.estimator
    assert estimator is not None
    latest = {
        key: policy.normalizer.normalize(key, batch[f"observation.{key}"][:, -1:]) for key in estimator.spec.fields
    }
    estimator.network = Known(estimator.targets(latest))  # type: ignore[assignment]


def test_estimates_are_the_inverse_of_what_is_learned() -> None:
    policy, batch = make_policy(), make_batch()
    know(policy, batch)
    observation = {key: batch[f"observation.{key}"] for key in DATA.fields}
    found = policy.with_estimates({key: observation[key] for key in ("image", "hand")})
    assert {key: tuple(values.shape) for key, values in found.items()} == {
        key: (ROWS, STEPS, *field.shape) for key, field in DATA.fields.items()
    }
    turns = (found["box"][..., 0] - observation["box"][..., 0]) / (2 * math.pi)
    torch.testing.assert_close(turns, turns.round(), atol=1e-5, rtol=0)
    assert found["box"][..., 0].abs().max() <= math.pi
    torch.testing.assert_close(found["box"][..., 1:], observation["box"][..., 1:])
    torch.testing.assert_close(found["height"], observation["height"])
    assert policy._estimation_errors(observation, None).abs().max() < 1e-9


def windows(rows: dict[str, Tensor]) -> Windows:
    """Held-out windows, the rows of one batch."""

    class Held:
        def batch(self, indices: Tensor) -> dict[str, Tensor]:
            return {key: values[indices] for key, values in rows.items()}

    return cast("Windows", Held())


def test_estimates_are_measured_against_what_was_recorded_and_angles_the_shorter_way() -> None:
    policy, batch = make_policy(), make_batch(rows=5)
    know(policy, batch)
    off = torch.tensor([0.0, 0.5, 1.0, 1.5, 6.0])  # 0.28 the other way round
    box, height = (batch[f"observation.{key}"].clone() for key in ESTIMATED)
    box[:, -1, 0] += off
    box[:, -1, 2] -= off
    height[:, -1] += 2 * off
    held = windows({**batch, "observation.box": box, "observation.height": height})
    errors = median_estimation_errors(policy, held, torch.arange(5))
    expected = {"box.angle": 0.5, "box.x": 0.0, "box.y": 1.0, "box.width": 0.0, "height.0": 2.0}
    assert errors == pytest.approx(expected, abs=1e-4)


def test_estimates_are_measured_at_the_indices_in_batches_of_any_size() -> None:
    policy, held = make_policy(), windows(make_batch())
    some, all_rows = torch.tensor([4, 1, 0]), torch.arange(ROWS)
    errors = median_estimation_errors(policy, held, some)
    assert errors != pytest.approx(median_estimation_errors(policy, held, all_rows), rel=0.01)
    assert errors == pytest.approx(median_estimation_errors(policy, held, some, batch_size=2), rel=1e-3)
    chosen = windows(held.batch(some))
    assert errors == pytest.approx(median_estimation_errors(policy, chosen, torch.arange(3)), rel=1e-3)


def test_a_policy_that_estimates_nothing_has_no_such_errors() -> None:
    policy = make_policy(estimated=(), estimate_every=1)
    assert median_estimation_errors(policy, windows(make_batch()), torch.arange(ROWS)) == {}


def test_the_error_of_an_estimate_is_hubers() -> None:
    estimator = ValueEstimator(3, ObservationSpec({"height": HEIGHT, "hand": ObservationField((2,))}))
    estimator.network = Known(torch.zeros(4, 3))  # type: ignore[assignment]
    normalizer = Normalizer(
        {key: Scaling.fit("identity", [np.zeros((2, *shape))]) for key, shape in {"height": (), "hand": (2,)}.items()}
    )
    off = torch.tensor([0.0, HUBER_DELTA / 2, HUBER_DELTA, 3.0])
    observation = {"height": torch.stack([torch.full((4,), 99.0), off], dim=1), "hand": torch.zeros(4, 2, 2)}
    expected = torch.where(off < HUBER_DELTA, off**2 / 2, HUBER_DELTA * (off - HUBER_DELTA / 2)) / 3
    torch.testing.assert_close(estimator.errors(torch.zeros(4, 3), observation, normalizer), expected)


@pytest.mark.parametrize("frame", [None, FRAME_OPTIONS])
def test_a_policy_acts_on_its_estimates(frame: dict[str, Any] | None) -> None:
    """As one does that observes the true values; images have no other effect."""
    policy, batch = make_policy(frame=frame), make_batch()
    policy.eval()
    assert set(policy.observation_spec.fields) == {"image", "hand"}
    know(policy, batch)
    chunk = policy.predict_chunk(observed(batch, "image", "hand"), seed=0)
    states = ObservationSpec({"hand": FIELDS["hand"], "box": BOX, "height": HEIGHT})
    config = PolicyConfig(network_options={"width": 16, "blocks": 1}, horizon=HORIZON, n_action_steps=2, frame=frame)
    sighted = ChunkPolicy(config, states, ACTION, policy.normalizer)
    sighted.model.network.load_state_dict(policy.model.network.state_dict())
    expected = sighted.eval().predict_chunk(observed(batch, "hand", "box", "height"), seed=0)
    np.testing.assert_allclose(chunk, expected, rtol=1e-4, atol=1e-4)
    assert np.ptp(chunk, axis=0).max() > 1e-3


@pytest.mark.parametrize("mask_padding", [False, True])
def test_the_loss_is_that_of_the_chunks_and_that_of_the_estimates(mask_padding: bool) -> None:
    repeats = 4
    changes: dict[str, Any] = {"mask_padding": mask_padding, "num_noise_samples": repeats, "frame": FRAME_OPTIONS}
    policy, batch = make_policy(**changes), make_batch()
    noise = policy.sample_noise(ROWS, torch.Generator().manual_seed(0))
    observation = {key: batch[f"observation.{key}"] for key in DATA.fields}
    missed = policy._estimation_errors(observation, None)
    assert len(missed) == ROWS
    assert (missed > 1e-3).all()
    loss = policy.loss(batch, noise)
    know(policy, batch)
    without = policy.loss(batch, noise)
    expected = missed.repeat_interleave(repeats)[:, None].expand(-1, HORIZON)
    torch.testing.assert_close(loss.errors - without.errors, expected)
    torch.testing.assert_close(loss.weight, without.weight)


def test_chunks_are_learned_from_true_values() -> None:
    """So no gradient of theirs reaches the image encoder, and none of the estimates the network of the chunks."""
    policy, batch = make_policy(frame=FRAME_OPTIONS), make_batch()
    noise = policy.sample_noise(ROWS, torch.Generator().manual_seed(0))
    observation = {key: batch[f"observation.{key}"] for key in DATA.fields}
    policy._estimation_errors(observation, None).sum().backward()  # type: ignore[no-untyped-call]
    estimating = {name for name, one in policy.named_parameters() if one.grad is not None and one.grad.any()}
    gradients = {name: one.grad.clone() for name, one in policy.named_parameters() if one.grad is not None}
    assert {name.split(".")[1] for name in estimating} == {"cameras", "estimator"}
    policy.zero_grad()
    policy.loss(batch, noise).errors.sum().backward()  # type: ignore[no-untyped-call]
    for name, one in policy.named_parameters():
        assert one.grad is not None, name
        if name in gradients:
            torch.testing.assert_close(one.grad, HORIZON * gradients[name], rtol=1e-3, atol=1e-3)
    assert any(one.grad.any() for one in policy.network.parameters() if one.grad is not None)


def test_estimates_are_learned_from_the_rows_that_have_images() -> None:
    jittered = {"widths": [8, 8], "keypoints": 3, "color_jitter": 0.3}
    policy, batch = make_policy(crop=(16, 16), vision_options=jittered), make_batch()
    observation = {key: batch[f"observation.{key}"] for key in DATA.fields}
    noise = policy.sample_noise(ROWS, torch.Generator().manual_seed(0))
    every = policy._estimation_errors(observation, noise.augmentation)
    third = {**observation, "image": observation["image"][::3]}
    some = policy._estimation_errors(third, noise.augmentation)
    torch.testing.assert_close(some, every[[0, 0, 0, 3, 3, 3]])
    fewer = {**batch, "observation.image": batch["observation.image"][::3]}
    halves = [
        policy.loss({name: rows.chunk(2)[half] for name, rows in fewer.items()}, noise.micro_batch(half, 2)).sums()[0]
        for half in range(2)
    ]
    torch.testing.assert_close(policy.loss(fewer, noise).sums()[0], halves[0] + halves[1])
    augmented = policy.loss(batch, noise).errors
    plain = policy.eval().loss(batch, noise).errors
    assert (augmented - plain).abs().max() > 1e-4, "in training images are augmented"


def test_estimates_are_not_computed_in_bfloat16() -> None:
    policy, batch = make_policy(), make_batch()
    observation = {key: batch[f"observation.{key}"] for key in DATA.fields}
    features = policy.encoder.encode_images(observation)
    assert policy.encoder.estimator is not None
    exact = policy.encoder.estimator.errors(features, observation, policy.normalizer)
    policy.encoder.encode_images = lambda *_: features  # type: ignore[method-assign]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(policy._estimation_errors(observation, None), exact)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimate_every": 0}, "at least 1"),
        ({"estimate_every": 2, "estimated": ()}, "nothing is estimated"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"estimate_every=.*{message}"):
        make_policy(**options)


def test_a_saved_policy_estimates_as_before(tmp_path: Path) -> None:
    policy, batch = make_policy(frame=FRAME_OPTIONS).eval(), make_batch()
    policy.save(tmp_path / "policy")
    loaded = ChunkPolicy.load(tmp_path / "policy")
    assert (loaded.observation_spec, loaded.estimated_spec) == (policy.observation_spec, policy.estimated_spec)
    seen = observed(batch, "image", "hand")
    np.testing.assert_array_equal(loaded.predict_chunk(seen, seed=3), policy.predict_chunk(seen, seed=3))
    assert set(loaded.out_of_range(seen)) == {"hand"}
    with pytest.raises(SpecMismatchError, match="image"):
        loaded.predict_chunk(observed(batch, "hand", "box", "height"))


@pytest.mark.parametrize(
    ("spec", "estimated", "message"),
    [
        (
            DATA,
            ("cube",),
            r"policy.estimated=\['cube'\]: expected keys .* there is no 'cube'; there are box, hand, height",
        ),
        (DATA, ("image",), "there is no 'image'"),
        (DATA.without(["image"]), ("box",), "no images to estimate them from"),
    ],
)
def test_what_cannot_be_estimated_is_refused(spec: ObservationSpec, estimated: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        split_estimated(spec, estimated)


def test_of_what_is_estimated_a_window_holds_the_latest_only() -> None:
    frames = torch.arange(5)
    values = {"box": frames[:, None].float(), "hand": frames[:, None].float()}
    windows = Windows(values, values["hand"], frames, frames * 0, frames * 0 + 4, 3, 2, latest_only={"box"})
    batch = windows.batch(torch.tensor([0, 1, 4]))
    assert batch["observation.hand"][..., 0].tolist() == [[0, 0, 0], [0, 0, 1], [2, 3, 4]]
    assert batch["observation.box"][..., 0].tolist() == [[0, 0, 0], [1, 1, 1], [4, 4, 4]]
