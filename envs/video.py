"""Videos of episodes, with the predicted chunk drawn over the picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import gymnasium
import numpy as np
from PIL import Image, ImageDraw

from flowchunk.datasets.errors import SimulationError

FIRST, LAST = np.array([255, 210, 40]), np.array([220, 30, 90])


def draw_chunk(env: gymnasium.Env[Any, Any], chunk: np.ndarray) -> np.ndarray:
    """The environment's picture (height, width, 3) uint8 with a chunk (H, D) as dots, from yellow (now) to red."""
    picture = env.render()
    if not isinstance(picture, np.ndarray):
        raise SimulationError("a video needs an environment made with render_mode='rgb_array'")
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    points = env.get_wrapper_attr("chunk_to_pixels")(chunk)
    radius = max(2.0, picture.shape[0] / 160)
    for share, (x, y) in zip(np.linspace(0, 1, len(points)), points, strict=True):
        color = tuple((FIRST + share * (LAST - FIRST)).astype(int).tolist())
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    return np.asarray(image)


def write_video(path: Path, frames: Sequence[np.ndarray], *, fps: float) -> None:
    """Write frames (height, width, 3) uint8 as an H.264 MP4 that browsers play."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = (size - size % 2 for size in frames[0].shape[:2])  # yuv420p needs even sizes
    with av.open(path, mode="w") as container:
        stream = container.add_stream("libx264", rate=round(fps), options={"crf": "23"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]))))
        container.mux(stream.encode())
