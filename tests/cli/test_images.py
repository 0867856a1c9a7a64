"""Vision policies from the command line: trained, resumed, evaluated; clear errors for wrong images and options."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from safetensors.torch import load_file

from flowchunk.cli.main import main
from flowchunk.cli.options import read_options
from flowchunk.datasets.formats.zarr_store import Store
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.training.trainer import Trainer
from tests.cli.recorded_images import LENGTHS, record_images

TINY = (
    "network.width=16",
    "network.blocks=1",
    "vision.widths=[8,8]",
    "vision.keypoints=4",
    "policy.num_noise_samples=2",
    "training.steps=4",
    "training.batch_size=8",
    "training.checkpoint_every=2",
    "training.log_every=2",
    "evaluation.episodes=0",
    "device=cpu",
)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_images(tmp_path_factory.mktemp("stores") / "images.zarr")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cached_here(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Never in the home directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    yield
    assert not list(cache.rglob("*.partial*")), "nothing half-written is left"


def train(store: Path, run: Path, *more: str) -> list[str]:
    return ["train", "task=pusht_image", f"dataset.path={store}", f"output_dir={run}", *TINY, *more]


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / name / "model.safetensors")


@pytest.fixture(scope="module")
def vision_run(recorded: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "vision"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        assert main(train(recorded, run)) == 0
    return run


# -- training and evaluating -----------------------------------------------------------------------------------------


def test_a_policy_is_trained_from_images_and_evaluated(vision_run: Path, tmp_path: Path) -> None:
    policy = ChunkPolicy.load(vision_run)
    assert policy.config.vision == "small_conv"
    assert policy.observation_spec.fields["image"].crop == (84, 84)
    assert main(["eval", str(vision_run), f"output_dir={tmp_path}", "episodes=2", "video=1", "nfe=2"]) == 0
    assert len(json.loads((tmp_path / "eval.json").read_text())["episodes"]) == 2
    assert list((tmp_path / "videos").glob("*.mp4"))


def test_the_place_of_images_is_printed(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for mode, words in (("disk", "cache=disk"), ("ram", "cache=ram"), ("auto", "cache=disk")):
        assert (
            main(train(recorded, tmp_path / mode, f"dataset.cache={mode}", f"dataset.cache_dir={tmp_path / 'c'}")) == 0
        )
        plan = capsys.readouterr().out.replace("\n", " ")
        assert words in plan
        assert "small_conv and mlp with" in plan
    assert all(
        torch.equal(value, weights(tmp_path / "ram")[name]) for name, value in weights(tmp_path / "disk").items()
    )
    assert len(list((tmp_path / "c").glob("*.npy"))) == 1


@pytest.mark.parametrize("more", [(), ("training.prefetch=true",), ("training.precision=bf16",)])
def test_an_interrupted_training_goes_on_bit_for_bit(
    more: tuple[str, ...], recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(train(recorded, tmp_path / "whole", *more)) == 0
    train_step = Trainer.train_step

    def interrupted(self: Trainer) -> torch.Tensor:
        if self.step == 3:
            raise KeyboardInterrupt
        return train_step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        assert main(train(recorded, tmp_path / "run", *more)) == 130
    assert main(train(recorded, tmp_path / "run", *more, "training.resume=true")) == 0
    whole = weights(tmp_path / "whole")
    assert all(torch.equal(value, whole[name]) for name, value in weights(tmp_path / "run").items())


def test_the_arm_is_collected_and_trained_with_two_cameras(tmp_path: Path) -> None:
    store = tmp_path / "arm.zarr"
    assert main(["collect", "task=pickplace_image", f"output_dir={store}", "episodes=2"]) == 0
    run = ["train", "task=pickplace_image", f"dataset.path={store}", f"output_dir={tmp_path / 'run'}", *TINY]
    assert main(run) == 0
    policy = ChunkPolicy.load(tmp_path / "run")
    assert list(policy.encoder.cameras) == ["front_image", "wrist_image"]
    assert main([*run[:3], f"output_dir={tmp_path / 'shared'}", *TINY, "vision.share_weights=true"]) == 0
    assert list(ChunkPolicy.load(tmp_path / "shared").encoder.cameras) == ["front_image"]


def test_fine_tuning_keeps_the_crop(recorded: Path, vision_run: Path, tmp_path: Path) -> None:
    assert main(train(recorded, tmp_path / "run", f"training.init_from={vision_run}")) == 0
    assert ChunkPolicy.load(tmp_path / "run").observation_spec.fields["image"].crop == (84, 84)


@pytest.fixture(scope="module")
def foreign(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same episodes as diffusion_policy keeps them: zarr format 2, frames as float32, no specifications."""
    path = tmp_path_factory.mktemp("stores") / "foreign.zarr"
    ours, root = zarr.open_group(recorded, mode="r"), zarr.open_group(path, mode="w", zarr_format=2)
    for name, key in (("img", "image"), ("state", "agent_position"), ("action", "action")):
        values = np.asarray(ours[f"data/{key}"][:], dtype=np.float32)  # type: ignore[index]
        root.create_array(f"data/{name}", shape=values.shape, chunks=(16, *values.shape[1:]), dtype="f4")[:] = values
    root.create_array("meta/episode_ends", data=np.cumsum(LENGTHS))
    return path


