"""A symmetry of a task: a mirror or a turn under which a demonstration is still a demonstration.

Push-T's goal looks the same in a mirror along the stem of the T; a two-armed robot often has its left and its right.
Given such a map, every episode is learned from twice, once as it was recorded and once mirrored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flowchunk.datasets.errors import ConfigurationError


@dataclass(frozen=True)
class Mirror:
    """One key's image: ``sign · x[order] + offset`` over its D dimensions, in flattened (C) order and the key's units."""

    order: tuple[int, ...]
    sign: tuple[float, ...]
    offset: tuple[float, ...]

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """The image of values (N, …) of D dimensions each, in their shape and type."""
        rows = values.reshape(len(values), len(self.order))
        image = rows[:, list(self.order)] * np.asarray(self.sign) + np.asarray(self.offset)
        return image.reshape(values.shape).astype(values.dtype)


@dataclass(frozen=True)
class PictureMirror:
    """A picture's image: rows and columns exchanged where ``transpose``, then the order of rows and of columns turned."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False


PICTURE_MIRRORS = {
    "flip_x": PictureMirror(flip_columns=True),  # left and right
    "flip_y": PictureMirror(flip_rows=True),  # up and down
    "transpose": PictureMirror(transpose=True),  # (row, column) → (column, row)
    "anti_transpose": PictureMirror(  # (row, column) → (width - 1 - column, height - 1 - row)
        transpose=True, flip_rows=True, flip_columns=True
    ),
}


@dataclass(frozen=True)
class Symmetry:
    """The images of all keys of a task: of its values and its action, and of its pictures."""

    mirrors: Mapping[str, Mirror]
    pictures: Mapping[str, PictureMirror] = field(default_factory=dict)

    @classmethod
    def from_options(
        cls,
        options: Mapping[str, Mapping[str, Any]],
        sizes: Mapping[str, int],
        pictures: Mapping[str, Sequence[int]] | None = None,
    ) -> Symmetry:
        """From ``{key: {order, sign, offset}}``, and ``{key: {picture: NAME}}`` with a name of ``PICTURE_MIRRORS``.

        sizes: dimensions of every key that has to have an image; pictures: shapes (height, width, 3) of those that are
        pictures. Raises ConfigurationError where a key is missing, its lists are not of its size, or a picture has no such
        image.
        """
        shapes = pictures or {}
        if missing := (sizes.keys() | shapes.keys()) - options.keys():
            raise ConfigurationError(f"dataset.symmetry must say how {sorted(missing)} look in the mirror, or be null")
        mirrors = {}
        for key, size in sizes.items():
            try:
                order, sign, offset = (tuple(options[key][name]) for name in ("order", "sign", "offset"))
            except (KeyError, TypeError) as error:
                raise ConfigurationError(
                    f"dataset.symmetry.{key} needs lists: order, sign, offset ({error})"
                ) from error
            if sorted(order) != list(range(size)) or len(sign) != size or len(offset) != size:
                raise ConfigurationError(
                    f"dataset.symmetry.{key}: order must arrange 0 to {size - 1}, sign and offset have {size} values each"
                )
            mirrors[key] = Mirror(tuple(int(index) for index in order), sign, offset)
        return cls(mirrors, {key: _picture_mirror(key, options[key], shape) for key, shape in shapes.items()})

    def both(self, key: str, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Each block (N, …) of a key and its image."""
        for block in blocks:
            yield block
            yield self.mirrors[key](block)


def _picture_mirror(key: str, options: Any, shape: Sequence[int]) -> PictureMirror:
    name = options.get("picture") if isinstance(options, Mapping) and set(options) == {"picture"} else options
    if not isinstance(name, str) or name not in PICTURE_MIRRORS or name is options:
        raise ConfigurationError(
            f"dataset.symmetry.{key}={options}: {key!r} is a picture; give {{picture: NAME}} with one of "
            f"{', '.join(PICTURE_MIRRORS)}"
        )
    if PICTURE_MIRRORS[name].transpose and shape[0] != shape[1]:
        raise ConfigurationError(
            f"dataset.symmetry.{key}.picture={name} exchanges rows and columns, but pictures of {shape[0]}x{shape[1]} are "
            "not square; use flip_x or flip_y"
        )
    return PICTURE_MIRRORS[name]
