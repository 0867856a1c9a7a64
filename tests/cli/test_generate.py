"""flowchunk train task=DOMAIN and flowchunk generate: reproducible samples, plots and measures of every domain."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from flowchunk.cli.domains import DOMAINS
from flowchunk.cli.main import main
from flowchunk.policy.data_model import DataModel
from flowchunk.policy.diffusion.objectives import objective_names
from flowchunk.policy.networks import NETWORKS
from flowchunk.policy.networks.image_networks import IMAGE_NETWORKS
from flowchunk.policy.training.trainer import Trainer


@dataclass(frozen=True)
class Expected:
    """The results of a domain: shape of a sample, names of the measures, and files of the plots."""

    shape: tuple[int, ...]
    measures: set[str]
    plots: set[str]


EXPECTED = {
    "toy2d": Expected((1, 2), {"sliced_wasserstein", "energy_distance"}, {"samples.png", "animation.gif"}),
    "obstacle": Expected(
        (16, 2), {"sliced_wasserstein", "energy_distance", "left_fraction", "collision_fraction"}, {"samples.png"}
    ),
    "torus": Expected(
        (1, 3),
        {
            "angular_energy_distance",
            "elbow_up_fraction",
            "position_error_m",
            "position_error_p95_m",
            "heading_error_rad",
        },
        {"samples.png"},
    ),
    "images": Expected(
        (1, 8, 8), {"kernel_distance", "class_accuracy"}, {"samples.png", "nearest_training_images.png"}
    ),
}


@dataclass(frozen=True)
class Generated:
    """One domain after training and generating."""

    task: str
    folder: Path

    @property
    def samples(self) -> np.ndarray:
        return samples(self.folder)

    @property
    def expected(self) -> Expected:
        return EXPECTED[self.task]


def samples(folder: Path) -> np.ndarray:
    made: np.ndarray = np.load(folder / "samples.npy")
    return made


def measures(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "metrics.json").read_text())
    assert isinstance(content, dict)
    return content


def train(run: Path, *options: str) -> Path:
    assert main(["train", f"output_dir={run}", *options]) == 0
    return run


def generate(run: Path, folder: Path, *options: str) -> Path:
    assert main(["generate", str(run), f"output_dir={folder}", "n=12", "nfe=2", "floor_pairs=1", *options]) == 0
    return folder


@pytest.fixture(scope="module", params=EXPECTED)
def generated(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_generative: tuple[str, ...]
) -> Generated:
    run = train(tmp_path_factory.mktemp("runs") / request.param, f"task={request.param}", *tiny_generative)
    assert main(["generate", str(run), "n=50", "nfe=2", "floor_pairs=2"]) == 0
    return Generated(request.param, run / "generated")


# What is written


def test_every_domain_is_here() -> None:
    assert EXPECTED.keys() == DOMAINS.keys()


def test_samples_have_the_shape_of_data(generated: Generated) -> None:
    assert generated.samples.shape == (50, *generated.expected.shape)
    assert generated.samples.dtype == np.float32
    assert np.isfinite(generated.samples).all()
    assert len(np.unique(generated.samples, axis=0)) == 50


def test_every_measure_stands_beside_its_floor(generated: Generated) -> None:
    measured = measures(generated.folder)
    ends = ("", "_std", "_floor", "_floor_std")
    assert measured.keys() == {f"{name}{end}" for name in generated.expected.measures for end in ends}
    assert all(type(value) is float and np.isfinite(value) for value in measured.values())


def test_the_floor_is_what_data_get(generated: Generated) -> None:
    measured = measures(generated.folder)
    flawless = {"collision_fraction": 0.0, "position_error_m": 0.0, "heading_error_rad": 0.0, "class_accuracy": 1.0}
    for name in generated.expected.measures & flawless.keys():
        assert measured[f"{name}_floor"] == pytest.approx(flawless[name], abs=0.05)
        assert abs(measured[name] - flawless[name]) > 0.1, "this model hardly learned"


def test_no_plot_is_blank(generated: Generated) -> None:
    written = {file.name for file in generated.folder.iterdir()}
    assert written == {"samples.npy", "metrics.json", *generated.expected.plots}
    for name in generated.expected.plots:
        with Image.open(generated.folder / name) as image:
            shades = np.unique(np.asarray(image.convert("L")))
        assert len(shades) > 10, f"{name} is blank"


@pytest.mark.parametrize("generated", ["toy2d"], indirect=True)
def test_the_animation_of_a_toy_moves(generated: Generated) -> None:
    with Image.open(generated.folder / "animation.gif") as video:
        assert getattr(video, "n_frames", 1) > 20
        first = np.asarray(video.convert("L"))
        video.seek(20)
        assert (np.asarray(video.convert("L")) != first).mean() > 0.01


# What options do


def test_the_same_seed_gives_the_same_samples(image_run: Path, tmp_path: Path) -> None:
    first, again = (generate(image_run, tmp_path / name, "seed=3") for name in ("first", "again"))
    other = generate(image_run, tmp_path / "other", "seed=4")
    assert np.array_equal(samples(first), samples(again))
    assert measures(first) == measures(again)
    assert not np.array_equal(samples(first), samples(other))


def test_a_class_is_chosen_by_number_or_by_name(image_run: Path, tmp_path: Path) -> None:
    by_number, by_name, other = (
        generate(image_run, tmp_path / label, f"label={label}", "n=24") for label in ("1", "dogs", "cats")
    )
    assert np.array_equal(samples(by_number), samples(by_name))
    assert not np.array_equal(samples(by_number), samples(other))


def test_guidance_leads_elsewhere(image_run: Path, tmp_path: Path) -> None:
    plain, guided = (generate(image_run, tmp_path / f"{g}", f"guidance={g}", "nfe=4") for g in (1, 3.0))
    assert not np.array_equal(samples(plain), samples(guided))


@pytest.mark.parametrize("option", ["nfe=4", "solver=heun"])
def test_nfe_and_solver_can_be_chosen(option: str, image_run: Path, tmp_path: Path) -> None:
    plain, other = generate(image_run, tmp_path / "plain"), generate(image_run, tmp_path / "other", option)
    assert not np.array_equal(samples(plain), samples(other))


def test_more_are_made_than_there_are_data(image_run: Path, tmp_path: Path) -> None:
    assert len(samples(generate(image_run, tmp_path, "n=70"))) == 70


def test_images_without_classes_have_no_labels(
    image_folder: Path, tmp_path: Path, tiny_generative: tuple[str, ...]
) -> None:
    run = train(
        tmp_path / "run", "task=images", "dataset=folder", f"dataset.path={image_folder / 'cats'}", *tiny_generative
    )
    folder = generate(run, tmp_path / "made")
    assert samples(folder).shape == (12, 1, 8, 8)
    assert measures(folder).keys() == {"kernel_distance", "kernel_distance_floor"}, "one pair has no deviation"
    assert DataModel.load(run).config.classes == 0


def test_images_are_resized_and_inverted(image_folder: Path, tmp_path: Path, tiny_generative: tuple[str, ...]) -> None:
    folder = ("dataset=folder", f"dataset.path={image_folder}")
    train(tmp_path / "run", "task=images", *folder, "dataset.size=6", "dataset.invert=true", *tiny_generative)
    assert samples(generate(tmp_path / "run", tmp_path / "made")).shape == (12, 1, 6, 6)


# Training


def test_a_resumed_run_ends_as_if_it_had_not_been_interrupted(
    tmp_path: Path,
    tiny_generative: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = (
        "task=toy2d",
        *tiny_generative,
        "training.steps=6",
        "training.checkpoint_every=2",
        "training.log_every=3",
        "evaluation.samples=20",
        "model.coupling=ot",
    )
    whole, broken = train(tmp_path / "whole", *options), tmp_path / "broken"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted_at(3))
        assert main(["train", f"output_dir={broken}", *options]) == 130
    train(broken, *options, "training.resume=true")
    assert "resuming from step 2" in capsys.readouterr().out
    for name in ("last/model", "last/training_state", "best/model"):
        ours, theirs = (load_file(run / f"checkpoints/{name}.safetensors") for run in (broken, whole))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def interrupted_at(step: int) -> Callable[[Trainer], torch.Tensor]:
    """``Trainer.train_step`` as if Ctrl-C was pressed before this step."""
    train_step = Trainer.train_step

    def interrupted(self: Trainer) -> torch.Tensor:
        if self.step == step:
            raise KeyboardInterrupt
        return train_step(self)

    return interrupted


def test_resuming_with_other_data_is_refused(
    toy_run: Path, tmp_path: Path, tiny_generative: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(toy_run, run)
    command = ["train", "task=toy2d", f"output_dir={run}", *tiny_generative, "training.resume=true", "dataset=spiral"]
    assert main(command) == 1
    assert "(dataset.name: 8gaussians then, spiral now)" in capsys.readouterr().err


def test_the_energy_distance_chooses_the_best_checkpoint(tmp_path: Path, tiny_generative: tuple[str, ...]) -> None:
    run = train(tmp_path / "run", "task=torus", *tiny_generative, "evaluation.samples=20", "training.evaluate_every=10")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    distances = {line["step"]: line["energy_distance"] for line in lines if "energy_distance" in line}
    assert distances.keys() == {10, 20}
    best = json.loads((run / "checkpoints" / "best" / "checkpoint.json").read_text())["training"]
    assert best["step"] == min(distances, key=lambda step: distances[step])
    assert best["metrics"]["score"] == -min(distances.values())


def test_a_checkpoint_remembers_its_data(image_run: Path, image_folder: Path) -> None:
    content = json.loads((image_run / "checkpoints" / "last" / "checkpoint.json").read_text())
    assert content["kind"] == "generative_model"
    assert content["training"]["task"] == "images"
    assert content["training"]["options"]["dataset"] == str(image_folder)


def learns(run: Path, *options: str) -> DataModel:
    """A model that was trained with these options, and that generates 3 finite data."""
    model = DataModel.load(train(run, *options))
    label = torch.zeros(3, dtype=torch.long) if model.config.classes else None
    made = model.generate(3, nfe=None if model.objective.valid_nfe else 4, label=label)
    assert made.shape == (3, *model.config.shape)
    assert made.isfinite().all()
    return model


PAIRS = {
    "flow": "linear",
    "noise_prediction": "linear_beta",
    "data_prediction": "cosine",
    "v": "sigmoid",
    "posterior": "linear",
    "regression": None,
    "mip": None,
    "flow_map": None,
}


@pytest.mark.parametrize("objective", objective_names())
def test_every_objective_trains(objective: str, tmp_path: Path, tiny_generative: tuple[str, ...]) -> None:
    schedule = [] if PAIRS[objective] is None else [f"schedule={PAIRS[objective]}"]
    model = learns(tmp_path / "run", "task=toy2d", *tiny_generative, f"objective={objective}", *schedule)
    assert (model.config.objective, model.config.schedule) == (objective, PAIRS[objective])


SMALL_NETWORKS: dict[str, tuple[str, ...]] = {
    "mlp": ("network.width=16", "network.blocks=1"),
    "mixer": ("network.width=16", "network.blocks=1"),
    "dit": ("network.width=16", "network.blocks=1", "network.heads=2"),
    "unet1d": ("network.channels=[8]",),  # a point of a toy is a single token, which cannot be halved
    "gru": ("network.width=16", "network.blocks=1"),
    "unet2d": ("network.widths=[8,16]",),
    "patch_dit": ("network.width=16", "network.blocks=1", "network.heads=2"),
    "local_conv": ("network.width=16", "network.blocks=1", "network.receptive_field=3"),
}


def test_every_network_is_here() -> None:
    assert SMALL_NETWORKS.keys() == NETWORKS.keys() | IMAGE_NETWORKS.keys()


@pytest.mark.parametrize("network", SMALL_NETWORKS)
def test_every_network_trains(
    network: str, image_folder: Path, tmp_path: Path, tiny_generative: tuple[str, ...]
) -> None:
    images = ("task=images", "dataset=folder", f"dataset.path={image_folder}", "model.augment=true")
    data = images if network in IMAGE_NETWORKS else ("task=toy2d",)
    few = ("training.steps=4", "training.log_every=2", f"network={network}", *SMALL_NETWORKS[network])
    assert learns(tmp_path / "run", *data, *tiny_generative[3:], *few).config.network == network


@pytest.mark.parametrize("dataset", ["two_moons", "checkerboard", "spiral"])
def test_every_toy_trains(dataset: str, tmp_path: Path, tiny_generative: tuple[str, ...]) -> None:
    learns(tmp_path / "run", "task=toy2d", f"dataset={dataset}", "dataset.samples=100", *tiny_generative)


def test_a_run_shorter_than_the_first_log_ends_well(tmp_path: Path, tiny_generative: tuple[str, ...]) -> None:
    train(tmp_path / "run", "task=toy2d", *tiny_generative, "training.steps=4", "training.log_every=100")
