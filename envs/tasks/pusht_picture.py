"""The 2-D picture of Push-T, drawn the way the frames of the original demonstrations were, and a window to show it."""

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
Colour = tuple[int, int, int]
WHITE = (255, 255, 255)
LIGHT_GREEN = (144, 238, 144)
LIGHT_GREY = (211, 211, 211)
SLATE_GREY, PALE_SLATE_GREY = (119, 136, 153), (143, 163, 184)
ROYAL_BLUE, PALE_ROYAL_BLUE = (65, 105, 225), (78, 126, 255)


def draw_picture(
    *, agent_position: np.ndarray, block_boxes: Iterable[np.ndarray], goal_outline: np.ndarray, size: int
) -> np.ndarray:
    """Draw the plane from above, x to the right and y downwards.

    agent_position: (2,) px. block_boxes: the corners (4, 2) of each of its parts, px. goal_outline: (N, 2) px.
    Returns uint8 (size, size, 3). The canvas is always of 512 pixels and then sampled bilinearly without smoothing,
    as the frames of the demonstrations were.
    """
    canvas = Image.new("RGB", (CANVAS_SIZE, CANVAS_SIZE), WHITE)
    pen = ImageDraw.Draw(canvas)
    pen.polygon(_whole(goal_outline), fill=LIGHT_GREEN)
    for line in WALL_LINES:
        _draw_fat_line(pen, _whole(line), LIGHT_GREY)
    for box in block_boxes:
        corners = _whole(box)
        pen.polygon(corners, fill=PALE_SLATE_GREY)
        _draw_fat_line(pen, [*corners, corners[0]], SLATE_GREY)
    agent = _whole(agent_position[None])[0]
    _draw_disc(pen, agent, AGENT_RADIUS, ROYAL_BLUE)
    _draw_disc(pen, agent, AGENT_RADIUS - AGENT_RIM, PALE_ROYAL_BLUE)
    if size != CANVAS_SIZE:
        scale = CANVAS_SIZE / size
        canvas = canvas.transform(
            (size, size), Image.Transform.AFFINE, (scale, 0, 0, 0, scale, 0), Image.Resampling.BILINEAR
        )
    return np.array(canvas)


def to_pixels(points: np.ndarray, *, size: int) -> np.ndarray:
    """Turn points of the plane (N, 2), px, into coordinates (N, 2) of a picture of ``size`` pixels, x before y."""
    return points * (size / CANVAS_SIZE)


def has_display() -> bool:
    """Whether a window could be opened here, as far as the operating system tells."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


class Window:
    """A matplotlib window that shows one picture after another; SimulationError where none can be opened."""

    def __init__(self, title: str) -> None:
        import matplotlib.pyplot as plt  # here alone: it takes half a second, and few environments open a window

        if plt.get_backend().lower() == "agg":  # what matplotlib falls back to where it cannot open windows
            raise SimulationError(
                'render_mode="human" needs a display and a window toolkit such as tkinter, and matplotlib found none; '
                'use render_mode="rgb_array" and save the pictures'
            )
        self._pyplot = plt
        self._figure = plt.figure(title)

    def show(self, picture: np.ndarray) -> None:
        """Show a picture, uint8 (H, W, 3), until the next one."""
        self._figure.clear()
        self._figure.figimage(picture, resize=True)
        self._pyplot.pause(0.001)

    def close(self) -> None:
        """Close the window; once is enough, twice does no harm."""
        self._pyplot.close(self._figure)


def _whole(points: np.ndarray) -> list[Point]:
    return [(round(x), round(y)) for x, y in points.tolist()]


def _draw_disc(pen: ImageDraw.ImageDraw, centre: Point, radius: int, colour: Colour) -> None:
    x, y = centre
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _draw_fat_line(pen: ImageDraw.ImageDraw, points: list[Point], colour: Colour) -> None:
    pen.line(points, fill=colour, width=2 * OUTLINE_RADIUS + 1)
    for point in points:
        _draw_disc(pen, point, OUTLINE_RADIUS, colour)