def test_diffusion_policys_store_becomes_ours_and_trains_the_same(
    foreign: Path, recorded: Path, tmp_path: Path
) -> None:
    out = tmp_path / "ours.zarr"
    assert main(["data", "convert", str(foreign), str(out), "task=pusht_image"]) == 0
    one, other = (Store.open(path) for path in (out, recorded))
    assert one.observation_spec == other.observation_spec
    np.testing.assert_array_equal(one.read("image"), other.read("image"))
    for store, name in ((foreign, "foreign"), (out, "ours")):
        assert main(train(store, tmp_path / name, "training.steps=2")) == 0
    ours = weights(tmp_path / "ours")
    assert all(torch.equal(value, ours[name]) for name, value in weights(tmp_path / "foreign").items())


# -- configurations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["pusht_image", "pickplace_image"])
def test_hardware_is_a_switch(task: str) -> None:
    cpu, gpu = (read_options("train", [f"task={task}", "dataset.path=x", *more]) for more in ([], ["hardware=gpu"]))
    assert (cpu["vision"]["name"], gpu["vision"]["name"]) == ("small_conv", "resnet18")
    assert (cpu["training"]["precision"], gpu["training"]["precision"]) == ("fp32", "bf16")
    assert cpu["vision"]["crop"] == gpu["vision"]["crop"] == [84, 84]
    other = read_options("train", [f"task={task}", "dataset.path=x", "vision=timm", "vision.backbone=resnet10t"])
    assert other["vision"]["backbone"] == "resnet10t"


