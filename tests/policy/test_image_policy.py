"""A policy that sees: encoded once a chunk, learned from several times, refused what is not a picture; ways to train it."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from flowchunk.datasets.errors import ConfigurationError, SpecMismatchError
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from flowchunk.policy.chunk_policy import KIND, ChunkPolicy, PolicyConfig, PolicyNoise
from flowchunk.policy.noise import PathNoise
from flowchunk.policy.normalizer import Normalizer, Scaling
from flowchunk.policy.training.config import TrainingConfig
from flowchunk.policy.training.prefetch import Prefetched
from flowchunk.policy.training.trainer import Trainer
from tests.policy.small_policies import to_format_1
from tests.policy.small_trainers import assert_same, checkpoint_tensors, run_to

PICTURE = ObservationField((20, 20, 3), camera="top", crop=(16, 16))
OBSERVATION = ObservationSpec({"image": PICTURE, "hand": ObservationField((2,))})
ACTION = ActionSpec(tuple(ActionDimension(name, "m", "world") for name in "xy"), control_hz=10.0)
VISION = {"widths": [8, 8], "keypoints": 3}
HORIZON = 4
CONFIG = TrainingConfig(steps=6, batch_size=8, log_every=2, checkpoint_every=6, warmup_steps=1)


def make_policy(observation_spec: ObservationSpec = OBSERVATION, **changes: Any) -> ChunkPolicy:
    rows = np.random.default_rng(0).normal(size=(50, 2))
    scalings = {"hand": Scaling.fit("min_max", [rows]), "action": Scaling.fit("min_max", [rows])}
    defaults: dict[str, Any] = {
        "network_options": {"width": 16, "blocks": 1},
        "horizon": HORIZON,
        "n_action_steps": 2,
        "vision": "small_conv",
        "vision_options": VISION,
    }
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return ChunkPolicy(PolicyConfig(**(defaults | changes)), observation_spec, ACTION, Normalizer(scalings))


class Samples:
    """Forty samples; what to do is where the picture's bright spot is."""

    def __len__(self) -> int:
        return 40

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        places = torch.randint(4, 16, (len(self), 2), generator=generator)
        hands = torch.randn(len(self), 2, 2, generator=generator)
        chosen = places[indices]
        pictures = torch.zeros(len(indices), 2, 20, 20, 3, dtype=torch.uint8)
        pictures[torch.arange(len(indices)), :, chosen[:, 1], chosen[:, 0]] = 255
        return {
            "observation.image": pictures,
            "observation.hand": hands[indices],
            "action": (chosen[:, None].float() / 10 - 1).expand(-1, HORIZON, -1),
            "mask": torch.arange(HORIZON) < 1 + indices[:, None] % HORIZON,
        }


def make_trainer(folder: Path, config: TrainingConfig = CONFIG, *, bf16: bool = False, **changes: Any) -> Trainer:
    AcceleratorState._reset_state()  # which otherwise keeps the precision of the first
    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if bf16 else "no")
    return Trainer(make_policy(**changes), Samples(), config, output_dir=folder, accelerator=accelerator)


def losses(folder: Path, config: TrainingConfig = CONFIG, **options: Any) -> list[float]:
    trainer = make_trainer(folder, config, **options)
    with trainer.prefetching():
        found = []
        for _ in range(config.steps):
            trainer.train_step()
            found.append(float(trainer.loss_sum))
    return np.diff(found, prepend=0.0).tolist()


def observe(changes: Mapping[str, np.ndarray] | None = None, *, batch: int = 3) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    seen: dict[str, np.ndarray] = {
        "image": random.integers(0, 256, (batch, 2, 20, 20, 3), dtype=np.uint8),
        "hand": random.normal(size=(batch, 2, 2)).astype(np.float32),
    }
    return {**seen, **(changes or {})}


# -- acting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nfe", [1, 4, 16])
def test_pictures_are_encoded_once_a_chunk(nfe: int) -> None:
    policy = make_policy().eval()
    calls: list[tuple[int, ...]] = []
    policy.encoder.cameras["image"].register_forward_hook(lambda _, inputs, __: calls.append(tuple(inputs[0].shape)))
    assert policy.predict_chunk(observe(), nfe=nfe).shape == (3, HORIZON, 2)
    assert calls == [(6, 3, 16, 16)]


def test_what_is_outside_the_middle_is_not_seen() -> None:
    policy, seen = make_policy().eval(), observe()
    for parameter in policy.network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # fresh networks begin by ignoring what they are told
    chunk = policy.predict_chunk(seen)
    seen["image"][:, :, :2] = seen["image"][:, :, :, 18:] = 0
    np.testing.assert_array_equal(policy.predict_chunk(seen), chunk)
    seen["image"][:, -1, 10] = 0
    assert not np.array_equal(policy.predict_chunk(seen), chunk)


def test_a_checkpoint_sees_as_it_did(tmp_path: Path) -> None:
    policy = make_policy(vision_options={**VISION, "image_steps": 1}).eval()
    policy.save(tmp_path / "policy")
    loaded = ChunkPolicy.load(tmp_path / "policy")
    assert loaded.observation_spec.fields["image"].crop == (16, 16)
    np.testing.assert_array_equal(loaded.predict_chunk(observe()), policy.predict_chunk(observe()))


