"""Frames of a video file by number: they are counted, never found by their time in seconds, which files round.

Frame k is the k-th in the order of presentation. The file's packets are listed once, without decoding them; reading then
continues where the last call ended, or starts at the nearest key frame before the wanted one.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import numpy as np

from flowchunk.datasets.errors import DatasetError


class VideoReader:
    """Reads RGB frames of a video. Raises DatasetError if the file cannot be opened or its codec is not known.

    Not safe for threads; close it by ``close``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._container: Any = av.open(str(path))
            self._stream: Any = self._container.streams.video[0]
            _ = self._stream.codec_context.name
        except (av.FFmpegError, IndexError, AttributeError) as error:
            raise DatasetError(
                f"{path} is not a video that can be read ({error or type(error).__name__}): it is truncated, or its codec "
                "is unknown to PyAV; copy it again, or leave its camera out: dataset.exclude=[KEY]"
            ) from error
        self._stream.thread_type = "AUTO"
        self._frames: Iterator[Any] = iter(())
        self._next: int | None = None

    @cached_property
    def _packets(self) -> tuple[np.ndarray, np.ndarray]:
        """Presentation times of all frames, and those of key frames, both sorted."""
        times, keys = [], []
        try:
            for packet in self._container.demux(self._stream):
                if packet.pts is not None:
                    times.append(packet.pts)
                    if packet.is_keyframe:
                        keys.append(packet.pts)
        except av.FFmpegError:  # truncated: the frames so far count
            pass
        return np.sort(np.array(times, dtype=np.int64)), np.sort(np.array(keys, dtype=np.int64))

    @property
    def num_frames(self) -> int:
        """The number of frames in the file."""
        return len(self._packets[0])

    @property
    def seconds(self) -> np.ndarray:
        """(num_frames,) the time of presentation of each frame in seconds, counted from the first."""
        times = self._packets[0]
        return (times - times[0]) * float(self._stream.time_base)

    @property
    def codec(self) -> str:
        """The codec's name, such as h264 or libdav1d."""
        return str(self._stream.codec_context.name)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self._stream.codec_context.height, self._stream.codec_context.width

    def read(self, start: int, stop: int) -> np.ndarray:
        """Frames start … stop - 1, uint8 (stop - start, H, W, 3). Raises DatasetError if one cannot be decoded."""
        if stop > self.num_frames:
            raise DatasetError(f"{self.path} has {self.num_frames} frames, but frame {stop - 1} is needed")
        images = np.empty((stop - start, *self.size, 3), np.uint8)
        if start != self._next:
            self._seek(start)
        times = self._packets[0]
        for index in range(start, stop):
            frame = self._decode_until(times[index], index)
            images[index - start] = frame.to_ndarray(format="rgb24")
            self._next = index + 1
        return images

    def close(self) -> None:
        """Close the file."""
        self._frames, self._next = iter(()), None
        self._container.close()

    def _seek(self, start: int) -> None:
        times, keys = self._packets
        before = keys[keys <= times[start]]
        self._container.seek(int(before[-1] if len(before) else times[0]), stream=self._stream, backward=True)
        self._frames, self._next = self._container.decode(self._stream), None

    def _decode_until(self, time: int, index: int) -> Any:
        try:
            for frame in self._frames:
                if frame.pts is not None and frame.pts >= time:
                    if frame.pts == time:
                        return frame
                    break
        except av.FFmpegError as error:
            self._next = None
            raise DatasetError(f"frame {index} of {self.path} cannot be decoded ({error})") from error
        self._next = None
        raise DatasetError(f"frame {index} of {self.path} cannot be decoded: the video is damaged there")
