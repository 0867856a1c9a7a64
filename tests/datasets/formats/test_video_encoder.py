"""Videos for training: any image is near a keyframe, at its exact time, and nothing is printed."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.formats.video_encoder import CODECS, VideoEncoder, pixel_format
from tests.datasets.formats.episodes import shades

each_codec = pytest.mark.parametrize("codec", CODECS)


def encode(path: Path, images: np.ndarray, codec: str, *, fps: int = 30) -> VideoEncoder:
    encoder = VideoEncoder(path, *images.shape[1:3], codec=CODECS[codec], fps=fps)
    encoder.add(images)
    encoder.finish()
    return encoder


@each_codec
def test_any_image_is_decoded_from_two(tmp_path: Path, codec: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), dtype=np.uint8)
    encode(tmp_path / "video.mp4", np.repeat(noise, 40, axis=0), codec)  # still, so that no keyframe is needed
    with av.open(tmp_path / "video.mp4") as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 40
    assert all(first.key_frame or second.key_frame for first, second in pairwise(frames))


@each_codec
def test_times_and_names(tmp_path: Path, codec: str) -> None:
    encoder = encode(tmp_path / "deeper" / "video.mp4", shades(np.arange(75)), codec)
    assert encoder.num_images == 75
    with av.open(tmp_path / "deeper" / "video.mp4") as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 30
        assert stream.codec_context.codec.canonical_name == CODECS[codec].name
        assert stream.codec_context.pix_fmt == pixel_format(16, 24, CODECS[codec])
        assert stream.time_base is not None
        ticks = [frame.pts for frame in container.decode(stream)]
    assert ticks == [Fraction(k, 30) / stream.time_base for k in range(75)]


@each_codec
def test_the_size_is_that_of_the_images(tmp_path: Path, codec: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 16, 24, 3), dtype=np.uint8)
    encoder = encode(tmp_path / "video.mp4", images, codec)
    assert encoder.num_bytes == pytest.approx((tmp_path / "video.mp4").stat().st_size, rel=0.2)


def test_the_encoder_prints_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SVT_LOG", raising=False)
    encode(tmp_path / "video.mp4", shades(np.arange(3)), "av1")
    assert capfd.readouterr() == ("", "")


@each_codec
def test_a_file_that_cannot_be_written(tmp_path: Path, codec: str) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DatasetError, match=r"cannot write the video .*video\.mp4: .*disk is not full"):
        encode(tmp_path / "file" / "video.mp4", shades(np.arange(3)), codec)
