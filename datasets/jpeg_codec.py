"""A zarr codec that stores an image as a JPEG: lossy, and a fraction of the size.

Each chunk is one image, (1, height, width, 3) uint8. Colors keep their full resolution (4:4:4): in small images, the usual
chroma subsampling blurs details that a policy needs.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from PIL import Image
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.registry import register_codec

from flowchunk.datasets.errors import ConfigurationError

NAME = "flowchunk.jpeg"


@dataclass(frozen=True)
class JpegCodec(ArrayBytesCodec):
    """Encode one image as a JPEG of a quality from 1 to 100. Raises ConfigurationError for any other quality."""

    is_fixed_size = False

    quality: int

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise ConfigurationError(
                f"jpeg={self.quality} must be a quality from 1 to 100, or null for lossless images"
            )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Create the codec from an array's metadata."""
        return cls(**data["configuration"])

    def to_dict(self) -> dict[str, Any]:
        """The codec's entry in an array's metadata."""
        return {"name": NAME, "configuration": {"quality": self.quality}}

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        """Raise ValueError unless each chunk is a single RGB image."""
        chunk = tuple(chunk_grid.chunk_shape)
        if len(chunk) != 4 or chunk[0] != 1 or chunk[1:] != tuple(shape[1:]) or chunk[3] != 3:
            raise ValueError(f"{NAME} needs chunks of one image (1, height, width, 3), but they are {chunk} of {shape}")
        if dtype.to_native_dtype() != np.uint8:
            raise ValueError(f"{NAME} stores uint8, not {dtype}")

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Unknown before an image is encoded."""
        raise NotImplementedError

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        file = io.BytesIO()
        Image.fromarray(chunk_data.as_numpy_array()[0]).save(file, "JPEG", quality=self.quality, subsampling=0)
        return chunk_spec.prototype.buffer.from_bytes(file.getvalue())

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        with Image.open(io.BytesIO(chunk_data.to_bytes()), formats=["JPEG"]) as image:
            pixels = np.array(image)
        return chunk_spec.prototype.nd_buffer.from_numpy_array(pixels.reshape(chunk_spec.shape))


register_codec(NAME, JpegCodec)
