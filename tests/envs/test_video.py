"""Films: the chunks drawn in, what the policy sees beside them, and files that can be played."""

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
from flowchunk.envs.video import CROP, FIRST, LAST, Film, draw_chunks, put_beside, write_video

HEIGHT, WIDTH = 80, 100
SCENE = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)


class Blank(gymnasium.Env[Any, Any]):
    """An empty scene, whose observation is a picture of the step's number; actions are pixels."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - Gymnasium's declaration
    steps = 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return {"image": np.full((8, 8, 3), self.steps, np.uint8)}, 0.0, False, False, {}

    def render(self) -> Any:
        return SCENE

    def chunk_to_pixels(self, chunk: np.ndarray) -> np.ndarray:
        return chunk


class Unseen(Blank):
    def render(self) -> Any:
        return None


def across(row: float, steps: int = 5) -> np.ndarray:
    """A chunk (steps, 2) from the left of the scene to the right."""
    return np.stack([np.linspace(10, 90, steps), np.full(steps, row)], axis=1)


def test_the_executed_chunk_is_drawn_boldly_from_yellow_to_red() -> None:
    picture = draw_chunks(Blank(), across(20)[None])
    np.testing.assert_array_equal(picture[20, 10], FIRST)
    np.testing.assert_array_equal(picture[20, 90], LAST)
    np.testing.assert_array_equal(picture[20, 20], SCENE[20, 20], "dots, and nothing between them")
    assert (SCENE == 40).all(), "the environment's own picture is left alone"


def test_other_samples_are_paler_lines_below_it() -> None:
    one, other = across(20), across(50)
    picture = draw_chunks(Blank(), np.stack([one, other, one]))
    np.testing.assert_array_equal(picture[20, 10], FIRST, "the executed one is on top")
    line = picture[50, 11:89].astype(int)
    assert (np.abs(line - 40).max(axis=-1) > 20).all(), "a line all the way"
    assert np.abs(line[0] - 40).sum() < np.abs(FIRST - 40).sum(), "paler"
    drawn = (picture != SCENE).any(axis=-1)
    assert drawn[45:55].sum() < drawn[15:25].sum() + drawn[15:25, 15:85].sum()
    assert not drawn[60:].any()


@pytest.mark.parametrize("steps", [1, 2])
def test_the_shortest_chunks_are_drawn_too(steps: int) -> None:
    picture = draw_chunks(Blank(), np.stack([across(20, steps), across(50, steps)]))
    assert (picture[20] != SCENE[20]).any()


def test_what_cannot_be_drawn_is_an_error() -> None:
    with pytest.raises(SimulationError, match="render_mode='rgb_array'"):
        draw_chunks(Unseen(), across(20)[None])


def test_what_the_policy_sees_stands_beside_the_scene_enlarged() -> None:
    seen = np.random.default_rng(0).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    fields = {"image": ObservationField((8, 10, 3), camera="top")}
    picture = put_beside(SCENE, {"image": seen}, fields)
    np.testing.assert_array_equal(picture[:HEIGHT, :WIDTH], SCENE)
    enlarged = seen.repeat(2, axis=0).repeat(2, axis=1)
    assert holds(picture, enlarged), "nearest neighbour: its very pixels"
    label = picture[:14, WIDTH:]
    assert (label != label[0, 0]).any(), "the camera's name"


def test_the_crop_is_outlined_around_the_pixels_that_are_used() -> None:
    fields = {"image": ObservationField((8, 8, 3), camera="top", crop=(4, 6))}
    picture = put_beside(SCENE, {"image": np.zeros((8, 8, 3), np.uint8)}, fields)
    rows, columns = np.nonzero((picture == CROP).all(axis=-1))
    assert [np.ptp(rows) + 1, np.ptp(columns) + 1] == [2 * 4, 2 * 6]
    assert len(rows) == 2 * (8 + 12) - 4, "an outline, and nothing inside"


def test_every_camera_is_shown_even_if_the_scene_is_smaller_than_its_picture() -> None:
    random = np.random.default_rng(0)
    seen = {name: random.integers(0, 256, (60, 60, 3), dtype=np.uint8) for name in ("front", "wrist", "side")}
    fields = {name: ObservationField((60, 60, 3), camera=name) for name in seen}
    picture = put_beside(SCENE, seen, fields)
    assert picture.shape[0] >= 3 * 60
    assert all(holds(picture, one) for one in seen.values())


def test_without_pictures_the_scene_stays_as_it_is() -> None:
    assert put_beside(SCENE, {}, {}) is SCENE


def test_a_film_has_a_frame_of_every_step_with_what_was_seen_after_it() -> None:
    film = Film(Blank(), pictures={"image": ObservationField((8, 8, 3), camera="top")})
    film.chunks = across(20)[None]
    for step in (1, 2, 3):
        observation = film.step(np.zeros(2))[0]
        assert observation["image"][0, 0, 0] == step
    frames = film.take_frames()
    assert film.take_frames() == [], "handed out once"
    assert len(frames) == 3
    for step, frame in enumerate(frames, start=1):
        assert holds(frame, np.full((16, 16, 3), step, np.uint8))
        np.testing.assert_array_equal(frame[20, 10], FIRST)


@pytest.mark.parametrize("fps", [10, 20.0, 12.5, 0.4, 29.97])
def test_a_video_can_be_played(tmp_path: Path, fps: float) -> None:
    pictures = [np.full((65, 97, 3), shade, np.uint8) for shade in range(0, 240, 20)]
    path = tmp_path / "videos" / "film.mp4"
    write_video(path, pictures, fps=fps)
    with av.open(path) as container:
        stream = container.streams.video[0]
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert float(stream.average_rate or 0) == pytest.approx(fps)
        assert stream.codec_context.name == "h264"
    assert [picture.shape for picture in decoded] == [(64, 96, 3)] * len(pictures)
    for picture, original in zip(decoded, pictures, strict=True):
        assert abs(float(picture.mean()) - float(original.mean())) < 6


def shades(count: int, size: int = 64) -> Iterator[np.ndarray]:
    return (np.full((size, size, 3), shade % 256, np.uint8) for shade in range(count))


def test_frames_are_written_as_they_come(tmp_path: Path) -> None:
    alive: list[weakref.ref[np.ndarray]] = []

    def frames() -> Iterator[np.ndarray]:
        for frame in shades(100):
            alive.append(weakref.ref(frame))
            yield frame
            assert sum(one() is not None for one in alive) < 5, "earlier frames are held"

    write_video(tmp_path / "film.mp4", frames(), fps=10)
    assert len(alive) == 100


@pytest.mark.parametrize(("frames", "found"), [([], "none"), (list(shades(3, size=1)), "1 x 1 pixels")])
def test_too_little_to_see_is_an_error(frames: list[np.ndarray], found: str, tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match=rf"film.mp4: expected frames of at least 2 x 2 pixels, got .*{found}"):
        write_video(tmp_path / "videos" / "film.mp4", frames, fps=10)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a_file").touch()
    with pytest.raises(SimulationError, match=r"cannot write the video .*film.mp4.*disk is not full"):
        write_video(tmp_path / "a_file" / "film.mp4", shades(3), fps=10)


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on file sizes to set")
def test_a_full_disk_leaves_no_torn_film(tmp_path: Path) -> None:
    import resource

    noise = np.random.default_rng(0).integers(0, 256, (40, 128, 128, 3), dtype=np.uint8)
    path, (soft, hard) = tmp_path / "film.mp4", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(SimulationError, match="cannot write the video"):
            write_video(path, noise, fps=10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_what_makes_the_frames_fails_in_its_own_words(tmp_path: Path) -> None:
    def frames() -> Iterator[np.ndarray]:
        yield from shades(2)
        raise ValueError("the policy is ill")

    with pytest.raises(ValueError, match="the policy is ill"):
        write_video(tmp_path / "film.mp4", frames(), fps=10)
    assert list(tmp_path.iterdir()) == []


def test_points_that_the_camera_does_not_have_before_it_are_left_out() -> None:
    chunk = across(20)
    chunk[2] = np.nan
    picture = draw_chunks(Blank(), np.stack([chunk, chunk]))
    np.testing.assert_array_equal(picture[20, 10], FIRST)
    np.testing.assert_array_equal(picture[20, 50], SCENE[20, 50])


def holds(picture: np.ndarray, part: np.ndarray) -> bool:
    """Whether a part is somewhere in a picture, pixel by pixel."""
    windows = np.lib.stride_tricks.sliding_window_view(picture, part.shape)
    candidates = np.argwhere((windows[..., 0, 0, :] == part[0, 0]).all(axis=-1))
    return any(np.array_equal(windows[tuple(at)], part) for at in candidates)
