"""A symmetry of a task: a reflection or rotation that turns every demonstration into another valid demonstration.

Push-T's goal is symmetric about the stem of the T; a bimanual robot often has a symmetric left and right side. Given such
a map, training uses every episode twice: as recorded and transformed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flowchunk.datasets.errors import ConfigurationError


@dataclass(frozen=True)
class ValueTransform:
    """``sign · x[order] + offset`` for one key, over its D dimensions in flattened (C) order, in the key's units."""

    order: tuple[int, ...]
    sign: tuple[float, ...]
    offset: tuple[float, ...]

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Transform values (N, …) of D dimensions each; shape and dtype stay the same."""
        rows = values.reshape(len(values), len(self.order))
        transformed = rows[:, list(self.order)] * np.asarray(self.sign) + np.asarray(self.offset)
        return transformed.reshape(values.shape).astype(values.dtype)


@dataclass(frozen=True)
class ImageTransform:
    """Swap rows and columns if ``transpose``, then reverse the order of rows and of columns."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False


IMAGE_TRANSFORMS = {
    "flip_x": ImageTransform(flip_columns=True),  # left and right
    "flip_y": ImageTransform(flip_rows=True),  # up and down
    "transpose": ImageTransform(transpose=True),  # (row, column) → (column, row)
    "anti_transpose": ImageTransform(  # (row, column) → (width - 1 - column, height - 1 - row)
        transpose=True, flip_rows=True, flip_columns=True
    ),
}


@dataclass(frozen=True)
class Symmetry:
    """The transforms of all keys of a task, ``action`` included: those of values and those of images."""

    value_transforms: Mapping[str, ValueTransform]
    image_transforms: Mapping[str, ImageTransform] = field(default_factory=dict)

    @classmethod
    def from_options(
        cls,
        options: Mapping[str, Mapping[str, Any]],
        sizes: Mapping[str, int],
        images: Mapping[str, Sequence[int]] | None = None,
    ) -> Symmetry:
        """From ``{key: {order, sign, offset}}``, and ``{key: {transform: NAME}}`` with a name from ``IMAGE_TRANSFORMS``.

        sizes: number of dimensions of every key that needs a transform of its values. images: shape (height, width, 3) of
        every key that holds images. Raises ConfigurationError if a key is missing, its lists have the wrong length, or an
        image cannot be transformed that way.
        """
        shapes = images or {}
        if missing := (sizes.keys() | shapes.keys()) - options.keys():
            raise ConfigurationError(
                f"dataset.symmetry needs a transform of every key, but has none of {sorted(missing)}; add them, or set "
                "dataset.symmetry=null"
            )
        return cls(
            {key: _value_transform(key, options[key], size) for key, size in sizes.items()},
            {key: _image_transform(key, options[key], shape) for key, shape in shapes.items()},
        )

    def augment(self, key: str, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield each block (N, …) of a key, followed by its transform."""
        for block in blocks:
            yield block
            yield self.value_transforms[key](block)


def _value_transform(key: str, options: Mapping[str, Any], size: int) -> ValueTransform:
    try:
        order, sign, offset = (tuple(options[name]) for name in ("order", "sign", "offset"))
    except (KeyError, TypeError) as error:
        raise ConfigurationError(f"dataset.symmetry.{key} needs the lists order, sign and offset ({error})") from error
    if sorted(order) != list(range(size)) or len(sign) != size or len(offset) != size:
        raise ConfigurationError(
            f"dataset.symmetry.{key}: order must be a permutation of 0 to {size - 1}, and sign and offset must have {size} "
            "values each"
        )
    return ValueTransform(tuple(int(index) for index in order), sign, offset)


def _image_transform(key: str, options: Any, shape: Sequence[int]) -> ImageTransform:
    if isinstance(options, Mapping) and set(options) == {"picture"}:
        raise ConfigurationError(
            f"dataset.symmetry.{key}: the option picture is now called transform; write "
            f"{{transform: {options['picture']}}}"
        )
    name = options["transform"] if isinstance(options, Mapping) and set(options) == {"transform"} else None
    if not isinstance(name, str) or name not in IMAGE_TRANSFORMS:
        raise ConfigurationError(
            f"dataset.symmetry.{key}={options}: {key!r} is an image; use {{transform: NAME}} with one of "
            f"{', '.join(IMAGE_TRANSFORMS)}"
        )
    if IMAGE_TRANSFORMS[name].transpose and shape[0] != shape[1]:
        raise ConfigurationError(
            f"dataset.symmetry.{key}.transform={name} exchanges rows and columns, but images of {shape[0]}x{shape[1]} are "
            "not square; use flip_x or flip_y"
        )
    return IMAGE_TRANSFORMS[name]
