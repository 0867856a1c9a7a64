"""Image data sets: digits, folders and archives are read as arrays, and damage is named."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowchunk.datasets.errors import ConfigurationError, DatasetError
from flowchunk.datasets.generated.image_dataset import (
    ImageDataset,
    load_image_dataset,
    stratified_halves,
    stratified_shuffle,
    stratified_split,
    stratified_subset,
)

OMNIGLOT = Path(__file__).parents[3] / "shared" / "data" / "omniglot" / "images_background_small1.zip"
RNG = np.random.default_rng


def save(path: Path, values: object, mode: str = "L", **options: object) -> Path:
    """An image of a single value, 6 wide and 4 high by default."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = options.pop("size", (6, 4))
    assert isinstance(size, tuple)
    Image.new(mode, size, values).save(path, **options)  # type: ignore[arg-type]
    return path


def classes(root: Path) -> Path:
    """Two classes of three images, each with a different shade of gray."""
    for index in range(6):
        save(root / ("cats", "dogs")[index // 3] / f"{index}.png", 40 * index)
    return root


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            archive.write(file, file.relative_to(folder.parent))
    return path


def dataset_of(labels: list[int]) -> ImageDataset:
    """Images of one pixel, which contains their index."""
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return ImageDataset(images, np.array(labels), tuple("abc"))


# What is read.


def test_digits() -> None:
    digits = load_image_dataset("digits")
    assert digits.images.shape == (1797, 8, 8, 1)
    assert digits.images.dtype == np.uint8
    assert (digits.images.min(), digits.images.max()) == (0, 255)
    assert digits.labels is not None
    assert digits.labels.dtype == np.int64
    assert set(digits.labels.tolist()) == set(range(10))
    assert digits.label_names == tuple("0123456789")
    larger = load_image_dataset("digits", size=12)
    assert larger.images.shape == (1797, 12, 12, 1)
    np.testing.assert_array_equal(larger.labels, digits.labels)


@pytest.mark.parametrize("archived", [False, True])
def test_folders_and_archives_are_classes(tmp_path: Path, archived: bool) -> None:
    source = classes(tmp_path / "pets")
    dataset = load_image_dataset(str(zipped(source, tmp_path / "pets.zip") if archived else source))
    assert dataset.images.shape == (6, 4, 6, 1)
    np.testing.assert_array_equal(dataset.images[:, 0, 0, 0], [0, 40, 80, 120, 160, 200])
    np.testing.assert_array_equal(dataset.labels, [0, 0, 0, 1, 1, 1])
    assert dataset.label_names == ("cats", "dogs")


def test_classes_may_lie_deep(tmp_path: Path) -> None:
    for index, name in enumerate(("Greek/alpha", "Greek/beta", "Latin/a")):
        save(tmp_path / "letters" / name / "1.png", index)
    assert load_image_dataset(str(tmp_path)).label_names == ("Greek/alpha", "Greek/beta", "Latin/a")


@pytest.mark.parametrize("names", [("1.png", "2.png"), ("cats/1.png", "cats/2.png"), ("1.png", "cats/2.png")])
def test_without_two_classes_there_are_no_labels(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        save(tmp_path / name, 0)
    dataset = load_image_dataset(str(tmp_path))
    assert len(dataset.images) == 2
    assert dataset.labels is None
    assert dataset.label_names == ()


def test_hidden_and_other_files_are_ignored(tmp_path: Path) -> None:
    source = classes(tmp_path / "pets")
    for name in ("__MACOSX/cats/1.png", ".cache/1.png", "cats/._0.png", "cats/notes.txt"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"no image")
    assert len(load_image_dataset(str(source)).images) == 6
    assert len(load_image_dataset(str(zipped(source, tmp_path / "pets.zip"))).images) == 6


def test_jpegs_and_capital_suffixes_are_images(tmp_path: Path) -> None:
    save(tmp_path / "a.JPG", 100, format="JPEG")
    save(tmp_path / "b.jpeg", 100)
    np.testing.assert_allclose(load_image_dataset(str(tmp_path)).images, 100, atol=2)


@pytest.mark.parametrize(
    ("mode", "value", "expected"), [("1", 1, 255), ("L", 77, 77), ("I;16", 77 * 256, 77), ("LA", (77, 255), 77)]
)
def test_grayscale_has_one_channel(tmp_path: Path, mode: str, value: object, expected: int) -> None:
    save(tmp_path / "a.png", value, mode)
    np.testing.assert_array_equal(load_image_dataset(str(tmp_path)).images, np.full((1, 4, 6, 1), expected))


def test_one_image_in_color_gives_all_three_channels(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 77)
    save(tmp_path / "b.png", (10, 20, 30), "RGB")
    images = load_image_dataset(str(tmp_path)).images
    assert images.shape == (2, 4, 6, 3)
    assert images[:, 0, 0].tolist() == [[77, 77, 77], [10, 20, 30]]


def test_transparent_parts_become_white(tmp_path: Path) -> None:
    save(tmp_path / "a.png", (10, 20, 30, 0), "RGBA")
    assert (load_image_dataset(str(tmp_path)).images == 255).all()


def test_photographs_are_rotated_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be rotated by a quarter turn
    save(tmp_path / "a.jpg", 0, exif=exif)
    assert load_image_dataset(str(tmp_path)).images.shape == (1, 6, 4, 1)


def test_resizing_allows_mixed_sizes(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 50, size=(9, 5))
    stripes = np.tile(np.array([0, 255], np.uint8), (32, 16))
    Image.fromarray(stripes).save(tmp_path / "b.png")
    images = load_image_dataset(str(tmp_path), size=4).images
    assert images.shape == (2, 4, 4, 1)
    assert (images[0] == 50).all()
    np.testing.assert_allclose(images[1], 127.5, atol=20)  # antialiased: every fourth pixel would be black or white


def test_inverting_makes_dark_light(tmp_path: Path) -> None:
    source = str(classes(tmp_path))
    dataset, inverted = load_image_dataset(source), load_image_dataset(source, invert=True)
    np.testing.assert_array_equal(inverted.images, 255 - dataset.images)
    assert inverted.images.dtype == np.uint8
    np.testing.assert_array_equal(inverted.labels, dataset.labels)


def test_omniglot() -> None:
    if not OMNIGLOT.is_file():
        pytest.skip("needs the Omniglot archive in ../shared/data/omniglot")
    letters = load_image_dataset(str(OMNIGLOT), size=28, invert=True)
    assert letters.images.shape == (2720, 28, 28, 1)
    assert letters.labels is not None
    assert len(letters.label_names) == 136
    assert letters.label_names[0] == "Balinese/character01"
    assert (np.bincount(letters.labels) == 20).all()
    assert letters.images.mean() < 64  # thin strokes, light on dark


# Subsets and splits.


def test_subsets_are_balanced_and_repeatable() -> None:
    dataset = dataset_of([0] * 10 + [1] * 50 + [2] * 3)
    subset = stratified_subset(dataset, 20, RNG(0))
    assert subset.labels is not None
    assert sorted(np.bincount(subset.labels).tolist()) == [3, 8, 9]
    assert subset.label_names == dataset.label_names
    indices = subset.images[:, 0, 0, 0]
    assert (np.diff(indices) > 0).all()
    np.testing.assert_array_equal(subset.labels, dataset.labels[indices] if dataset.labels is not None else None)
    np.testing.assert_array_equal(indices, stratified_subset(dataset, 20, RNG(0)).images[:, 0, 0, 0])
    assert not np.array_equal(indices, stratified_subset(dataset, 20, RNG(1)).images[:, 0, 0, 0])


def test_the_remainder_goes_to_any_class() -> None:
    dataset = dataset_of([0, 1, 2] * 10)
    samples = [stratified_subset(dataset, 10, RNG(seed)).labels for seed in range(20)]
    assert {int(np.bincount(labels).argmax()) for labels in samples if labels is not None} == {0, 1, 2}


def test_halves_share_nothing_and_are_balanced() -> None:
    dataset = dataset_of([0] * 10 + [1] * 50 + [2] * 3)
    first, second = stratified_halves(dataset, RNG(0))
    assert len(first.images) == len(second.images) == 31
    assert not set(first.images.flat) & set(second.images.flat)
    assert first.labels is not None
    assert second.labels is not None
    assert np.abs(np.bincount(first.labels) - np.bincount(second.labels)).max() <= 1


def test_without_labels_all_images_are_one_class() -> None:
    dataset = ImageDataset(np.arange(10, dtype=np.uint8).reshape(-1, 1, 1, 1), None, ())
    assert stratified_subset(dataset, 4, RNG(0)).labels is None
    first, second = stratified_halves(dataset, RNG(0))
    assert sorted([*first.images.flat, *second.images.flat]) == list(range(10))


def test_a_fraction_of_every_class_is_split_off_and_nothing_is_lost() -> None:
    dataset = dataset_of([0] * 30 + [1] * 60 + [2] * 9)
    share, rest = stratified_split(dataset, 1 / 3, RNG(0))
    assert np.bincount(np.asarray(share.labels)).tolist() == [10, 20, 3]
    assert sorted([*share.images.flat, *rest.images.flat]) == sorted(dataset.images.flat)
    assert (np.diff(np.asarray(rest.labels)) >= 0).all(), "in their old order"
    again, other = stratified_split(dataset, 1 / 3, RNG(0))[0], stratified_split(dataset, 1 / 3, RNG(1))[0]
    assert np.array_equal(again.images, share.images)
    assert not np.array_equal(other.images, share.images)


@pytest.mark.parametrize("n", [8, 20, 50])
def test_a_stratified_shuffle_begins_with_the_classes_in_proportion(n: int) -> None:
    mixed = stratified_shuffle(dataset_of([0] * 25 + [1] * 50 + [2] * 25), RNG(0))
    counts = np.bincount(np.asarray(mixed.labels)[:n], minlength=3)
    assert np.abs(counts - n * np.array([0.25, 0.5, 0.25])).max() < 1
    other = stratified_shuffle(dataset_of([0] * 25 + [1] * 50 + [2] * 25), RNG(1))
    assert not np.array_equal(mixed.images, other.images)


def test_images_without_classes_are_split_and_shuffled_too() -> None:
    dataset = replace(dataset_of([0] * 10), labels=None)
    share, rest = stratified_split(dataset, 0.3, RNG(0))
    assert (len(share.images), len(rest.images), share.labels) == (3, 7, None)
    assert sorted(stratified_shuffle(dataset, RNG(0)).images.flat) == list(range(10))


# What is refused.


def test_an_empty_part_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"cannot split 2 images at 0\.1"):
        stratified_split(dataset_of([0, 1]), 0.1, RNG(0))


def test_a_missing_path(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere: expected a folder or \.zip archive of images, found nothing"):
        load_image_dataset(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("archived", [False, True])
def test_no_images(tmp_path: Path, archived: bool) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no image")
    source = zipped(tmp_path / "texts", tmp_path / "texts.zip") if archived else tmp_path / "texts"
    with pytest.raises(DatasetError, match=r"texts.*: expected images \(\.png, \.jpg, \.jpeg\), found none"):
        load_image_dataset(str(source))


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "other", "truncated"])
def test_an_unreadable_image_is_named(tmp_path: Path, content: bytes | None) -> None:
    source = classes(tmp_path / "pets")
    damaged = source / "dogs" / "4.png"
    damaged.write_bytes(damaged.read_bytes()[:50] if content is None else content)
    for path in (source, zipped(source, tmp_path / "pets.zip")):
        with pytest.raises(DatasetError, match=r"dogs/4\.png: is not a readable image .*; replace or remove the file"):
            load_image_dataset(str(path))


def test_mixed_sizes_are_named_with_the_remedy(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 0)
    save(tmp_path / "b.png", 0, size=(7, 9))
    with pytest.raises(DatasetError, match=r"a\.png is 6x4 and b\.png is 7x9; give size="):
        load_image_dataset(str(tmp_path))


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    path = zipped(classes(tmp_path / "pets"), tmp_path / "pets.zip")
    intact = path.read_bytes()
    path.write_bytes(intact[: len(intact) // 2])
    with pytest.raises(
        DatasetError, match=r"pets\.zip: expected a folder or an intact \.zip archive .* copy or download"
    ):
        load_image_dataset(str(path))
    with zipfile.ZipFile(io.BytesIO(intact)) as archive:
        at = archive.getinfo("pets/cats/1.png").header_offset + 30 + len("pets/cats/1.png") + 20
    path.write_bytes(intact[:at] + b"damage" + intact[at + 6 :])
    with pytest.raises(DatasetError, match=r"pets/cats/1\.png: expected .*CRC"):
        load_image_dataset(str(path))


def test_a_single_image_is_not_an_archive(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"a\.png: expected a folder or an intact \.zip archive"):
        load_image_dataset(str(save(tmp_path / "a.png", 0)))


def test_no_size_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"dataset\.size is in pixels, at least 1, not 0"):
        load_image_dataset("digits", size=0)


@pytest.mark.parametrize("n", [0, 7])
def test_more_than_there_are_cannot_be_chosen(n: int) -> None:
    with pytest.raises(ConfigurationError, match=f"cannot choose {n} images of 6"):
        stratified_subset(dataset_of([0] * 6), n, RNG(0))


def test_one_image_has_no_halves() -> None:
    with pytest.raises(ConfigurationError, match="at least 2 images, got 1"):
        stratified_halves(dataset_of([0]), RNG(0))
