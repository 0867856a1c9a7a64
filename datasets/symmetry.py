"""A symmetry of a task: a mirror or a turn under which a demonstration is still a demonstration.

Push-T's goal looks the same in a mirror along the stem of the T; a two-armed robot often has its left and its right.
Given such a map, every episode is learned from twice, once as it was recorded and once mirrored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flowchunk.datasets.errors import ConfigurationError


@dataclass(frozen=True)
class Mirror:
    """One key's image: ``sign · x[order] + offset`` over its dimensions (..., D), in the key's units."""

    order: tuple[int, ...]
    sign: tuple[float, ...]
    offset: tuple[float, ...]

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """The image of values (N, D), in their type."""
        image = values[:, list(self.order)] * np.asarray(self.sign) + np.asarray(self.offset)
        return image.astype(values.dtype)


@dataclass(frozen=True)
class Symmetry:
    """The images of all keys of a task, observations and action."""

    mirrors: Mapping[str, Mirror]

    @classmethod
    def from_options(cls, options: Mapping[str, Mapping[str, Sequence[float]]], sizes: Mapping[str, int]) -> Symmetry:
        """From ``{key: {order, sign, offset}}``. sizes: dimensions of every key that has to have an image.

        Raises ConfigurationError where a key is missing or its lists are not of its size.
        """
        if missing := sizes.keys() - options.keys():
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
        return cls(mirrors)

    def both(self, key: str, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Each block (N, D) of a key and its image."""
        for block in blocks:
            yield block
            yield self.mirrors[key](block)