def test_resnet_with_weights_from_a_file(recorded: Path, tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.save(resnet18(weights=None).state_dict(), tmp_path / "resnet.pth")
    small = [option for option in TINY if "widths" not in option]
    more = ["vision=resnet18", f"vision.weights={tmp_path / 'resnet.pth'}", "vision.crop=[32,32]", "training.steps=1"]
    command = ["train", "task=pusht_image", f"dataset.path={recorded}", f"output_dir={tmp_path / 'run'}", *small, *more]
    assert main(command) == 0
    assert ChunkPolicy.load(tmp_path / "run").config.vision == "resnet18"


def test_a_backbone_of_timm_needs_nothing_to_be_loaded(recorded: Path, tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="needs the extra vision-backbones")
    small = [option for option in TINY if "widths" not in option]
    more = [
        "vision=timm",
        "vision.backbone=resnet10t",
        "vision.weights=null",
        "vision.crop=[32,32]",
        "training.steps=1",
    ]
    command = ["train", "task=pusht_image", f"dataset.path={recorded}", f"output_dir={tmp_path / 'run'}", *small, *more]
    assert main(command) == 0
    assert ChunkPolicy.load(tmp_path / "run").config.vision_options["backbone"] == "resnet10t"


# -- bad input -------------------------------------------------------------------------------------------------------


def said(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert "Traceback" not in text
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            "vision=eyes",
            "unknown vision 'eyes'; there are none, resnet18, small_conv, small_conv_narrow, timm, transformers",
        ),
        ("hardware=tpu", "unknown hardware 'tpu'; there are cpu, gpu, none"),
        ("vision.crop=[97,84]", "crop=(97, 84) must be (height, width) in pixels and fit into images of (96, 96)"),
        ("vision.crop=84", "vision.crop=84 must be a list"),
        ("vision.image_steps=3", "vision.image_steps=3 must be from 1 to observation_steps=2"),
        ("vision.color_jitter=2.0", "vision.color_jitter=2.0 must be at least 0 and below 1"),
        ("vision.weights=IMAGENET1K_V1", "there are no weights for vision=small_conv"),
        ("policy.num_noise_samples=0", "num_noise_samples=0 must be at least 1"),
        ("training.precision=fp8", "training.precision=fp8: there are fp32, bf16"),
        (
            "training.num_micro_batches=3",
            "cannot be split evenly between 1 processes in training.num_micro_batches=3 parts each",
        ),
        ("training.prefetch=soon", "training.prefetch=soon must be true or false"),
        ("dataset.cache=cloud", "cache=cloud is unknown; choose one of auto, device, disk, ram"),
        ("dataset.cache_limit_gb=0.0001", "cache_limit_gb"),
        ("dataset.symmetry.image={transform: upside_down}", "anti_transpose"),
    ],
)
def test_options_that_cannot_be_used(
    more: str, message: str, recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh = "dataset.cache=disk" if "limit" in more else "dataset.cache=ram"
    assert main(train(recorded, tmp_path / "run", fresh, f"dataset.cache_dir={tmp_path / 'c'}", more)) == 1
    assert message in said(capsys)
    assert not (tmp_path / "run").exists()


def test_an_image_encoder_needs_images(pusht_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "task=pusht_state", f"dataset.path={pusht_store}", f"output_dir={tmp_path / 'run'}"]
    assert main([*command, "vision=resnet18"]) == 1
    assert "vision=resnet18, but the observation has no images" in said(capsys)
    assert main([*command, "hardware=gpu"]) == 1
    assert "the observation has no images" in said(capsys)


def test_images_need_an_image_encoder(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "task=pusht_image", f"dataset.path={recorded}", f"output_dir={tmp_path / 'run'}", "vision=none"]
    assert main(command) == 1
    encoders = "resnet18|small_conv|small_conv_narrow|timm|transformers"
    assert f"the recipe is for observations with images: choose vision={encoders}" in said(capsys)
    assert main([*command, "experiment=none"]) == 1
    assert "the observation has images (image): choose vision=small_conv|resnet18" in said(capsys)


def test_a_store_without_the_camera(pusht_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(train(pusht_store, tmp_path / "run")) == 1
    assert "no array data/img (wanted for 'image')" in said(capsys)


def test_a_moved_goal_is_not_mirrored(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(train(recorded, tmp_path / "run", "env.goal_pose=[200,300,0.5]")) == 1
    assert "dataset.symmetry moves the goal" in said(capsys)


@pytest.fixture
def damaged(recorded: Path, tmp_path: Path) -> Path:
    """The recorded store, with a frame of its second episode overwritten by nonsense."""
    path = tmp_path / "damaged.zarr"
    shutil.copytree(recorded, path)
    (shard,) = [file for file in (path / "data" / "image" / "c").rglob("*") if file.is_file()]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 8] = b"nonsense"
    shard.write_bytes(content)
    return path


def test_a_damaged_frame_is_named_and_its_episodes_can_be_left_out(
    damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(train(damaged, tmp_path / "run")) == 1
    message = said(capsys)
    assert "episode" in message
    assert "frame" in message
    assert "--skip-corrupt" in message
    assert main([*train(damaged, tmp_path / "run"), "--skip-corrupt"]) == 0
    assert "episode" in capsys.readouterr().out


def test_an_environment_that_shows_something_else_is_refused(
    vision_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(vision_run), f"output_dir={tmp_path}", "env.observation=keypoints", "episodes=1"]) == 1
    message = said(capsys)
    assert "needs the observation 'image'" in message
    assert "change the environment by env.KEY=VALUE, for example env.observation=image" in message
