"""Videos from which single images are read: a keyframe at every other image, constant rate, exact time stamps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from flowchunk.datasets.errors import DatasetError

KEYFRAME_INTERVAL = 2  # training reads frames in random order; decoding one takes at most two images


@dataclass(frozen=True)
class VideoCodec:
    """An encoder with its options. name: as the container calls the codec. holds_odd_sizes: of images, in pixels."""

    name: str
    encoder: str
    options: dict[str, str]
    holds_odd_sizes: bool


# The quality: a mean error of 1.1 of 255 on photographs of 256 x 256 pixels, and 0.7 on rendered images of 96 x 96.
CODECS = {
    "h264": VideoCodec("h264", "libx264", {"crf": "18", "preset": "veryfast"}, holds_odd_sizes=True),
    "av1": VideoCodec("av1", "libsvtav1", {"crf": "20", "preset": "8"}, holds_odd_sizes=False),
}


class VideoEncoder:
    """Encode images of (height, width) pixels into an MP4 at ``path``; image k is shown at k / fps seconds.

    Colors are stored in half the resolution (4:2:0), which all players know, or in full (4:4:4) if a size is odd.
    Raises DatasetError if the codec does not hold this size, or if the file cannot be written.
    """

    def __init__(self, path: Path, height: int, width: int, *, codec: VideoCodec, fps: int) -> None:
        self.path, self.num_images, self.num_bytes = path, 0, 0
        self._rate = Fraction(fps)
        if codec.encoder == "libsvtav1":
            os.environ.setdefault("SVT_LOG", "1")  # errors only: it prints its settings otherwise
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(path, mode="w", format="mp4")
            options = {**codec.options, "g": str(KEYFRAME_INTERVAL)}
            stream = self._container.add_stream(codec.encoder, rate=fps, options=options)
            assert isinstance(stream, av.VideoStream)
            self._stream = stream
            self._stream.width, self._stream.height = width, height
            self._stream.pix_fmt = pixel_format(height, width, codec)

    def add(self, images: np.ndarray) -> None:
        """Append images (T, height, width, 3) uint8."""
        for image in images:
            with self._explained():
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image))
                frame.pts, frame.time_base = self.num_images, 1 / self._rate
                self._write(self._stream.encode(frame))
            self.num_images += 1

    def finish(self) -> None:
        """Write the images that the encoder still holds, and close the file."""
        with self._explained():
            self._write(self._stream.encode())
            self._container.close()

    def abandon(self) -> None:
        """Close the file, which is of no use."""
        with suppress(av.FFmpegError, OSError, ValueError):
            self._container.close()

    def _write(self, packets: list[av.Packet[Any]]) -> None:
        self.num_bytes += sum(packet.size for packet in packets)
        self._container.mux(packets)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (av.FFmpegError, OSError, ValueError) as error:
            raise DatasetError(
                f"cannot write the video {self.path}: {error}; check that its folder is writable and that the disk is not "
                "full, or use codec=png"
            ) from error


def pixel_format(height: int, width: int, codec: VideoCodec) -> str:
    """FFmpeg's name of how colors are stored. Raises DatasetError if the codec does not hold images of this size."""
    if height % 2 == 0 and width % 2 == 0:
        return "yuv420p"
    if not codec.holds_odd_sizes:
        raise DatasetError(
            f"{codec.name} needs images of even height and width, but they are {height} x {width}; use codec=h264 or png"
        )
    return "yuv444p"
