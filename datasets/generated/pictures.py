"""Small pictures to generate: scikit-learn's digits, or any folder or zip archive of PNG and JPEG files."""

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

SUFFIXES = (".png", ".jpg", ".jpeg")
SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L")
ONE_CHANNEL_MODES = ("1", "L", "LA", *SIXTEEN_BIT_MODES)


@dataclass(frozen=True)
class Pictures:
    """images: uint8 (N, H, W, C); labels: int64 (N,), indices of label_names, or None where there are no classes."""

    images: np.ndarray
    labels: np.ndarray | None
    label_names: tuple[str, ...]


def load_pictures(source: str, *, size: int | None = None, invert: bool = False) -> Pictures:
    """The pictures of a source, in the order of their names.

    source: ``digits`` for scikit-learn's 8x8 digits, else a folder or zip archive, searched to any depth. A picture's
    class is the folder it lies in, named from the deepest folder that holds all pictures; where some lie right in that
    one, there are no classes. size: pixels of the square that all pictures are resized to. invert: dark becomes light.

    Pictures in shades of grey have one channel; if one has colours, all have three. Transparent parts become white.
    Raises ConfigurationError for a size under 1, DatasetError for what is missing, damaged or not of one size.
    """
    if size is not None and size < 1:
        raise ConfigurationError(f"dataset.size is in pixels, at least 1, not {size}")
    pictures = _digits(size) if source == "digits" else _files(Path(source).expanduser(), size)
    return replace(pictures, images=255 - pictures.images) if invert else pictures


def subset(pictures: Pictures, n: int, rng: np.random.Generator) -> Pictures:
    """n pictures drawn without replacement, as many of each class as far as it goes, in their old order.

    Raises ConfigurationError unless there are so many.
    """
    total = len(pictures.images)
    if not 1 <= n <= total:
        raise ConfigurationError(f"cannot choose {n} pictures of {total}; ask for 1 to {total}")
    grouped, labels = _shuffled_by_class(pictures, rng)
    place_in_class = np.arange(total) - np.searchsorted(labels, labels)
    turn = rng.random(total)  # which classes give one more where the classes do not divide n
    chosen = grouped[np.lexsort((turn, place_in_class))[:n]]
    return _take(pictures, np.sort(chosen))


def disjoint_halves(pictures: Pictures, rng: np.random.Generator) -> tuple[Pictures, Pictures]:
    """Two random halves of equal size that share no picture, each class halved as evenly as it goes.

    An odd picture is left out. Raises ConfigurationError for fewer than two pictures.
    """
    half = len(pictures.images) // 2
    if not half:
        raise ConfigurationError(f"halves need at least 2 pictures, got {len(pictures.images)}")
    grouped, _ = _shuffled_by_class(pictures, rng)
    first, second = grouped[: 2 * half : 2], grouped[1 : 2 * half : 2]
    return _take(pictures, np.sort(first)), _take(pictures, np.sort(second))


def split_off(pictures: Pictures, share: float, rng: np.random.Generator) -> tuple[Pictures, Pictures]:
    """A random share of the pictures, as large a share of each class as it goes, and the rest; both in their old order.

    share: in (0, 1). Raises ConfigurationError where that leaves nothing on one side.
    """
    count = round(share * len(pictures.images))
    if not 0 < count < len(pictures.images):
        raise ConfigurationError(f"cannot split {len(pictures.images)} pictures at {share:g}; more are needed")
    order = _evenly_mixed(pictures, rng)
    return _take(pictures, np.sort(order[:count])), _take(pictures, np.sort(order[count:]))


def evenly_mixed(pictures: Pictures, rng: np.random.Generator) -> Pictures:
    """The pictures in a random order that begins, however early it is cut, with the classes in their shares."""
    return _take(pictures, _evenly_mixed(pictures, rng))


def _evenly_mixed(pictures: Pictures, rng: np.random.Generator) -> np.ndarray:
    grouped, labels = _shuffled_by_class(pictures, rng)
    _, starts, classes, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    place_in_class = np.arange(len(labels)) - starts[classes]
    quantile = (place_in_class + rng.random(len(sizes))[classes]) / sizes[classes]  # one turn a class: evenly spaced
    return grouped[np.argsort(quantile, kind="stable")]


