"""Vision policies: images are encoded once per chunk and used with several noise samples; options of their training."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
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
from flowchunk.policy.chunk_policy import KIND, ChunkPolicy
from flowchunk.policy.noise import PathNoise, PolicyNoise
from flowchunk.policy.normalizer import Normalizer, Scaling
from flowchunk.policy.policy_config import PolicyConfig
from flowchunk.policy.training.config import TrainingConfig
from flowchunk.policy.training.prefetch import Prefetched
from flowchunk.policy.training.trainer import Trainer
from tests.policy.small_policies import to_format_1
from tests.policy.small_trainers import assert_same, checkpoint_tensors, run_to

IMAGE = ObservationField((20, 20, 3), camera="top", crop=(16, 16))
OBSERVATION = ObservationSpec({"image": IMAGE, "hand": ObservationField((2,))})
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
    """Forty samples; the action is the position of the bright spot in the image."""

    def __len__(self) -> int:
        return 40

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        places = torch.randint(4, 16, (len(self), 2), generator=generator)
        hands = torch.randn(len(self), 2, 2, generator=generator)
        chosen = places[indices]
        images = torch.zeros(len(indices), 2, 20, 20, 3, dtype=torch.uint8)
        images[torch.arange(len(indices)), :, chosen[:, 1], chosen[:, 0]] = 255
        return {
            "observation.image": images,
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
    observation: dict[str, np.ndarray] = {
        "image": random.integers(0, 256, (batch, 2, 20, 20, 3), dtype=np.uint8),
        "hand": random.normal(size=(batch, 2, 2)).astype(np.float32),
    }
    return {**observation, **(changes or {})}


# -- acting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nfe", [1, 4, 16])
def test_images_are_encoded_once_per_chunk(nfe: int) -> None:
    policy = make_policy().eval()
    calls: list[tuple[int, ...]] = []
    policy.encoder.cameras["image"].register_forward_hook(lambda _, inputs, __: calls.append(tuple(inputs[0].shape)))
    assert policy.predict_chunk(observe(), nfe=nfe).shape == (3, HORIZON, 2)
    assert calls == [(6, 3, 16, 16)]


def test_pixels_outside_the_crop_do_not_matter() -> None:
    policy, observation = make_policy().eval(), observe()
    for parameter in policy.network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # networks start by ignoring their condition
    chunk = policy.predict_chunk(observation, seed=0)
    observation["image"][:, :, :2] = observation["image"][:, :, :, 18:] = 0
    np.testing.assert_array_equal(policy.predict_chunk(observation, seed=0), chunk)
    observation["image"][:, -1, 10] = 0
    assert not np.array_equal(policy.predict_chunk(observation, seed=0), chunk)


def test_a_loaded_checkpoint_predicts_the_same(tmp_path: Path) -> None:
    policy = make_policy(vision_options={**VISION, "image_steps": 1}).eval()
    policy.save(tmp_path / "policy")
    loaded = ChunkPolicy.load(tmp_path / "policy")
    assert loaded.observation_spec.fields["image"].crop == (16, 16)
    np.testing.assert_array_equal(loaded.predict_chunk(observe(), seed=0), policy.predict_chunk(observe(), seed=0))


def test_images_are_never_out_of_range() -> None:
    assert make_policy().out_of_range(observe()).keys() == {"hand"}


@pytest.mark.parametrize(
    ("changes", "message"),
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
def test_images_that_do_not_match_the_specification_are_refused(changes: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(SpecMismatchError, match=message):
        make_policy().predict_chunk(observe(changes), seed=0)


def test_a_missing_camera_is_named() -> None:
    observation = observe()
    del observation["image"]
    with pytest.raises(
        SpecMismatchError, match=r"needs the observations \['hand', 'image'\], but \['image'\] are missing"
    ):
        make_policy().predict_chunk(observation, seed=0)


# -- several noise samples -------------------------------------------------------------------------------------------


def test_by_default_images_have_four_noise_samples() -> None:
    assert make_policy().config.noise_samples_per_observation == 4
    assert make_policy(num_noise_samples=2).config.noise_samples_per_observation == 2
    state_only = ObservationSpec({"hand": OBSERVATION.fields["hand"]})
    assert make_policy(state_only, vision=None, vision_options={}).config.noise_samples_per_observation == 1
    with pytest.raises(ConfigurationError, match="num_noise_samples=0 must be at least 1"):
        make_policy(num_noise_samples=0)


@pytest.mark.parametrize("mask_padding", [False, True])
def test_the_loss_of_many_noise_samples_is_the_mean_of_single_ones(mask_padding: bool) -> None:
    many = make_policy(num_noise_samples=3, mask_padding=mask_padding, prefix_max=2)
    single = make_policy(num_noise_samples=1, mask_padding=mask_padding, prefix_max=2)
    single.load_state_dict(many.state_dict())
    batch, noise = Samples().batch(torch.arange(5)), many.sample_noise(5, torch.Generator().manual_seed(0))
    assert noise.path.x_0.shape == (5, 3, HORIZON, 2)
    total, weight = many(batch, noise)
    path, lengths = noise.path, noise.prefix_length
    assert lengths is not None
    parts = [
        single(batch, PolicyNoise(PathNoise(path.x_0[:, i], path.t[:, i]), lengths[:, i], noise.augmentation))
        for i in range(3)
    ]
    torch.testing.assert_close(total, sum(error for error, _ in parts))
    torch.testing.assert_close(weight, sum(count for _, count in parts))


def test_many_noise_samples_encode_once() -> None:
    policy = make_policy(num_noise_samples=5)
    calls: list[int] = []
    policy.encoder.cameras["image"].register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    policy(Samples().batch(torch.arange(3)), policy.sample_noise(3, torch.Generator().manual_seed(0)))
    assert calls == [6]


# -- training options ------------------------------------------------------------------------------------------------


def test_a_policy_learns_where_the_spot_is(tmp_path: Path) -> None:
    found = losses(tmp_path, replace(CONFIG, steps=150, learning_rate=1e-2))
    assert np.mean(found[-20:]) < 0.6 * np.mean(found[:20])


@pytest.mark.parametrize("mask_padding", [False, True])
def test_micro_batches_have_the_gradient_of_the_batch(mask_padding: bool, tmp_path: Path) -> None:
    whole = losses(tmp_path, mask_padding=mask_padding)
    parts = losses(tmp_path, replace(CONFIG, num_micro_batches=4), mask_padding=mask_padding)
    np.testing.assert_allclose(parts, whole, rtol=1e-4)


def test_micro_batches_must_be_equal(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"batch_size=8 .*between 1 processes in training.num_micro_batches=3 parts each"
    ):
        make_trainer(tmp_path, replace(CONFIG, num_micro_batches=3))
    with pytest.raises(ConfigurationError, match=r"training.num_micro_batches=0 must be at least 1"):
        replace(CONFIG, num_micro_batches=0)


def test_channels_last_changes_the_memory_format_but_no_number(tmp_path: Path) -> None:
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


def test_validation_crops_are_centered(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    sample_noise, modes = trainer.averaged.sample_noise, []
    for parameter in trainer.averaged.parameters():  # a new network predicts zero for every observation
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))

    def corner_crops(batch_size: int, generator: torch.Generator) -> PolicyNoise:
        noise: PolicyNoise = sample_noise(batch_size, generator)
        return replace(
            noise, augmentation={name: torch.zeros_like(values) for name, values in noise.augmentation.items()}
        )

    trainer.averaged.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    trainer.averaged.train()
    trainer.validation = Samples()
    measured = trainer.compute_metrics()
    trainer.averaged.sample_noise = corner_crops
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
    assert chunks == [torch.float32]  # positions and actions need more than 8 bits
    assert {parameter.dtype for parameter in trainer.module.parameters()} == {torch.float32}
    np.testing.assert_allclose(losses(tmp_path, bf16=True), losses(tmp_path), rtol=0.05)


COMPILED = """
import sys
sys.path.append(sys.argv[1])  # last: our folder datasets/ would hide the package of that name
from tests.policy.test_image_policy import *
config, compile = replace(CONFIG, steps=3), torch.compile
modules = []
torch.compile = lambda module, *, mode: modules.append(module) or compile(module, mode=mode, backend=sys.argv[3])
compiled, eager = (losses(Path(sys.argv[2]), replace(config, compile=value)) for value in (True, False))
assert list(map(type, modules)) == [ChunkPolicy]
np.testing.assert_allclose(compiled, eager, rtol=1e-3)
"""


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",  # traces all, forward and backward, and leaves out the C++ compiler, which takes a minute
        pytest.param(
            "inductor",
            marks=pytest.mark.skipif(
                "FLOWCHUNK_ENVIRONMENTS" not in os.environ or shutil.which("g++") is None,
                reason="takes a C++ compiler a minute: install g++ and run .ci/extras",
            ),
        ),
    ],
)
def test_a_compiled_policy_learns_the_same(backend: str, tmp_path: Path) -> None:
    """In a process of its own, without the checks of shapes that tests add: the compiler cannot read them."""
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-P", "-W", "error", "-c", COMPILED, root, str(tmp_path), backend]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_prefetched_batch_is_the_same_batch(tmp_path: Path) -> None:
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
    assert prefetched(1) == 10  # out of order: computed again
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
    network_options = {"width": 16, "blocks": 1, "skip": False}
    policy = make_policy(vision_options=options, network_options=network_options).eval()
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
    np.testing.assert_array_equal(loaded.predict_chunk(seen, seed=0), policy.predict_chunk(seen, seed=0))
