"""Backbones of timm and transformers: made by name without a network, stored with the checkpoint, trained at a lower rate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from flowchunk.datasets.errors import CheckpointError, ConfigurationError
from flowchunk.policy.chunk_policy import KIND, ChunkPolicy
from flowchunk.policy.encoders.timm_backbone import TimmBackbone
from flowchunk.policy.encoders.transformers_backbone import TransformersBackbone, read_architecture
from flowchunk.policy.training.config import TrainingConfig
from flowchunk.policy.training.parameter_groups import parameter_groups
from flowchunk.policy.training.trainer import Trainer
from tests.policy.small_trainers import assert_same, checkpoint_tensors, run_to
from tests.policy.test_image_policy import Samples
from tests.policy.test_image_policy import make_policy as make_image_policy

transformers = pytest.importorskip("transformers", reason="needs the extra vision-backbones")
pytest.importorskip("timm", reason="needs the extra vision-backbones")

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIGS = {
    "dinov2": lambda: transformers.Dinov2Config(**TINY, patch_size=14, image_size=56),
    "siglip": lambda: transformers.SiglipConfig(
        vision_config={**TINY, "intermediate_size": 16, "patch_size": 8, "image_size": 32},
        text_config={**TINY, "intermediate_size": 16},
    ),
    "resnet": lambda: transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def folder_of(name: str, folder: Path) -> Path:
    CONFIGS[name]().save_pretrained(folder / name)
    return folder / name


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_timm_backbones_have_the_declared_number_of_features(name: str) -> None:
    network = TimmBackbone(image_size=(40, 36), backbone=name, keypoints=5).eval()
    images = torch.rand(2, 3, 40, 36)
    assert network(images).shape == (2, network.features) == (2, 10)
    torch.testing.assert_close(network(images)[1:], network(images[1:]))


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_backbones_have_the_declared_number_of_features(name: str, tmp_path: Path) -> None:
    backbone = str(folder_of(name, tmp_path))
    network = TransformersBackbone(image_size=(40, 36), backbone=backbone, keypoints=5).eval()
    assert network(torch.rand(2, 3, 40, 36)).shape == (2, network.features) == (2, 10)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_stored_architecture_makes_the_backbone_without_the_hub(name: str, tmp_path: Path) -> None:
    backbone = folder_of(name, tmp_path)
    kept = json.loads(json.dumps(read_architecture(str(backbone))))
    made = TransformersBackbone(image_size=(40, 40), backbone=str(backbone))
    again = TransformersBackbone(image_size=(40, 40), backbone="a/name/nobody/knows", architecture=kept)
    again.load_state_dict(made.state_dict())
    images = torch.rand(1, 3, 40, 40)
    torch.testing.assert_close(again.eval()(images), made.eval()(images))


def policy_that_sees(name: str, folder: Path) -> ChunkPolicy:
    """A policy whose camera has this backbone of transformers."""
    backbone = str(folder_of(name, folder))
    settings = {"backbone": backbone, "keypoints": 3, "architecture": read_architecture(backbone)}
    return make_image_policy(vision="transformers", vision_options=settings)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_trained_parameter_gets_a_gradient(name: str, tmp_path: Path) -> None:
    """Not so the mask token of DINOv2 and the pooling head of SigLIP."""
    network = TransformersBackbone(image_size=(40, 36), backbone=str(folder_of(name, tmp_path)), keypoints=5)
    assert network.training
    network(torch.rand(2, 3, 40, 36)).square().sum().backward()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None for parameter in trained)
    assert len(trained) >= len(list(network.parameters())) - 12
    assert sum(len(group["params"]) for group in parameter_groups(network)) == len(trained)


def test_making_a_backbone_samples_only_its_weights(tmp_path: Path) -> None:
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        TransformersBackbone(image_size=(40, 36), backbone=str(folder_of("dinov2", tmp_path)))
        made.append(torch.rand(3))
    assert torch.equal(*made)


@pytest.mark.parametrize("name", ["dinov2", "siglip"])
def test_a_policy_with_a_transformers_backbone_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    def trainer(folder: Path) -> Trainer:
        config = TrainingConfig(steps=4, batch_size=8, checkpoint_every=2, evaluate_every=4, warmup_steps=1)
        model = policy_that_sees(name, tmp_path)
        return Trainer(model, Samples(), config, output_dir=folder, accelerator=Accelerator(cpu=True))

    trainer(tmp_path / "straight").run()
    run_to(trainer(tmp_path / "resumed"), 3)
    resumed = trainer(tmp_path / "resumed")
    resumed.resume(kind=KIND)
    assert resumed.step == 2
    resumed.run()
    assert_same(checkpoint_tensors(tmp_path / "resumed"), checkpoint_tensors(tmp_path / "straight"))


def test_images_are_enlarged_to_whole_patches(tmp_path: Path) -> None:
    backbone = str(folder_of("dinov2", tmp_path))
    assert TransformersBackbone(image_size=(40, 36), backbone=backbone).input.size == [42, 42]
    assert TransformersBackbone(image_size=(40, 36), backbone=backbone, resize=70).input.size == [70, 70]
    assert TimmBackbone(image_size=(40, 36), backbone="resnet10t").input.size == [40, 36]


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_the_backbone_is_trained_at_a_tenth_of_the_learning_rate(library: str, tmp_path: Path) -> None:
    network: Any
    if library == "timm":
        network = TimmBackbone(image_size=(32, 32), backbone="resnet10t")
    else:
        network = TransformersBackbone(image_size=(40, 36), backbone=str(folder_of("dinov2", tmp_path)))
    rates = {group["scale"]: sum(p.numel() for p in group["params"]) for group in parameter_groups(network)}
    assert rates == {
        0.1: sum(p.numel() for p in network.body.parameters() if p.requires_grad),
        1.0: sum(p.numel() for p in network.keypoints.parameters()),
    }


def test_transformers_load_a_folder_of_weights(tmp_path: Path) -> None:
    backbone = folder_of("dinov2", tmp_path)
    torch.manual_seed(1)
    trained = transformers.AutoModel.from_config(CONFIGS["dinov2"]())
    trained.save_pretrained(tmp_path / "trained")
    network = TransformersBackbone(image_size=(28, 28), backbone=str(backbone))
    network.load_weights(str(tmp_path / "trained"))
    expected = trained.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.body.state_dict().items())


def test_timm_loads_a_file_of_weights(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(1)
    trained = timm.create_model("resnet10t", pretrained=False)
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    network = TimmBackbone(image_size=(32, 32), backbone="resnet10t")
    network.load_weights(str(tmp_path / "weights.pth"))
    expected = trained.state_dict()
    assert all(
        torch.equal(value, expected[name.removeprefix("model.")]) for name, value in network.body.state_dict().items()
    )


def load_timm(weights: str) -> None:
    TimmBackbone(image_size=(32, 32), backbone="resnet10t").load_weights(weights)


def load_transformers(weights: str) -> None:
    config = CONFIGS["dinov2"]().to_dict()
    known = {"config": config, "mean": [0.5] * 3, "deviation": [0.5] * 3}
    TransformersBackbone(image_size=(28, 28), backbone="not/here", architecture=known).load_weights(weights)


class Malice:
    """What unpickling would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


def test_a_file_of_weights_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Malice()}, "weights.pth")
    with pytest.raises(CheckpointError, match=r"cannot load vision.weights=weights.pth"):
        load_timm("weights.pth")
    assert not Path("ran").exists()


@pytest.mark.parametrize("load", [load_timm, load_transformers])
@pytest.mark.parametrize("weights", ["pretrained", "nowhere.pth", "broken.pth"])
def test_weights_that_cannot_be_loaded(
    load: Any, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Path("broken.pth").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match=f"cannot load vision.weights={weights} .*connect to the internet once"):
        load(weights)


def test_backbones_that_are_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"vision.backbone=eyes: timm cannot make it"):
        TimmBackbone(image_size=(32, 32), backbone="eyes")
    with pytest.raises(ConfigurationError, match=r"vision.backbone=no/eyes: transformers does not know it"):
        TransformersBackbone(image_size=(32, 32), backbone="no/eyes")


def test_the_error_about_a_missing_library_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(
        ConfigurationError, match=r"needs the package timm .*pip install 'flowchunk\[vision-backbones\]'"
    ):
        TimmBackbone(image_size=(32, 32), backbone="resnet10t")
