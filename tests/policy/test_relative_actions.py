"""Actions predicted relative to the observation: an inner matter of the policy, absolute on both sides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.observed_values import ObservedValue
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from flowchunk.datasets.windows import Windows
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.normalizer import Normalizer, Scaling
from flowchunk.policy.policy_config import PolicyConfig
from flowchunk.policy.relative_actions import ActionCoordinates, encoded_chunks, find_references, reference_values

OBSERVATION = ObservationSpec(
    {"state": ObservationField((3,), names=("x", "y", "z")), "hand": ObservationField((2, 2))}
)
ACTION = ActionSpec(tuple(ActionDimension(name, "m", "world") for name in "xyg"), 10.0)
RELATIVE_TO = ["state.y", "hand.2", None]
REFERENCES = find_references(RELATIVE_TO, OBSERVATION, 3)
STEPS, HORIZON = 2, 4


def make_windows(frames: int = 40) -> Windows:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.arange(frames)
    return Windows(
        {"state": torch.randn(frames, 3, generator=generator), "hand": torch.randn(frames, 2, 2, generator=generator)},
        torch.randn(frames, 3, generator=generator),
        numbers,
        numbers * 0,
        numbers * 0 + frames - 1,
        STEPS,
        HORIZON,
    )


def make_policy(windows: Windows, *, prefix_max: int = 2) -> ChunkPolicy:
    scalings = {key: Scaling.fit("min_max", [values.numpy()]) for key, values in windows.observations.items()}
    scalings["action"] = Scaling.fit("gaussian", encoded_chunks(windows, ActionCoordinates(REFERENCES)))
    options = {"width": 16, "blocks": 1}
    config = PolicyConfig(
        network_options=options, horizon=HORIZON, n_action_steps=2, prefix_max=prefix_max, relative_to=RELATIVE_TO
    )
    policy = ChunkPolicy(config, OBSERVATION, ACTION, Normalizer(scalings))
    torch.manual_seed(1)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return policy.eval()


def test_the_reference_is_the_latest_observation() -> None:
    observation = {"state": torch.arange(12.0).view(2, 2, 3), "hand": torch.arange(16.0).view(2, 2, 2, 2)}
    expected = [[[4.0, 6.0, 0.0]], [[10.0, 14.0, 0.0]]]
    np.testing.assert_array_equal(reference_values(observation, REFERENCES), expected)


def test_relative_chunks_have_the_mean_and_std_of_the_normalizer() -> None:
    windows = make_windows()
    policy = make_policy(windows)
    batch = windows.batch(torch.arange(len(windows)))
    observation = {key: batch[f"observation.{key}"] for key in OBSERVATION.fields}
    inner = policy.model.normalize(policy.coordinates.encode(batch["action"], observation))
    assert inner.shape == (len(windows), HORIZON, 3)
    np.testing.assert_allclose(inner.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(inner.std(0, correction=0), 1.0, atol=1e-5)
    torch.testing.assert_close(policy.coordinates.decode(policy.model.denormalize(inner), observation), batch["action"])


def test_the_chunk_moves_with_its_reference() -> None:
    windows = make_windows()
    policy = make_policy(windows)
    batch = windows.batch(torch.tensor([7]))
    observation = {key: batch[f"observation.{key}"].numpy() for key in OBSERVATION.fields}
    # Without the observation: only the reference is left.
    policy.encode = lambda observation, augmentation=None: torch.zeros(1, 14)  # type: ignore[method-assign]
    chunk = policy.predict_chunk(observation, seed=0)
    moved = {**observation, "state": observation["state"] + np.float32(5.0)}
    expected = chunk + np.array([5.0, 0.0, 0.0])
    np.testing.assert_allclose(policy.predict_chunk(moved, seed=0), expected, atol=1e-4)


def test_a_prefix_is_returned_and_a_checkpoint_acts_the_same(tmp_path: Path) -> None:
    windows = make_windows()
    policy = make_policy(windows)
    batch = windows.batch(torch.tensor([3, 9]))
    observation = {key: batch[f"observation.{key}"].numpy() for key in OBSERVATION.fields}
    prefix = batch["action"][:, :2].numpy()
    chunk = policy.predict_chunk(observation, seed=3, prefix=prefix)
    np.testing.assert_array_equal(chunk[:, :2], prefix)
    policy.save(tmp_path / "checkpoint")
    again = ChunkPolicy.load(tmp_path / "checkpoint").predict_chunk(observation, seed=3, prefix=prefix)
    np.testing.assert_array_equal(again, chunk)


@pytest.mark.parametrize(
    "relative_to",
    [["state.0"], ["state.3", None, None], ["arm.0", None, None], ["state", None, None], ["state.w", None, None]],
)
def test_a_reference_that_does_not_exist(relative_to: list[str | None]) -> None:
    config = PolicyConfig(relative_to=relative_to)
    scalings = {key: Scaling.fit("min_max", [np.zeros((2, *field.shape))]) for key, field in OBSERVATION.fields.items()}
    scalings["action"] = Scaling.fit("min_max", [np.zeros((2, 3))])
    with pytest.raises(ConfigurationError, match=r"policy\.relative_to"):
        ChunkPolicy(config, OBSERVATION, ACTION, Normalizer(scalings))


def test_an_angle_that_wraps_is_no_reference() -> None:
    spec = ObservationSpec({"joints": ObservationField((2,), wraps=(1,))})
    assert find_references(["joints.0", None], spec, 2) == [ObservedValue("joints", 0), None]
    with pytest.raises(ConfigurationError, match=r"joints\.1 is an angle that wraps.* give null"):
        find_references(["joints.0", "joints.1"], spec, 2)


def test_values_are_named_as_in_the_specification() -> None:
    names = ("x", "y.left", "0")
    spec = ObservationSpec(
        {
            "arm": ObservationField((2,), names=("a", "b")),
            "arm.left": ObservationField((3,), names=names),
            "image": ObservationField((8, 8, 3), camera="top"),
        }
    )
    found = find_references(["arm.b", "arm.left.y.left", "arm.left.0", "arm.1"], spec, 4)
    expected = [("arm", 1), ("arm.left", 1), ("arm.left", 2), ("arm", 1)]  # a name comes before an index
    assert found == [ObservedValue(*entry) for entry in expected]
    with pytest.raises(ConfigurationError, match=r"but got 'arm\.left\.y_left'; there are arm\.left\.y\.left"):
        find_references(["arm.left.y_left"], spec, 1)
    with pytest.raises(ConfigurationError, match=r"but got 'image\.0'; there are arm\.a, arm\.b, arm\.left\.x"):
        find_references(["image.0"], spec, 1)


def test_early_checkpoints_have_indices() -> None:
    indices = replace(PolicyConfig(), relative_to=["state.1", "hand.2", None])
    assert find_references(indices.relative_to or (), OBSERVATION, 3) == REFERENCES
