"""Small images to generate: scikit-learn's digits, or any folder or zip archive of PNG and JPEG files."""

from __future__ import annotations

import io
import posixpath
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps

from flowchunk.datasets.errors import ConfigurationError, DatasetError
from flowchunk.datasets.shape_repr import shape_repr

SUFFIXES = (".png", ".jpg", ".jpeg")
SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L")
ONE_CHANNEL_MODES = ("1", "L", "LA", *SIXTEEN_BIT_MODES)


@dataclass(frozen=True)
class ImageDataset:
    """Images of one size.

    images: uint8 (N, H, W, C). labels: int64 (N,), indices of ``label_names``; None without classes.
    """

    images: np.ndarray
    labels: np.ndarray | None
    label_names: tuple[str, ...]

    __repr__ = shape_repr


def load_image_dataset(source: str, *, size: int | None = None, invert: bool = False) -> ImageDataset:
    """Load the images of a source, sorted by name.

    source: ``digits`` for scikit-learn's 8x8 digits, else a folder or zip archive, searched recursively. An image's class is
    its folder, relative to the deepest folder that contains all images; if some images lie directly in that folder, there
    are no classes. size: resize all images to a square of so many pixels. invert: swap dark and light.

    Grayscale images have one channel; if any image has colors, all have three. Transparent parts become white.
    Raises ConfigurationError for a size below 1, DatasetError if files are missing, damaged or of different sizes.
    """
    if size is not None and size < 1:
        raise ConfigurationError(f"dataset.size is in pixels, at least 1, not {size}")
    dataset = _digits(size) if source == "digits" else _files(Path(source).expanduser(), size)
    return replace(dataset, images=255 - dataset.images) if invert else dataset


def stratified_subset(dataset: ImageDataset, n: int, rng: np.random.Generator) -> ImageDataset:
    """n images sampled without replacement, in equal numbers per class as far as possible, in their original order.

    Raises ConfigurationError unless 1 <= n <= N.
    """
    total = len(dataset.images)
    if not 1 <= n <= total:
        raise ConfigurationError(f"cannot choose {n} images of {total}; ask for 1 to {total}")
    grouped, labels = _shuffled_by_class(dataset, rng)
    place_in_class = np.arange(total) - np.searchsorted(labels, labels)
    tie_break = rng.random(total)  # which classes provide one more image if n is not divisible by their number
    chosen = grouped[np.lexsort((tie_break, place_in_class))[:n]]
    return _take(dataset, np.sort(chosen))


def stratified_halves(dataset: ImageDataset, rng: np.random.Generator) -> tuple[ImageDataset, ImageDataset]:
    """Two disjoint random halves of equal size, with each class halved as evenly as possible.

    Of an odd number, one image is left out. Raises ConfigurationError for fewer than two images.
    """
    half = len(dataset.images) // 2
    if not half:
        raise ConfigurationError(f"halves need at least 2 images, got {len(dataset.images)}")
    grouped, _ = _shuffled_by_class(dataset, rng)
    first, second = grouped[: 2 * half : 2], grouped[1 : 2 * half : 2]
    return _take(dataset, np.sort(first)), _take(dataset, np.sort(second))


def stratified_split(
    dataset: ImageDataset, fraction: float, rng: np.random.Generator
) -> tuple[ImageDataset, ImageDataset]:
    """A random fraction of the images, and the rest, both with classes in proportion and in their original order.

    fraction: in (0, 1). Raises ConfigurationError if one of the two would be empty.
    """
    count = round(fraction * len(dataset.images))
    if not 0 < count < len(dataset.images):
        raise ConfigurationError(f"cannot split {len(dataset.images)} images at {fraction:g}; more are needed")
    order = _stratified_order(dataset, rng)
    return _take(dataset, np.sort(order[:count])), _take(dataset, np.sort(order[count:]))


def stratified_shuffle(dataset: ImageDataset, rng: np.random.Generator) -> ImageDataset:
    """The images in a random order, every prefix of which has the classes in proportion."""
    return _take(dataset, _stratified_order(dataset, rng))


def _stratified_order(dataset: ImageDataset, rng: np.random.Generator) -> np.ndarray:
    grouped, labels = _shuffled_by_class(dataset, rng)
    _, starts, classes, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    place_in_class = np.arange(len(labels)) - starts[classes]
    quantile = (place_in_class + rng.random(len(sizes))[classes]) / sizes[
        classes
    ]  # one offset per class: evenly spaced
    return grouped[np.argsort(quantile, kind="stable")]


