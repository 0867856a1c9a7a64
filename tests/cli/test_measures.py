"""What samples are measured against: pictures that the judge never saw, the same draws as the floor, and copies."""

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
from flowchunk.cli.generate import CONDITIONS_SEED, against_data, data_draws, domain_of, floors
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


# Judge and draws


@pytest.fixture(scope="module")
def digits() -> Domain:
    options = {"dataset": "digits", "half": None, "samples": None, "size": None, "invert": False, "seed": 0}
    return make_domain("images", options)


def pictures_in(x: Any) -> set[bytes]:
    return {np.asarray(picture).tobytes() for picture in x}


def test_the_classifier_has_seen_neither_what_is_trained_on_nor_what_is_compared_with(picture_folder: Path) -> None:
    domain = halved(picture_folder, samples=None)
    judged = pictures_in(_as_x(domain.judges))
    assert len(judged) == 21
    assert domain.other is not None
    for seen in (domain.training().x, _as_x(domain.other), domain.fresh(100, 0).x, domain.fresh(100, 1).x):
        assert len(seen) == 21
        assert judged.isdisjoint(pictures_in(seen))


def _as_x(pictures: Any) -> torch.Tensor:
    return torch.from_numpy(pictures.images).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.mark.parametrize("n", [1000, 100])
def test_two_draws_share_no_picture_and_have_equal_shares_of_the_classes(n: int, digits: Domain) -> None:
    one, other, next_one = (digits.fresh(n, seed) for seed in (100_002, 100_003, 100_004))
    assert pictures_in(one.x).isdisjoint(pictures_in(other.x))
    assert pictures_in(one.x) != pictures_in(next_one.x)
    counts = [np.bincount(np.asarray(draw.label), minlength=10) for draw in (one, other, next_one)]
    assert max(np.abs(a - b).max() for a in counts for b in counts) <= 2
    assert len(one) == len(other) == min(n, 599)


def test_real_digits_reach_the_floor_and_the_floor_is_about_zero(digits: Domain) -> None:
    draws = data_draws(digits, 1000)
    floor = floors(digits, draws)
    assert abs(floor["kernel_distance"].mean) < (floor["kernel_distance"].std or 0)
    assert 0.95 < floor["class_accuracy"].mean < 1, "pictures that it never saw"
    real = against_data(digits, draws[0][0], draws[:1])
    assert real["kernel_distance"].mean == floors(digits, draws[:1])["kernel_distance"].mean
    noise = replace(draws[0][0], x=torch.rand_like(draws[0][0].x) * 2 - 1)
    assert against_data(digits, noise, draws)["kernel_distance"].mean > 20 * (floor["kernel_distance"].std or 0)


def test_samples_and_floor_share_their_draws_and_show_their_deviation(picture_run: Path, tmp_path: Path) -> None:
    made = generate(picture_run, tmp_path / "made", "floor_pairs=3")
    domain = domain_of(find_checkpoint(picture_run))
    draws = data_draws(domain, 12, pairs=3)
    label = domain.fresh(12, CONDITIONS_SEED).label
    generated = Samples(torch.from_numpy(np.load(made / "samples.npy")), label=label)
    values = [domain.measure(generated, other)["kernel_distance"] for _, other in draws]
    assert measures(made)["kernel_distance"] == pytest.approx(np.mean(values))
    assert measures(made)["kernel_distance_std"] == pytest.approx(np.std(values, ddof=1))
    data = [domain.measure(one, other)["kernel_distance"] for one, other in draws]
    assert measures(made)["kernel_distance_floor"] == pytest.approx(np.mean(data))
    assert measures(made)["kernel_distance_floor_std"] == pytest.approx(np.std(data, ddof=1))


def test_a_film_shows_the_times_that_sampling_stops_at(toy_run: Path) -> None:
    way = trajectories(DataModel.load(toy_run), 5, nfe=4)
    assert way.points.shape == (5, 5, 2)
    np.testing.assert_allclose(way.times, [0, 0.25, 0.5, 0.75, 1])


# Learning by heart


def halved(picture_folder: Path, *, samples: int | None = 20) -> Images:
    options = {"dataset": str(picture_folder), "half": 0, "samples": samples, "size": None, "invert": False, "seed": 0}
    return Images(options)


def test_a_model_of_a_half_is_asked_whether_it_copies(
    picture_folder: Path, tmp_path: Path, tiny_generative: tuple[str, ...]
) -> None:
    chosen = ("dataset=folder", f"dataset.path={picture_folder}", "dataset.half=0", "dataset.samples=20")
    run = tmp_path / "run"
    assert main(["train", f"output_dir={run}", "task=images", *chosen, *tiny_generative]) == 0
    measured = measures(generate(run, tmp_path / "made"))
    assert measured["nearer_to_training_share_floor"] == 0.5
    assert {"nearer_to_training_share", "copied_share", "copied_share_floor"} <= measured.keys()


def test_copies_are_told_from_pictures_never_seen(picture_folder: Path) -> None:
    domain = halved(picture_folder)
    assert domain.other is not None
    never_seen = torch.from_numpy(domain.other.images).permute(0, 3, 1, 2) / 127.5 - 1
    for x, share in ((domain.training().x, 1.0), (never_seen, 0.0)):
        memorised = domain.memorised(Samples(x))
        assert {name: pair[0] for name, pair in memorised.items()} == {
            "nearer_to_training_share": share,
            "copied_share": share,
        }
        assert [pair[1] for pair in memorised.values()] == [0.5, 0.0]


@pytest.mark.parametrize("count", [20, None])
def test_pictures_never_seen_are_as_many_of_each_class_as_those_seen(count: int | None, picture_folder: Path) -> None:
    domain = halved(picture_folder, samples=count)
    assert domain.other is not None
    mine, other = (np.bincount(np.asarray(pictures.labels)) for pictures in (domain.mine, domain.other))
    assert mine.sum() == other.sum() == (count or 21)
    assert np.abs(mine - other).max() <= 1