def test_pictures_have_no_range_to_be_out_of() -> None:
    assert make_policy().out_of_range(observe()).keys() == {"hand"}


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        (
            {"image": np.zeros((3, 2, 24, 20, 3), np.uint8)},
            r"'image' must be \(B, 2, 20, 20, 3\), but is \(3, 2, 24, 20, 3",
        ),
        ({"image": np.zeros((3, 2, 3, 20, 20), np.uint8)}, r"is \(3, 2, 3, 20, 20\).*channels last"),
        (
            {"image": np.zeros((3, 2, 20, 20, 3), np.float32)},
            r"must be uint8 from 0 to 255, but is float32 from 0 to 0",
        ),
        ({"image": np.full((3, 2, 20, 20, 3), 300, np.int64)}, r"uint8 from 0 to 255, but is int64 from 300 to 300"),
    ],
)
def test_what_is_not_the_picture_of_the_spec_is_refused(seen: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(SpecMismatchError, match=message):
        make_policy().predict_chunk(observe(seen))


def test_a_missing_camera_is_named() -> None:
    seen = observe()
    del seen["image"]
    with pytest.raises(
        SpecMismatchError, match=r"needs the observations \['hand', 'image'\], but \['image'\] are missing"
    ):
        make_policy().predict_chunk(seen)


# -- several noise draws ---------------------------------------------------------------------------------------------


def test_by_default_pictures_are_learned_from_four_times() -> None:
    assert make_policy().config.noise_samples_per_observation == 4
    assert make_policy(num_noise_samples=2).config.noise_samples_per_observation == 2
    blind = ObservationSpec({"hand": OBSERVATION.fields["hand"]})
    assert make_policy(blind, vision=None, vision_options={}).config.noise_samples_per_observation == 1
    with pytest.raises(ConfigurationError, match="num_noise_samples=0 must be at least 1"):
        make_policy(num_noise_samples=0)


@pytest.mark.parametrize("mask_padding", [False, True])
def test_many_draws_are_the_mean_of_single_ones(mask_padding: bool) -> None:
    many = make_policy(num_noise_samples=3, mask_padding=mask_padding, prefix_max=2)
    one = make_policy(num_noise_samples=1, mask_padding=mask_padding, prefix_max=2)
    one.load_state_dict(many.state_dict())
    batch, noise = Samples().batch(torch.arange(5)), many.sample_noise(5, torch.Generator().manual_seed(0))
    assert noise.path.x_0.shape == (5, 3, HORIZON, 2)
    total, weight = many(batch, noise)
    path, lengths = noise.path, noise.prefix_length
    assert lengths is not None
    each = [
        one(batch, PolicyNoise(PathNoise(path.x_0[:, i], path.t[:, i]), lengths[:, i], noise.views)) for i in range(3)
    ]
    torch.testing.assert_close(total, sum(error for error, _ in each))
    torch.testing.assert_close(weight, sum(count for _, count in each))


def test_many_draws_look_once() -> None:
    policy = make_policy(num_noise_samples=5)
    calls: list[int] = []
    policy.encoder.cameras["image"].register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    policy(Samples().batch(torch.arange(3)), policy.sample_noise(3, torch.Generator().manual_seed(0)))
    assert calls == [6]


# -- ways to train ---------------------------------------------------------------------------------------------------


def test_a_policy_learns_where_the_spot_is(tmp_path: Path) -> None:
    found = losses(tmp_path, replace(CONFIG, steps=150, learning_rate=1e-2))
    assert np.mean(found[-20:]) < 0.6 * np.mean(found[:20])


@pytest.mark.parametrize("mask_padding", [False, True])
def test_a_batch_in_parts_is_the_batch(mask_padding: bool, tmp_path: Path) -> None:
    whole = losses(tmp_path, mask_padding=mask_padding)
    parts = losses(tmp_path, replace(CONFIG, num_micro_batches=4), mask_padding=mask_padding)
    np.testing.assert_allclose(parts, whole, rtol=1e-4)


def test_parts_have_to_be_equal(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"batch_size=8 .*by 1 processes in training.num_micro_batches=3 parts each"
    ):
        make_trainer(tmp_path, replace(CONFIG, num_micro_batches=3))
    with pytest.raises(ConfigurationError, match=r"training.num_micro_batches=0 must be at least 1"):
        replace(CONFIG, num_micro_batches=0)


def test_channels_last_changes_memory_and_not_numbers(tmp_path: Path) -> None:
    whole, last = losses(tmp_path), losses(tmp_path, replace(CONFIG, channels_last=True))
    np.testing.assert_allclose(last, whole, rtol=1e-4)
    weight = (
        make_trainer(tmp_path, replace(CONFIG, channels_last=True)).module.encoder.cameras["image"].stem[0][0].weight
    )
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_a_run_in_channels_last_resumes_bit_for_bit(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=8, checkpoint_every=4, evaluate_every=8, learning_rate=1e-2, channels_last=True)
    make_trainer(tmp_path / "straight", config).run()
    interrupted = make_trainer(tmp_path / "resumed", config)
    run_to(interrupted, 5)
    resumed = make_trainer(tmp_path / "resumed", config)
    resumed.resume(kind=KIND)
    assert resumed.step == 4
    for parameter, state in resumed.optimizer.state.items():
        assert state["exp_avg"].stride() == state["exp_avg_sq"].stride() == parameter.stride()
    resumed.run()
    assert_same(checkpoint_tensors(tmp_path / "resumed"), checkpoint_tensors(tmp_path / "straight"))


def test_validation_looks_at_the_middle_and_not_at_random(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    sample_noise, modes = trainer.averaged.sample_noise, []
    for parameter in trainer.averaged.parameters():  # the fresh network says nothing, whatever it sees
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))

    def looking_elsewhere(batch_size: int, generator: torch.Generator) -> PolicyNoise:
        noise: PolicyNoise = sample_noise(batch_size, generator)
        return replace(noise, views={name: torch.zeros_like(values) for name, values in noise.views.items()})

    trainer.averaged.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    trainer.averaged.train()
    trainer.validation = Samples()
    measured = trainer.compute_metrics()
    trainer.averaged.sample_noise = looking_elsewhere
    assert trainer.compute_metrics() == measured
    assert not any(modes)