def _shuffled_by_class(dataset: ImageDataset, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Indices of all images, grouped by class and shuffled within each, and their (sorted) labels."""
    shuffled = rng.permutation(len(dataset.images))
    labels = np.zeros(len(shuffled), np.int64) if dataset.labels is None else dataset.labels[shuffled]
    by_class = np.argsort(labels, kind="stable")
    return shuffled[by_class], labels[by_class]


def _take(dataset: ImageDataset, indices: np.ndarray) -> ImageDataset:
    labels = None if dataset.labels is None else dataset.labels[indices]
    return replace(dataset, images=dataset.images[indices], labels=labels)


def _digits(size: int | None) -> ImageDataset:
    from sklearn.datasets import load_digits  # here, because importing it takes a second

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]  # (N, 8, 8, 1), from 0 to 16
    if size is not None:
        images = np.stack([_pixels(Image.fromarray(image[..., 0]), size) for image in images])
    return ImageDataset(images, bunch.target.astype(np.int64), tuple(str(digit) for digit in range(10)))


def _files(path: Path, size: int | None) -> ImageDataset:
    names, images = [], []
    for name, content in _archive(path) if path.is_file() else _folder(path):
        names.append(name)
        images.append(_pixels(_decode(content, f"{path}/{name}"), size))
    if not names:
        raise DatasetError(f"{path}: expected images ({', '.join(SUFFIXES)}), found none there or in its folders")
    for name, image in zip(names, images, strict=True):
        if image.shape[:2] != images[0].shape[:2]:
            first, other = ("x".join(map(str, shape[1::-1])) for shape in (images[0].shape, image.shape))  # W x H
            raise DatasetError(
                f"{path}: images must be of one size, but {names[0]} is {first} and {name} is {other}; "
                "give size=32, for example, to resize all to a square"
            )
    channels = max(image.shape[2] for image in images)
    shape = (*images[0].shape[:2], channels)
    labels, label_names = _classes(names)
    return ImageDataset(np.stack([np.broadcast_to(image, shape) for image in images]), labels, label_names)


def _classes(names: list[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels and their names, from the files' folders."""
    folders = [posixpath.dirname(name) for name in names]
    root = posixpath.commonpath(folders)
    if root in folders:
        return None, ()
    classes = [str(PurePosixPath(folder).relative_to(root)) for folder in folders]
    label_names, labels = np.unique(classes, return_inverse=True)
    return labels.astype(np.int64), tuple(map(str, label_names))


def _is_image_file(name: PurePosixPath) -> bool:
    """Whether a relative path names an image that is neither hidden nor one of those that macOS adds to archives."""
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in name.parts)
    return name.suffix.lower() in SUFFIXES and not hidden


def _folder(path: Path) -> Iterator[tuple[str, bytes]]:
    """Relative names and contents of the images in a folder, sorted by name."""
    if not path.is_dir():
        raise DatasetError(f"{path}: expected a folder or .zip archive of images, found nothing; check the path")
    names = (PurePosixPath(file.relative_to(path).as_posix()) for file in path.rglob("*") if file.is_file())
    for name in sorted(str(name) for name in names if _is_image_file(name)):
        try:
            yield name, (path / name).read_bytes()
        except OSError as error:
            raise DatasetError(f"{path}/{name}: cannot be read ({error.strerror})") from error


def _archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """Relative names and contents of the images in a zip archive, sorted by name."""
    name = ""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(name for name in archive.namelist() if _is_image_file(PurePosixPath(name))):
                yield name, archive.read(name)
    # zipfile raises other errors than its own for a damaged stream, a password or an unknown compression.
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        where = f"{path}/{name}" if name else str(path)
        raise DatasetError(
            f"{where}: expected a folder or an intact .zip archive of images, but it cannot be read ({error}); "
            "copy or download it again"
        ) from error


def _decode(content: bytes, name: str) -> Image.Image:
    """The image upright, in mode L if it is grayscale, else RGB."""
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
        upright = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{name}: is not a readable image ({error}); replace or remove the file") from error
    mode = "L" if image.mode in ONE_CHANNEL_MODES else "RGB"
    if image.mode in SIXTEEN_BIT_MODES:  # Pillow's conversion would clip everything above 255
        return Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
    return upright.convert(mode)


def _pixels(image: Image.Image, size: int | None) -> np.ndarray:
    """uint8 (H, W, C), resized to a square if ``size`` is given; Pillow's filters antialias."""
    resized = image if size is None else image.resize((size, size), Image.Resampling.LANCZOS)
    pixels = np.asarray(resized)
    return pixels[..., None] if pixels.ndim == 2 else pixels
