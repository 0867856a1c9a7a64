"""UMI's data sets: a zip of a zarr store whose images are JPEG-XL, which an extra decodes."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numcodecs.registry
import numpy as np
import pytest
import zarr

from flowchunk.datasets.derived_specs import SpecOptions, derive_specs
from flowchunk.datasets.formats import open_dataset
from flowchunk.datasets.image_reader import ImageReader
from tests.datasets.formats.foreign import ACTIONS, ENDS, FRAMES, IMAGES, STATES

jpegxl = pytest.importorskip("imagecodecs.numcodecs", reason="needs the extra umi")
CODEC = "imagecodecs_jpegxl"
UMI_OPTIONS = {
    **dict.fromkeys(("effort", "distance", "lossless", "decodingspeed", "photometric", "planar", "usecontainer")),
    **dict.fromkeys(("index", "keeporientation")),
    "level": 99,
    "numthreads": 1,
}
"""The description of the codec that UMI's code writes."""


@pytest.fixture
def umi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of UMI's layout; the codec is not registered, as in a new process."""
    path = tmp_path / "dataset.zarr.zip"
    monkeypatch.setitem(numcodecs.registry.codec_registry, CODEC, jpegxl.Jpegxl)
    root = zarr.open_group(tmp_path / "dataset.zarr", mode="w", zarr_format=2)
    codec = jpegxl.Jpegxl(level=99, lossless=False, numthreads=1)
    root.create_array(
        "data/camera0_rgb", shape=IMAGES.shape, chunks=(1, *IMAGES.shape[1:]), dtype="u1", compressors=codec
    )[:] = IMAGES
    root.create_array("data/robot0_eef_pos", data=STATES)
    root.create_array("data/action", data=ACTIONS)
    root.create_array("meta/episode_ends", data=ENDS)
    described = tmp_path / "dataset.zarr" / "data" / "camera0_rgb" / ".zarray"
    described.write_text(json.dumps({**json.loads(described.read_text()), "compressor": {"id": CODEC, **UMI_OPTIONS}}))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as content:
        for file in sorted((tmp_path / "dataset.zarr").rglob("*")):
            content.write(file, file.relative_to(tmp_path / "dataset.zarr"))
    monkeypatch.delitem(numcodecs.registry.codec_registry, CODEC)
    return path


def test_jpeg_xl_is_decoded(umi: Path) -> None:
    source = open_dataset(umi)
    specs = derive_specs(source, SpecOptions(control_hz=60))
    field = specs.observation_spec.fields["camera0_rgb"]
    images = ImageReader.find(source, "camera0_rgb", field).read(0, FRAMES)
    assert np.abs(images.astype(int) - IMAGES).mean() < 1
    np.testing.assert_array_equal(source.read("robot0_eef_pos"), STATES)
    np.testing.assert_array_equal(source.read("action"), ACTIONS)