def _shuffled_by_class(pictures: Pictures, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Indices of all pictures, class after class and random within each, and the sorted labels that go with them."""
    shuffled = rng.permutation(len(pictures.images))
    labels = np.zeros(len(shuffled), np.int64) if pictures.labels is None else pictures.labels[shuffled]
    by_class = np.argsort(labels, kind="stable")
    return shuffled[by_class], labels[by_class]


def _take(pictures: Pictures, indices: np.ndarray) -> Pictures:
    labels = None if pictures.labels is None else pictures.labels[indices]
    return replace(pictures, images=pictures.images[indices], labels=labels)


def _digits(size: int | None) -> Pictures:
    from sklearn.datasets import load_digits  # takes a second, and only the digits need it

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]  # (N, 8, 8, 1), from 0 to 16
    if size is not None:
        images = np.stack([_pixels(Image.fromarray(image[..., 0]), size) for image in images])
    return Pictures(images, bunch.target.astype(np.int64), tuple(str(digit) for digit in range(10)))


def _files(path: Path, size: int | None) -> Pictures:
    names, images = [], []
    for name, content in _archive(path) if path.is_file() else _folder(path):
        names.append(name)
        images.append(_pixels(_decode(content, f"{path}/{name}"), size))
    if not names:
        raise DatasetError(f"{path}: expected pictures ({', '.join(SUFFIXES)}), found none there or in its folders")
    for name, image in zip(names, images, strict=True):
        if image.shape[:2] != images[0].shape[:2]:
            first, other = ("x".join(map(str, shape[1::-1])) for shape in (images[0].shape, image.shape))  # W x H
            raise DatasetError(
                f"{path}: pictures must be of one size, but {names[0]} is {first} and {name} is {other}; "
                "give dataset.size=32, say, to resize all to a square"
            )
    channels = max(image.shape[2] for image in images)
    shape = (*images[0].shape[:2], channels)
    labels, label_names = _classes(names)
    return Pictures(np.stack([np.broadcast_to(image, shape) for image in images]), labels, label_names)


def _classes(names: list[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels and their names, from the folders in which the files lie."""
    folders = [posixpath.dirname(name) for name in names]
    root = posixpath.commonpath(folders)
    if root in folders:
        return None, ()
    classes = [str(PurePosixPath(folder).relative_to(root)) for folder in folders]
    label_names, labels = np.unique(classes, return_inverse=True)
    return labels.astype(np.int64), tuple(map(str, label_names))


def _is_picture(name: PurePosixPath) -> bool:
    """Whether a relative path is a picture's and neither hidden nor one of those that macOS adds to archives."""
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in name.parts)
    return name.suffix.lower() in SUFFIXES and not hidden


def _folder(path: Path) -> Iterator[tuple[str, bytes]]:
    """Relative names and contents of the pictures in a folder, sorted."""
    if not path.is_dir():
        raise DatasetError(f"{path}: expected a folder or .zip archive of pictures, found nothing; check the path")
    names = (PurePosixPath(file.relative_to(path).as_posix()) for file in path.rglob("*") if file.is_file())
    for name in sorted(str(name) for name in names if _is_picture(name)):
        try:
            yield name, (path / name).read_bytes()
        except OSError as error:
            raise DatasetError(f"{path}/{name}: cannot be read ({error.strerror})") from error


def _archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """Relative names and contents of the pictures in a zip archive, sorted."""
    name = ""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(name for name in archive.namelist() if _is_picture(PurePosixPath(name))):
                yield name, archive.read(name)
    # Besides its own error, zipfile lets through what a damaged stream, a password or an unknown compression raises.
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        where = f"{path}/{name}" if name else str(path)
        raise DatasetError(
            f"{where}: expected a folder or an intact .zip archive of pictures, but it cannot be read ({error}); "
            "copy or download it again"
        ) from error


def _decode(content: bytes, name: str) -> Image.Image:
    """The picture upright, in mode L where it is in shades of grey and RGB where not."""
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
        upright = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{name}: is not a readable picture ({error}); replace or remove the file") from error
    mode = "L" if image.mode in ONE_CHANNEL_MODES else "RGB"
    if image.mode in SIXTEEN_BIT_MODES:  # Pillow's own conversion would cut all above 255 off
        return Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
    return upright.convert(mode)


def _pixels(image: Image.Image, size: int | None) -> np.ndarray:
    """uint8 (H, W, C), resized to a square where a size is given; Pillow's filters are antialiased."""
    resized = image if size is None else image.resize((size, size), Image.Resampling.LANCZOS)
    pixels = np.asarray(resized)
    return pixels[..., None] if pixels.ndim == 2 else pixels
