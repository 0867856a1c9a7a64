"""Videos: the chunks drawn in, the policy's camera images beside the scene, and files that can be played."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import gymnasium
import numpy as np
import pytest

from flowchunk.datasets.errors import SimulationError
from flowchunk.datasets.specs import ObservationField
from flowchunk.envs.video import CROP, FIRST, LAST, VideoRecorder, add_camera_panel, render_chunks, write_video

HEIGHT, WIDTH = 80, 100
SCENE = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)


class Blank(gymnasium.Env[Any, Any]):
    """An empty scene, whose observation is an image filled with the step's number; actions are pixels."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - Gymnasium's declaration
    steps = 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return {"image": np.full((8, 8, 3), self.steps, np.uint8)}, 0.0, False, False, {}

    def render(self) -> Any:
        return SCENE

    def chunk_to_pixels(self, chunk: np.ndarray) -> np.ndarray:
        return chunk


class WithoutImages(Blank):
    def render(self) -> Any:
        return None


def across(row: float, steps: int = 5) -> np.ndarray:
    """A chunk (steps, 2) from the left of the scene to the right."""
    return np.stack([np.linspace(10, 90, steps), np.full(steps, row)], axis=1)


def test_the_executed_chunk_is_drawn_boldly_from_yellow_to_red() -> None:
    image = render_chunks(Blank(), across(20)[None])
    np.testing.assert_array_equal(image[20, 10], FIRST)
    np.testing.assert_array_equal(image[20, 90], LAST)
    np.testing.assert_array_equal(image[20, 20], SCENE[20, 20], "dots, and nothing between them")
    assert (SCENE == 40).all(), "the environment's image is not modified"


def test_other_samples_are_paler_lines_below_it() -> None:
    executed, other = across(20), across(50)
    image = render_chunks(Blank(), np.stack([executed, other, executed]))
    np.testing.assert_array_equal(image[20, 10], FIRST, "the executed chunk is on top")
    line = image[50, 11:89].astype(int)
    assert (np.abs(line - 40).max(axis=-1) > 20).all(), "a line all the way"
    assert np.abs(line[0] - 40).sum() < np.abs(FIRST - 40).sum(), "paler"
    changed = (image != SCENE).any(axis=-1)
    assert changed[45:55].sum() < changed[15:25].sum() + changed[15:25, 15:85].sum()
    assert not changed[60:].any()


@pytest.mark.parametrize("steps", [1, 2])
def test_the_shortest_chunks_are_drawn_too(steps: int) -> None:
    image = render_chunks(Blank(), np.stack([across(20, steps), across(50, steps)]))
    assert (image[20] != SCENE[20]).any()


def test_an_environment_that_does_not_render_is_an_error() -> None:
    with pytest.raises(SimulationError, match="render_mode='rgb_array'"):
        render_chunks(WithoutImages(), across(20)[None])


def test_camera_images_are_enlarged_beside_the_scene() -> None:
    observed = np.random.default_rng(0).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    fields = {"image": ObservationField((8, 10, 3), camera="top")}
    image = add_camera_panel(SCENE, {"image": observed}, fields)
    np.testing.assert_array_equal(image[:HEIGHT, :WIDTH], SCENE)
    enlarged = observed.repeat(2, axis=0).repeat(2, axis=1)
    assert holds(image, enlarged), "nearest neighbor: exact pixels"
    label = image[:14, WIDTH:]
    assert (label != label[0, 0]).any(), "the camera's name"


def test_the_crop_is_outlined_around_the_pixels_that_are_used() -> None:
    fields = {"image": ObservationField((8, 8, 3), camera="top", crop=(4, 6))}
    image = add_camera_panel(SCENE, {"image": np.zeros((8, 8, 3), np.uint8)}, fields)
    rows, columns = np.nonzero((image == CROP).all(axis=-1))
    assert [np.ptp(rows) + 1, np.ptp(columns) + 1] == [2 * 4, 2 * 6]
    assert len(rows) == 2 * (8 + 12) - 4, "an outline, and nothing inside"


def test_every_camera_is_shown_even_if_the_scene_is_smaller_than_its_image() -> None:
    random = np.random.default_rng(0)
    images = {name: random.integers(0, 256, (60, 60, 3), dtype=np.uint8) for name in ("front", "wrist", "side")}
    fields = {name: ObservationField((60, 60, 3), camera=name) for name in images}
    panel = add_camera_panel(SCENE, images, fields)
    assert panel.shape[0] >= 3 * 60
    assert all(holds(panel, image) for image in images.values())


