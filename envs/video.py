"""Videos of episodes: the scene, the chunks that the policy predicts, and its camera images."""

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

FIRST, LAST = np.array([255, 210, 40]), np.array([220, 30, 90])
CROP = (255, 0, 200)
PANEL, LABEL = (28, 31, 37), (235, 238, 242)
LABEL_HEIGHT, GAP = 14, 6  # px


class VideoRecorder(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Renders an image after every step: the scene, uint8 (height, width, 3), with the predicted chunks drawn in.

    images: observations to show beside the scene, with the outline of the policy's crop. chunks: (S, H, D), the latest
    predictions, of which the first is executed; set it before each chunk. ``pop_images`` returns the rendered images, so
    that a long video need not be held in memory. ``step`` raises SimulationError if the environment was not created with
    ``render_mode="rgb_array"``.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], *, images: Mapping[str, ObservationField]) -> None:
        super().__init__(env)
        self._fields = images
        self._rendered: list[np.ndarray] = []
        self.chunks = np.empty((0, 0, 0))

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment and render an image."""
        outcome = self.env.step(action)
        scene = render_chunks(self.env, self.chunks)
        self._rendered.append(add_camera_panel(scene, {key: outcome[0][key] for key in self._fields}, self._fields))
        return outcome

    def pop_images(self) -> list[np.ndarray]:
        """Return the images since the last call, in order, and forget them."""
        popped, self._rendered = self._rendered, []
        return popped


def render_chunks(env: gymnasium.Env[Any, Any], chunks: np.ndarray) -> np.ndarray:
    """Render the environment, (height, width, 3) uint8, with chunks (S, H, D) drawn in from yellow (now) to red.

    The first chunk, which is executed, is drawn as dots; the others as thin lines below them. Points behind the camera (NaN)
    are left out. An environment without ``chunk_to_pixels`` shows only its scene. Raises SimulationError if the environment
    does not render to arrays.
    """
    scene = env.render()
    if not isinstance(scene, np.ndarray):
        raise SimulationError("a video needs an environment created with render_mode='rgb_array'")
    if not env.has_wrapper_attr("chunk_to_pixels"):
        return scene
    image = Image.fromarray(scene)
    pen = ImageDraw.Draw(image, "RGBA")
    executed, *others = [env.get_wrapper_attr("chunk_to_pixels")(chunk) for chunk in chunks]
    colors = (FIRST + np.linspace(0, 1, len(executed))[:, None] * (LAST - FIRST)).astype(int).tolist()
    radius = max(2.0, scene.shape[0] / 160)
    for points in others:
        for start, end, color in zip(points[:-1], points[1:], colors[1:], strict=True):
            if np.isfinite([start, end]).all():
                pen.line((*start, *end), fill=(*color, 160), width=round(radius / 2))
    for (x, y), color in zip(executed, colors, strict=True):
        if np.isfinite([x, y]).all():
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(color))
    return np.asarray(image)


def add_camera_panel(
    scene: np.ndarray, images: Mapping[str, np.ndarray], fields: Mapping[str, ObservationField]
) -> np.ndarray:
    """Place the camera images to the right of the scene, enlarged, their crops outlined and their names above.

    scene, images: (height, width, 3) uint8. Without images, returns the scene unchanged.
    """
    if not images:
        return scene
    height, width = scene.shape[:2]
    place = height // max(2, len(images)) - LABEL_HEIGHT - GAP
    views = {
        fields[key].camera or key: _enlarged(image, fields[key].crop, max(1, place // image.shape[0]))
        for key, image in images.items()
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


def write_video(path: Path, images: Iterable[np.ndarray], *, fps: float) -> None:
    """Encode images (height, width, 3) uint8, one at a time, as an H.264 MP4 that browsers can play.

    The file is renamed to ``path`` once it is complete. Raises SimulationError if there are no images, if they are smaller
    than 2 x 2 pixels, or if the file cannot be written.
    """
    images, partial = iter(images), path.with_name(f".{path.name}.partial")
    first = next(images, None)
    if first is None or min(first.shape[:2]) < 2:
        found = "none" if first is None else f"images of {first.shape[1]} x {first.shape[0]} pixels"
        raise SimulationError(
            f"{path}: expected images of at least 2 x 2 pixels, got {found}; give a larger render_size"
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
        for image in chain((first,), images):
            with _explained(path):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width]))))
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
    """Turn errors of PyAV and of the disk into SimulationError; wraps only their calls, not the source of the images."""
    try:
        yield
    except (av.FFmpegError, OSError, ValueError) as error:
        raise SimulationError(
            f"cannot write the video {path}: {error}; check that its folder is writable and that the disk is not full"
        ) from error


def _enlarged(image: np.ndarray, crop: tuple[int, ...] | None, factor: int) -> Image.Image:
    height, width = image.shape[:2]
    enlarged = Image.fromarray(image).resize((width * factor, height * factor), Image.Resampling.NEAREST)
    if crop is not None:
        top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
        corners = (left, top, left + crop[1], top + crop[0])
        x_0, y_0, x_1, y_1 = (factor * corner for corner in corners)
        ImageDraw.Draw(enlarged).rectangle((x_0, y_0, x_1 - 1, y_1 - 1), outline=CROP)
    return enlarged
