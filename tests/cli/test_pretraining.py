"""Keypoints that are learned before the policy, from the command line and from Python."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flowchunk.cli.main import main
from flowchunk.datasets.errors import CheckpointError, ConfigurationError
from flowchunk.datasets.formats.zarr_store import Store
from flowchunk.datasets.windows import Windows
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.fitting import fit
from flowchunk.policy.training.config import TrainingConfig
from flowchunk.policy.training.trainer import Trainer
from tests.cli.recorded_images import record_images
from tests.cli.test_images import train, weights

PRETRAINED = ("vision.pretrain_steps=3", "policy.num_noise_samples=1")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cached_here(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never in the home directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_images(tmp_path_factory.mktemp("stores") / "images.zarr")


@pytest.fixture(scope="module")
def run(recorded: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "pretrained"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        assert main(train(recorded, folder, *PRETRAINED, "training.evaluate_every=2")) == 0
    return folder


def encoder_of(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: values for name, values in found.items() if ".cameras." in name or name.startswith("encoder.cameras.")
    }


def test_what_was_learned_from_images_is_kept_and_acts_on_images(run: Path, tmp_path: Path) -> None:
    state = load_file(run / "checkpoints" / "last" / "training_state.safetensors")
    live = {name.removeprefix("live."): values for name, values in state.items() if name.startswith("live.")}
    averaged = weights(run)
    assert encoder_of(live)
    assert all(torch.equal(values, averaged[name]) for name, values in encoder_of(live).items()), "not trained on"
    assert not all(torch.equal(values, averaged[name]) for name, values in live.items())
    assert not [name for name in state if name.startswith("optimizer.") and "decoder" in name]
    assert main(["eval", str(run), f"output_dir={tmp_path}", "episodes=1", "video=0", "env.max_episode_steps=6"]) == 0


def test_the_variance_that_keypoints_explain_is_printed(
    recorded: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(train(recorded, tmp_path / "run", *PRETRAINED)) == 0
    assert "% of the variance of the images can be reconstructed from the keypoints" in " ".join(
        capsys.readouterr().out.split()
    )
    plain = tmp_path / "plain"
    assert main(train(recorded, plain, "policy.num_noise_samples=1")) == 0
    trained, learned = encoder_of(weights(plain)), encoder_of(weights(tmp_path / "run"))
    assert not all(torch.equal(values, trained[name]) for name, values in learned.items())


def test_an_interrupted_run_goes_on_with_the_keypoints_it_had(
    run: Path,
    recorded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train_step = Trainer.train_step

    def interrupted(self: Trainer) -> torch.Tensor:
        if self.step == 3:
            raise KeyboardInterrupt
        return train_step(self)

    command = train(recorded, tmp_path / "run", *PRETRAINED, "training.evaluate_every=2")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        assert main(command) == 130
    capsys.readouterr()
    assert main([*command, "training.resume=true"]) == 0
    assert "can be reconstructed" not in capsys.readouterr().out, "they are not learned again"
    whole = weights(run)
    assert all(torch.equal(values, whole[name]) for name, values in weights(tmp_path / "run").items())


def test_what_keypoints_are_learned_from(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[int, int]] = []

    def noted(encoder: object, windows: Windows, *, steps: int, seed: int, **rest: object) -> float:
        given.append((len(windows), seed))
        return 0.5

    monkeypatch.setattr("flowchunk.policy.fitting.learn_keypoints", noted)
    options = ("seed=7", "dataset.validation_fraction=0.4")
    assert main(train(recorded, tmp_path / "run", *PRETRAINED, *options)) == 0
    frames = int(Store.open(recorded).episode_lengths.sum())
    ((windows, seed),) = given
    assert seed == 7
    assert frames < windows < 2 * frames, "mirrored, too, and not from held-out episodes, which are fewer"


def test_a_run_with_other_keypoints_cannot_be_resumed(run: Path, recorded: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    config = ChunkPolicy.load(run).config
    other = replace(config, vision_options={**config.vision_options, "keypoints": 5})
    training = TrainingConfig(steps=9, batch_size=8)
    with pytest.raises(CheckpointError, match="does not fit this training run"):
        fit(Store.open(recorded), other, training, output_dir=tmp_path / "run", vision_pretrain_steps=3, resume=True)


def test_the_recipe_learns_keypoints_first(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = ["experiment=pusht_image_keypoints", "vision.pretrain_steps=2"]
    assert main(train(recorded, tmp_path / "run", *recipe)) == 0
    assert "can be reconstructed from the keypoints" in " ".join(capsys.readouterr().out.split())
    policy = ChunkPolicy.load(tmp_path / "run")
    assert policy.config.sampling.noise_scale == 0.5
    assert policy.observation_spec.fields["image"].crop == (84, 84)


def test_keypoints_are_learned_for_estimates_too(recorded: Path, tmp_path: Path) -> None:
    options = ["task=own", "policy.estimated=[agent_position]", "policy.relative_to=null", "vision=small_conv"]
    command = [option for option in train(recorded, tmp_path / "run", *PRETRAINED) if not option.startswith("task=")]
    assert main([*command, *options]) == 0
    assert set(ChunkPolicy.load(tmp_path / "run").estimated_spec.fields) == {"agent_position"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["vision.pretrain_steps=0"], "vision.pretrain_steps=0 must be at least 1, or null"),
        (["vision.pretrain_steps=many"], "vision.pretrain_steps=many"),
    ],
)
def test_steps_that_cannot_be_taken_are_refused(
    options: list[str],
    message: str,
    recorded: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(train(recorded, tmp_path / "run", *options)) == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_a_policy_to_fine_tune_has_its_encoder(run: Path, recorded: Path, tmp_path: Path) -> None:
    policy, store = ChunkPolicy.load(run), Store.open(recorded)
    with pytest.raises(ConfigurationError, match="the policy to fine-tune has an image encoder already"):
        fit(store, policy, output_dir=tmp_path / "run", vision_pretrain_steps=2)
    assert main(train(recorded, tmp_path / "tuned", f"training.init_from={run}")) == 0
    before, after = encoder_of(weights(run)), encoder_of(weights(tmp_path / "tuned"))
    assert not all(torch.equal(values, before[name]) for name, values in after.items()), "fine-tuned as a whole"
