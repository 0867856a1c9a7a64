"""Films of episodes: what happens, the chunks that the policy predicts, and what it sees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import gymnasium
import numpy as np
from PIL import Image, ImageDraw

from flowchunk.datasets.errors import SimulationError
from flowchunk.datasets.specs import ObservationField
from flowchunk.envs.contract import required

FIRST, LAST = np.array([255, 210, 40]), np.array([220, 30, 90])
CROP = (255, 0, 200)
PANEL, LABEL = (28, 31, 37), (235, 238, 242)
LABEL_HEIGHT, GAP = 14, 6  # px


class Film(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Keeps a picture of every step: the scene, uint8 (height, width, 3), with the predicted chunks drawn in.

    pictures: observations to show beside the scene, with the crop that the policy looks at. chunks: (S, H, D), what was
    predicted last; the first is the one that is executed. ``take_frames`` hands the pictures out, so that a long film
    need not be held. ``step`` raises SimulationError where the environment was not made with
    ``render_mode="rgb_array"``, or has no ``chunk_to_pixels``.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], *, pictures: Mapping[str, ObservationField]) -> None:
        super().__init__(env)
        self._pictures = pictures
        self._frames: list[np.ndarray] = []
        self.chunks = np.empty((0, 0, 0))

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment's, with one frame more."""
        outcome = self.env.step(action)
        scene = draw_chunks(self.env, self.chunks)
        self._frames.append(put_beside(scene, {key: outcome[0][key] for key in self._pictures}, self._pictures))
        return outcome

    def take_frames(self) -> list[np.ndarray]:
        """The pictures since this was called last, in order; they are kept no longer."""
        taken, self._frames = self._frames, []
        return taken


def draw_chunks(env: gymnasium.Env[Any, Any], chunks: np.ndarray) -> np.ndarray:
    """The environment's picture (height, width, 3) uint8 with chunks (S, H, D) in it, from yellow (now) to red.

    The first, which is executed, is drawn as dots; the others as thin lines below them. Points that the camera does not
    have before it (NaN) are left out. Raises SimulationError where the environment draws no pictures.
    """
    picture = env.render()
    if not isinstance(picture, np.ndarray):
        raise SimulationError("a video needs an environment made with render_mode='rgb_array'")
    image = Image.fromarray(picture)
    pen = ImageDraw.Draw(image, "RGBA")
    executed, *others = [required(env, "chunk_to_pixels")(chunk) for chunk in chunks]
    colours = (FIRST + np.linspace(0, 1, len(executed))[:, None] * (LAST - FIRST)).astype(int).tolist()
    radius = max(2.0, picture.shape[0] / 160)
    for points in others:
        for start, end, colour in zip(points[:-1], points[1:], colours[1:], strict=True):
            if np.isfinite([start, end]).all():
                pen.line((*start, *end), fill=(*colour, 160), width=round(radius / 2))
    for (x, y), colour in zip(executed, colours, strict=True):
        if np.isfinite([x, y]).all():
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(colour))
    return np.asarray(image)


def put_beside(
    scene: np.ndarray, pictures: Mapping[str, np.ndarray], fields: Mapping[str, ObservationField]
) -> np.ndarray:
    """The scene with what the cameras saw to the right of it, enlarged, their crops outlined and their names above.

    scene, pictures: (height, width, 3) uint8. Without pictures, the scene as it is.
    """
    if not pictures:
        return scene
    height, width = scene.shape[:2]
    place = height // max(2, len(pictures)) - LABEL_HEIGHT - GAP
    views = {
        fields[key].camera or key: _enlarged(picture, fields[key].crop, max(1, place // picture.shape[0]))
        for key, picture in pictures.items()
    }
    panel_width = max(view.width for view in views.values()) + 2 * GAP
    panel_height = sum(view.height + LABEL_HEIGHT + GAP for view in views.values())
    canvas = Image.new("RGB", (width + panel_width, max(height, panel_height)), PANEL)
    canvas.paste(Image.fromarray(scene))
    top = 0
    for name, view in views.items():
        ImageDraw.Draw(canvas).text((width + GAP, top + 1), name, fill=LABEL)
        canvas.paste(view, (width + GAP, top + LABEL_HEIGHT))
        top += LABEL_HEIGHT + view.height + GAP
    return np.asarray(canvas)


def write_video(path: Path, frames: Iterable[np.ndarray], *, fps: float) -> None:
    """Write frames (height, width, 3) uint8 as an H.264 MP4 that browsers play, each as it comes.

    The file takes its name when it is whole. Raises SimulationError where there is no frame, a frame is smaller than
    2 x 2 pixels, or the file cannot be written.
    """
    frames, partial = iter(frames), path.with_name(f".{path.name}.partial")
    first = next(frames, None)
    if first is None or min(first.shape[:2]) < 2:
        found = "none" if first is None else f"frames of {first.shape[1]} x {first.shape[0]} pixels"
        raise SimulationError(
            f"{path}: expected frames of at least 2 x 2 pixels, got {found}; give a larger render_size"
        )
    height, width = (size - size % 2 for size in first.shape[:2])  # yuv420p needs even sizes
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        container = av.open(partial, mode="w", format="mp4")
    try:
        with _explained(path):
            rate = Fraction(fps).limit_denominator(10_000)
            stream = container.add_stream("libx264", rate=rate, options={"crf": "23"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in chain((first,), frames):
            with _explained(path):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]))))
        with _explained(path):
            container.mux(stream.encode())
            container.close()
            partial.replace(path)
    finally:
        with suppress(av.FFmpegError, OSError, ValueError):
            container.close()
        partial.unlink(missing_ok=True)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Make of what PyAV and the disk raise a SimulationError; around their calls alone, not around what makes frames."""
    try:
        yield
    except (av.FFmpegError, OSError, ValueError) as error:
        raise SimulationError(
            f"cannot write the video {path}: {error}; check that its folder may be written and that the disk is not full"
        ) from error


def _enlarged(picture: np.ndarray, crop: tuple[int, ...] | None, factor: int) -> Image.Image:
    height, width = picture.shape[:2]
    image = Image.fromarray(picture).resize((width * factor, height * factor), Image.Resampling.NEAREST)
    if crop is not None:
        top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
        corners = (left, top, left + crop[1], top + crop[0])
        x_0, y_0, x_1, y_1 = (factor * corner for corner in corners)
        ImageDraw.Draw(image).rectangle((x_0, y_0, x_1 - 1, y_1 - 1), outline=CROP)
    return image