def test_bf16_is_close_to_fp32_and_keeps_its_weights_in_it(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, bf16=True)
    kinds = []
    trainer.module.encoder.cameras["image"].stem.register_forward_hook(lambda _, __, output: kinds.append(output.dtype))
    chunks = []
    trainer.module.network.register_forward_hook(lambda _, __, output: chunks.append(output.dtype))
    trainer.train_step()
    assert kinds == [torch.bfloat16]
    assert chunks == [torch.float32]  # places and actions need more than 8 bits
    assert {parameter.dtype for parameter in trainer.module.parameters()} == {torch.float32}
    np.testing.assert_allclose(losses(tmp_path, bf16=True), losses(tmp_path), rtol=0.05)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_policy_learns_the_same(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=3)
    np.testing.assert_allclose(losses(tmp_path, replace(config, compile=True)), losses(tmp_path, config), rtol=1e-3)


def test_a_batch_prepared_ahead_is_the_same_batch(tmp_path: Path) -> None:
    assert losses(tmp_path, replace(CONFIG, prefetch=True)) == losses(tmp_path)


def test_prefetching_is_one_step_ahead_and_ends() -> None:
    made, threads = [], set()

    def make(step: int) -> int:
        made.append(step)
        threads.add(threading.current_thread().name)
        return 10 * step

    before = threading.active_count()
    prefetched = Prefetched(make, last=4)
    assert [prefetched(step) for step in (0, 1, 2, 3)] == [0, 10, 20, 30]
    assert made == [0, 1, 2, 3]
    assert prefetched(1) == 10  # out of order: computed anew
    prefetched.close()
    assert threading.active_count() == before
    assert all(name.startswith("prefetch") for name in threads)


def test_an_error_of_a_batch_reaches_its_step() -> None:
    def make(step: int) -> int:
        if step == 1:
            raise ValueError("frame 7 is damaged")
        return step

    prefetched = Prefetched(make, last=3)
    assert prefetched(0) == 0
    with pytest.raises(ValueError, match="frame 7 is damaged"):
        prefetched(1)
    prefetched.close()


# Checkpoints of earlier versions

THEN = {"share_weights": "shared", "image_steps": "picture_steps", "color_jitter": "colour_jitter"}


@pytest.mark.parametrize("format_version", [1, 2])
def test_a_checkpoint_with_the_former_names_of_vision_options_acts_as_before(
    format_version: int, tmp_path: Path
) -> None:
    """Format 1 had them, and so have the first checkpoints of format 2."""
    options = {**VISION, "share_weights": True, "image_steps": 1, "color_jitter": 0.2}
    policy = make_policy(vision_options=options).eval()
    policy.save(tmp_path)
    if format_version == 1:
        to_format_1(tmp_path)
    file = tmp_path / "checkpoint.json"
    content = json.loads(file.read_text())
    saved = content["config"]["vision_options"]
    if format_version == 2:
        content["config"]["vision_options"] = {THEN.get(name, name): value for name, value in saved.items()}
        file.write_text(json.dumps(content))
    assert json.loads(file.read_text())["config"]["vision_options"].keys() == {*VISION, *THEN.values()}
    loaded = ChunkPolicy.load(tmp_path)
    assert loaded.config.vision_options == options
    random = np.random.default_rng(0)
    seen: dict[str, np.ndarray] = {
        "image": random.integers(0, 256, (1, 2, 20, 20, 3), dtype=np.uint8),
        "hand": random.normal(size=(1, 2, 2)).astype(np.float32),
    }
    np.testing.assert_array_equal(loaded.predict_chunk(seen), policy.predict_chunk(seen))
