"""Measures of samples: the classifier's own images, the same data samples as the floor, and memorization."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowchunk.cli.domains.domain import Domain, Samples, make_domain
from flowchunk.cli.domains.images import Images
from flowchunk.cli.domains.toy2d import trajectories
from flowchunk.cli.generate import CONDITIONS_SEED, load_domain, measure_floors, measure_samples, sample_data_pairs
from flowchunk.cli.main import main
from flowchunk.policy.checkpoint import find_checkpoint
from flowchunk.policy.data_model import DataModel


def generate(run: Path, folder: Path, *options: str) -> Path:
    assert main(["generate", str(run), f"output_dir={folder}", "n=12", "nfe=2", "floor_pairs=1", *options]) == 0
    return folder


def measures(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "metrics.json").read_text())
    assert isinstance(content, dict)
    return content


# Classifier and data samples


@pytest.fixture(scope="module")
def digits() -> Domain:
    options = {"dataset": "digits", "half": None, "samples": None, "size": None, "invert": False, "seed": 0}
    return make_domain("images", options)


def images_in(x: Any) -> set[bytes]:
    return {np.asarray(image).tobytes() for image in x}


def test_the_classifier_is_trained_on_images_of_its_own(image_folder: Path) -> None:
    domain = halved(image_folder, samples=None)
    judged = images_in(_as_x(domain.classifier_images))
    assert len(judged) == 21
    assert domain.held_out_images is not None
    for seen in (
        domain.train_data().x,
        _as_x(domain.held_out_images),
        domain.sample_data(100, 0).x,
        domain.sample_data(100, 1).x,
    ):
        assert len(seen) == 21
        assert judged.isdisjoint(images_in(seen))


def _as_x(dataset: Any) -> torch.Tensor:
    return torch.from_numpy(dataset.images).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.mark.parametrize("n", [1000, 100])
def test_two_data_samples_are_disjoint_with_equal_proportions_of_the_classes(n: int, digits: Domain) -> None:
    first, second, third = (digits.sample_data(n, seed) for seed in (100_002, 100_003, 100_004))
    assert images_in(first.x).isdisjoint(images_in(second.x))
    assert images_in(first.x) != images_in(third.x)
    counts = [np.bincount(np.asarray(data.label), minlength=10) for data in (first, second, third)]
    assert max(np.abs(a - b).max() for a in counts for b in counts) <= 2
    assert len(first) == len(second) == min(n, 599)


def test_real_digits_reach_the_floor_and_the_floor_is_about_zero(digits: Domain) -> None:
    pairs = sample_data_pairs(digits, 1000)
    floor = measure_floors(digits, pairs)
    assert abs(floor["kernel_distance"].mean) < (floor["kernel_distance"].std or 0)
    assert 0.95 < floor["class_accuracy"].mean < 1, "on held-out images"
    real = measure_samples(digits, pairs[0][0], pairs[:1])
    assert real["kernel_distance"].mean == measure_floors(digits, pairs[:1])["kernel_distance"].mean
    noise = replace(pairs[0][0], x=torch.rand_like(pairs[0][0].x) * 2 - 1)
    assert measure_samples(digits, noise, pairs)["kernel_distance"].mean > 20 * (floor["kernel_distance"].std or 0)


def test_samples_and_floor_are_measured_on_the_same_data(image_run: Path, tmp_path: Path) -> None:
    made = generate(image_run, tmp_path / "made", "floor_pairs=3")
    domain = load_domain(find_checkpoint(image_run))
    pairs = sample_data_pairs(domain, 12, num_pairs=3)
    label = domain.sample_data(12, CONDITIONS_SEED).label
    generated = Samples(torch.from_numpy(np.load(made / "samples.npy")), label=label)
    values = [domain.measure(generated, second)["kernel_distance"] for _, second in pairs]
    assert measures(made)["kernel_distance"] == pytest.approx(np.mean(values))
    assert measures(made)["kernel_distance_std"] == pytest.approx(np.std(values, ddof=1))
    data = [domain.measure(first, second)["kernel_distance"] for first, second in pairs]
    assert measures(made)["kernel_distance_floor"] == pytest.approx(np.mean(data))
    assert measures(made)["kernel_distance_floor_std"] == pytest.approx(np.std(data, ddof=1))


def test_trajectories_have_the_step_times_of_the_solver(toy_run: Path) -> None:
    paths = trajectories(DataModel.load(toy_run), 5, nfe=4)
    assert paths.points.shape == (5, 5, 2)
    np.testing.assert_allclose(paths.times, [0, 0.25, 0.5, 0.75, 1])


# Memorization


def halved(image_folder: Path, *, samples: int | None = 20) -> Images:
    options = {"dataset": str(image_folder), "half": 0, "samples": samples, "size": None, "invert": False, "seed": 0}
    return Images(options)


def test_memorization_is_measured_with_a_half(
    image_folder: Path, tmp_path: Path, tiny_generative: tuple[str, ...]
) -> None:
    chosen = ("dataset=folder", f"dataset.path={image_folder}", "dataset.half=0", "dataset.samples=20")
    run = tmp_path / "run"
    assert main(["train", f"output_dir={run}", "task=images", *chosen, *tiny_generative]) == 0
    measured = measures(generate(run, tmp_path / "made"))
    assert measured["fraction_nearer_to_training_floor"] == 0.5
    assert {"fraction_nearer_to_training", "copied_fraction", "copied_fraction_floor"} <= measured.keys()


def test_copies_are_distinguished_from_held_out_images(image_folder: Path) -> None:
    domain = halved(image_folder)
    assert domain.held_out_images is not None
    held_out = torch.from_numpy(domain.held_out_images.images).permute(0, 3, 1, 2) / 127.5 - 1
    for x, fraction in ((domain.train_data().x, 1.0), (held_out, 0.0)):
        memorization = domain.memorization(Samples(x))
        assert {name: pair[0] for name, pair in memorization.items()} == {
            "fraction_nearer_to_training": fraction,
            "copied_fraction": fraction,
        }
        assert [pair[1] for pair in memorization.values()] == [0.5, 0.0]


@pytest.mark.parametrize("count", [20, None])
def test_images_held_out_are_as_many_of_each_class_as_those_seen(count: int | None, image_folder: Path) -> None:
    domain = halved(image_folder, samples=count)
    assert domain.held_out_images is not None
    mine, other = (np.bincount(np.asarray(dataset.labels)) for dataset in (domain.train_images, domain.held_out_images))
    assert mine.sum() == other.sum() == (count or 21)
    assert np.abs(mine - other).max() <= 1
