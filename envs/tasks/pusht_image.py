"""The image of Push-T, rendered in 2-D like those of the original demonstrations, and a window that shows it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw

from flowchunk.datasets.errors import SimulationError

CANVAS_SIZE = 512  # one pixel of the canvas is one px of the plane
OUTLINE_RADIUS = 2
AGENT_RADIUS = 15
AGENT_RIM = 4
WALL_LINES = np.array([[(5, 506), (5, 5)], [(5, 5), (506, 5)], [(506, 5), (506, 506)], [(5, 506), (506, 506)]])

Point = tuple[int, int]
Color = tuple[int, int, int]
WHITE = (255, 255, 255)
LIGHT_GREEN = (144, 238, 144)
LIGHT_GRAY = (211, 211, 211)
SLATE_GRAY, PALE_SLATE_GRAY = (119, 136, 153), (143, 163, 184)
ROYAL_BLUE, PALE_ROYAL_BLUE = (65, 105, 225), (78, 126, 255)


def render_image(
    *, agent_position: np.ndarray, block_boxes: Iterable[np.ndarray], goal_outline: np.ndarray, size: int
) -> np.ndarray:
    """Render the plane from above, with x to the right and y down.

    agent_position: (2,) px. block_boxes: the corners (4, 2) of each of its parts, px. goal_outline: (N, 2) px.
    Returns uint8 (size, size, 3). Like the images of the demonstrations, it is drawn with 512 x 512 pixels and then
    resampled bilinearly without antialiasing.
    """
    canvas = Image.new("RGB", (CANVAS_SIZE, CANVAS_SIZE), WHITE)
    pen = ImageDraw.Draw(canvas)
    pen.polygon(_rounded(goal_outline), fill=LIGHT_GREEN)
    for line in WALL_LINES:
        _draw_fat_line(pen, _rounded(line), LIGHT_GRAY)
    for box in block_boxes:
        corners = _rounded(box)
        pen.polygon(corners, fill=PALE_SLATE_GRAY)
        _draw_fat_line(pen, [*corners, corners[0]], SLATE_GRAY)
    agent = _rounded(agent_position[None])[0]
    _draw_disc(pen, agent, AGENT_RADIUS, ROYAL_BLUE)
    _draw_disc(pen, agent, AGENT_RADIUS - AGENT_RIM, PALE_ROYAL_BLUE)
    if size != CANVAS_SIZE:
        scale = CANVAS_SIZE / size
        canvas = canvas.transform(
            (size, size), Image.Transform.AFFINE, (scale, 0, 0, 0, scale, 0), Image.Resampling.BILINEAR
        )
    return np.array(canvas)


def to_pixels(points: np.ndarray, *, size: int) -> np.ndarray:
    """Convert points of the plane (N, 2), px, to pixel coordinates (N, 2), x then y, in an image of ``size`` pixels."""
    return points * (size / CANVAS_SIZE)


def has_display() -> bool:
    """Whether the operating system seems to have a display for windows."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


class Window:
    """A matplotlib window that shows one image after another. Raises SimulationError if it cannot be opened."""

    def __init__(self, title: str) -> None:
        import matplotlib.pyplot as plt  # here, because importing it takes half a second and few environments need it

        if plt.get_backend().lower() == "agg":  # matplotlib's fallback if it cannot open windows
            raise SimulationError(
                'render_mode="human" needs a display and a window toolkit such as tkinter, and matplotlib found none; '
                'use render_mode="rgb_array" and save the images'
            )
        self._pyplot = plt
        self._figure = plt.figure(title)

    def show(self, image: np.ndarray) -> None:
        """Show an image, uint8 (H, W, 3), in place of the previous one."""
        self._figure.clear()
        self._figure.figimage(image, resize=True)
        self._pyplot.pause(0.001)

    def close(self) -> None:
        """Close the window; may be called more than once."""
        self._pyplot.close(self._figure)


def _rounded(points: np.ndarray) -> list[Point]:
    return [(round(x), round(y)) for x, y in points.tolist()]


def _draw_disc(pen: ImageDraw.ImageDraw, center: Point, radius: int, color: Color) -> None:
    x, y = center
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)


def _draw_fat_line(pen: ImageDraw.ImageDraw, points: list[Point], color: Color) -> None:
    pen.line(points, fill=color, width=2 * OUTLINE_RADIUS + 1)
    for point in points:
        _draw_disc(pen, point, OUTLINE_RADIUS, color)