def test_without_images_the_scene_is_unchanged() -> None:
    assert add_camera_panel(SCENE, {}, {}) is SCENE


def test_a_video_has_an_image_of_every_step_with_the_observation_after_it() -> None:
    recorder = VideoRecorder(Blank(), images={"image": ObservationField((8, 8, 3), camera="top")})
    recorder.chunks = across(20)[None]
    for step in (1, 2, 3):
        observation = recorder.step(np.zeros(2))[0]
        assert observation["image"][0, 0, 0] == step
    images = recorder.pop_images()
    assert recorder.pop_images() == [], "returned once"
    assert len(images) == 3
    for step, image in enumerate(images, start=1):
        assert holds(image, np.full((16, 16, 3), step, np.uint8))
        np.testing.assert_array_equal(image[20, 10], FIRST)


@pytest.mark.parametrize("fps", [10, 20.0, 12.5, 0.4, 29.97])
def test_a_video_can_be_played(tmp_path: Path, fps: float) -> None:
    images = [np.full((65, 97, 3), shade, np.uint8) for shade in range(0, 240, 20)]
    path = tmp_path / "videos" / "episode.mp4"
    write_video(path, images, fps=fps)
    with av.open(path) as container:
        stream = container.streams.video[0]
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert float(stream.average_rate or 0) == pytest.approx(fps)
        assert stream.codec_context.name == "h264"
    assert [image.shape for image in decoded] == [(64, 96, 3)] * len(images)
    for image, original in zip(decoded, images, strict=True):
        assert abs(float(image.mean()) - float(original.mean())) < 6


def shades(count: int, size: int = 64) -> Iterator[np.ndarray]:
    return (np.full((size, size, 3), shade % 256, np.uint8) for shade in range(count))


def test_images_are_written_as_they_arrive(tmp_path: Path) -> None:
    alive: list[weakref.ref[np.ndarray]] = []

    def images() -> Iterator[np.ndarray]:
        for image in shades(100):
            alive.append(weakref.ref(image))
            yield image
            assert sum(reference() is not None for reference in alive) < 5, "earlier images are held"

    write_video(tmp_path / "episode.mp4", images(), fps=10)
    assert len(alive) == 100


@pytest.mark.parametrize(("images", "found"), [([], "none"), (list(shades(3, size=1)), "1 x 1 pixels")])
def test_no_images_or_too_small_ones_are_an_error(images: list[np.ndarray], found: str, tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match=rf"episode.mp4: expected images of at least 2 x 2 pixels, got .*{found}"):
        write_video(tmp_path / "videos" / "episode.mp4", images, fps=10)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a_file").touch()
    with pytest.raises(SimulationError, match=r"cannot write the video .*episode.mp4.*disk is not full"):
        write_video(tmp_path / "a_file" / "episode.mp4", shades(3), fps=10)


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on file sizes to set")
def test_a_full_disk_leaves_no_torn_video(tmp_path: Path) -> None:
    import resource

    noise = np.random.default_rng(0).integers(0, 256, (40, 128, 128, 3), dtype=np.uint8)
    path, (soft, hard) = tmp_path / "episode.mp4", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(SimulationError, match="cannot write the video"):
            write_video(path, noise, fps=10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_source_of_the_images_is_passed_on(tmp_path: Path) -> None:
    def images() -> Iterator[np.ndarray]:
        yield from shades(2)
        raise ValueError("the policy is broken")

    with pytest.raises(ValueError, match="the policy is broken"):
        write_video(tmp_path / "episode.mp4", images(), fps=10)
    assert list(tmp_path.iterdir()) == []


def test_points_behind_the_camera_are_left_out() -> None:
    chunk = across(20)
    chunk[2] = np.nan
    image = render_chunks(Blank(), np.stack([chunk, chunk]))
    np.testing.assert_array_equal(image[20, 10], FIRST)
    np.testing.assert_array_equal(image[20, 50], SCENE[20, 50])


def holds(image: np.ndarray, part: np.ndarray) -> bool:
    """Whether an image contains a part, pixel by pixel."""
    windows = np.lib.stride_tricks.sliding_window_view(image, part.shape)
    candidates = np.argwhere((windows[..., 0, 0, :] == part[0, 0]).all(axis=-1))
    return any(np.array_equal(windows[tuple(at)], part) for at in candidates)
